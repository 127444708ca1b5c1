import pytest
import torch
from torch import nn

from hybrid_lightning.cache.boundaries import about_to_train, short_circuits
from hybrid_lightning.cache.fingerprints import random_state
from hybrid_lightning.unfreezing.freezing import set_trainable
from tests.cache.stages import Backbone, Stage, Tokens

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def cuts(module, trains, inputs=IMAGES):
    """The boundaries of a module in eval mode but for its root, of which some parameters train."""
    module.eval()
    set_trainable(module.parameters(), False)
    set_trainable(trains, True)
    module.training = True
    return short_circuits(module, [inputs], random_state)


def names(found):
    return [cut.boundary for cut in found]


def test_boundaries_are_outputs_before_all_that_trains_the_deepest_first():
    net = Backbone()
    expected = ["stages.3", "stages.2", "pool", "stages.1", "stages.0"]
    assert names(cuts(net, net.stages[4].parameters())) == expected
    assert names(cuts(net, net.stages[4][1].parameters())) == ["stages.4.0", *expected]
    assert names(cuts(net, net.stages[0].parameters())) == []


def test_a_start_depends_on_its_own_tensors_alone():
    net = Backbone()
    _, cut, *_ = cuts(net, net.stages[3].parameters())
    assert cut.boundary == "pool"
    assert {name.split(".")[1] for name in cut.tensors} == {"0", "1"}
    assert "stages.1.1.running_mean" in cut.tensors


def test_a_weight_that_is_used_without_a_call_of_its_module_counts():
    net = Tokens()
    # an attention uses this weight itself
    trains = net.layers[1].self_attn.out_proj.parameters()
    assert names(cuts(net, trains))[-2:] == ["layers.0", "embed"]
    assert "layers.1.self_attn" not in names(cuts(net, net.layers[1].self_attn.out_proj.parameters()))


@pytest.mark.parametrize("layer", [nn.Dropout(0.5), nn.BatchNorm2d(4, affine=False)])
def test_nothing_behind_dropout_or_batch_statistics_is_a_boundary(layer):
    net = nn.Sequential(Stage(3, 4), layer, Stage(4, 4), Stage(4, 4))
    net.eval()
    set_trainable(net.parameters(), False)
    set_trainable(net[3].parameters(), True)
    assert names(short_circuits(net, [IMAGES], random_state)) == ["2", "1", "0"]
    layer.train()
    assert names(short_circuits(net, [IMAGES], random_state)) == ["0"]


def test_outputs_without_samples_first_are_no_boundaries():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(0, 1), nn.Conv1d(8, 2, 1))
    assert names(cuts(net, net[2].parameters())) == ["0"]


def test_flags_are_as_before_after_a_look_ahead():
    net = Backbone()
    set_trainable(net.parameters(), False)
    with about_to_train(list(net.stages[5].parameters())):
        assert net.stages[5][0].weight.requires_grad
    assert not any(parameter.requires_grad for parameter in net.parameters())
