import pytest
import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.builder import build, rebuild
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.outputs import pooled
from hybrid_lightning.network.part import parse_parts


def network(module: nn.Module, value: object, **facts: object) -> HybridNetwork:
    parts = parse_parts({"x": {"module": module, **facts}})
    return build(parts, 3, {"x": value})


def features(module: nn.Module, value: object, **facts: object) -> Tensor:
    return network(module, value, **facts).eval().features({"x": value})["x"]


class Returns(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.linear, self.make = nn.Linear(4, 4), make

    def forward(self, x):
        return self.make(self.linear(x))


VALUE = torch.randn(2, 4)


def test_a_lone_tensor_is_taken_out_of_its_container():
    for make in (lambda y: (y, None), lambda y: {"z": y}, lambda y: [y]):
        module = Returns(make)
        assert torch.equal(features(module, VALUE), module.linear(VALUE))


@pytest.mark.parametrize("key", ["last_hidden_state", "out"])
def test_known_outputs_are_found_among_others(key):
    module = Returns(lambda y: {"aux": y + 1, key: y})
    assert torch.equal(features(module, VALUE), module.linear(VALUE))


@pytest.mark.parametrize(("make", "key"), [(lambda y: (y, y + 1), 1), (lambda y: {"a": y, "b": y + 1}, "b")])
def test_a_part_says_which_output_it_means(make, key):
    module = Returns(make)
    assert torch.equal(features(module, VALUE, output=key), module.linear(VALUE) + 1)
    with pytest.raises(ConfigError, match=r"model\.parts\.x: choose one of what Returns returns: .*\(2, 4\)"):
        network(module, VALUE)


@pytest.mark.parametrize(
    ("module", "shape", "dimensions"),
    [
        (nn.Conv1d(3, 5, 1), (2, 3, 7), (2,)),
        (nn.Conv2d(3, 5, 1), (2, 3, 7, 7), (2, 3)),
        (nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)), (2, 3, 5, 5), (2, 3)),
        (nn.ConvTranspose1d(3, 5, 1), (2, 3, 7), (2,)),
        (nn.Linear(3, 5), (2, 7, 3), (1,)),
        (nn.Linear(3, 5), (2, 5, 3), (1,)),
        (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (2, 7, 4), (1,)),
        (nn.Linear(3, 5), (2, 6, 7, 3), (1, 2)),
    ],
)
def test_maps_and_tokens_are_averaged_over_positions_never_over_channels(module, shape, dimensions):
    value = torch.randn(shape)
    module.eval()
    torch.testing.assert_close(features(module, value), module(value).mean(dimensions))


def test_an_output_without_a_layer_that_tells_its_channels_asks_for_the_pooling():
    with pytest.raises(ConfigError, match=r"model\.parts\.x\.pool: the output is tensor \(2, 3, 7\)"):
        network(nn.ReLU(), torch.randn(2, 3, 7))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 6)

    def forward(self, values, attention_mask):
        return self.linear(values)


def test_tokens_that_the_attention_mask_leaves_out_do_not_count():
    module, values = Tokens(), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    found = features(module, {"values": values, "attention_mask": mask})
    torch.testing.assert_close(
        found, torch.stack([module.linear(v[m == 1]).mean(0) for v, m in zip(values, mask, strict=True)])
    )


def test_a_mask_of_nothing_gives_zeros_not_nan():
    assert torch.equal(pooled(torch.ones(1, 3, 2), "tokens", torch.zeros(1, 3)), torch.zeros(1, 2))


def test_a_rebuilt_network_reads_and_pools_as_the_first_one():
    module = Returns(lambda y: {"a": y, "b": y + 1})
    first = network(module, torch.randn(2, 7, 4), output="b")
    again = rebuild(first.options, 3, first.record)
    again.load_state_dict(first.state_dict())
    batch = {"x": torch.randn(3, 9, 4)}
    assert torch.equal(again.eval()(batch), first.eval()(batch))
