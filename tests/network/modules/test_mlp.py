import pytest
import torch
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.convolution import ConvExtractor
from hybrid_lightning.network.modules.mlp import MLP, LinearHead


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (2, 16, 8, 8)),
        ({"channels": [4, 8], "pool_size": 3}, (2, 8, 1, 1)),
        ({"pool_size": 1, "kernel_size": 5}, (2, 16, 16, 16)),
    ],
)
def test_conv_extractor_divides_the_sides_by_pool_in_each_block(options, shape):
    assert ConvExtractor(3, **options)(torch.randn(2, 3, 16, 16)).shape == shape


def test_conv_extractor_normalizes_only_if_asked():
    kinds = {norm: {type(m) for m in ConvExtractor(3, norm=norm).modules()} for norm in (True, False)}
    assert nn.BatchNorm2d in kinds[True]
    assert nn.BatchNorm2d not in kinds[False]


def test_mlp_has_a_plain_layer_only_if_asked():
    features = torch.randn(8, 4)
    hidden, plain = MLP(4, [6])(features), MLP(4, [6], out_features=3)(features)
    assert (hidden.shape, plain.shape) == ((8, 6), (8, 3))
    assert (hidden >= 0).all()
    assert (plain < 0).any()


def test_the_gain_multiplies_every_initial_weight_and_no_bias():
    usual, loud = ((torch.manual_seed(0), MLP(4, [6, 5], out_features=3, init_gain=gain))[1] for gain in (1, 20))
    for before, after in zip(usual.parameters(), loud.parameters(), strict=True):
        torch.testing.assert_close(after, 20 * before if before.ndim > 1 else before)


@pytest.mark.parametrize("make", [lambda p: MLP(4, dropout=p), lambda p: LinearHead(4, 3, dropout=p)])
def test_dropout_acts_only_while_training(make):
    module, features = make(0.5), torch.randn(8, 4)
    assert not torch.equal(module(features), module(features))
    module.eval()
    assert torch.equal(module(features), module(features))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP(4, hidden=[]), r"hidden: \[\] is empty"),
        (lambda: ConvExtractor(3, channels=[]), r"channels: \[\] is empty"),
        (lambda: MLP(4, init_gain=0), "init_gain: 0 is not a number above 0"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
