from math import ceil

import pytest
import torch
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.extractors import MLP, ConvExtractor, LinearHead, ResidualBlock1d, ResidualConv1d


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


def test_conv_extractor_normalises_only_if_asked():
    kinds = {norm: {type(m) for m in ConvExtractor(3, norm=norm).modules()} for norm in (True, False)}
    assert nn.BatchNorm2d in kinds[True]
    assert nn.BatchNorm2d not in kinds[False]


@pytest.mark.parametrize("length", [16, 33, 100])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_residual_block_divides_the_length_rounding_up(length, stride):
    block = ResidualBlock1d(3, 5, stride=stride)
    assert block(torch.randn(2, 3, length)).shape == (2, 5, ceil(length / stride))


def test_a_residual_block_of_one_shape_passes_its_input_on():
    block = ResidualBlock1d(3, 3, stride=1).eval()
    series = torch.randn(2, 3, 16)
    torch.testing.assert_close(block(series), (series + block.body(series)).relu())
    assert isinstance(block.shortcut, nn.Identity)


def test_residual_conv_maps_series_to_shorter_ones():
    assert ResidualConv1d(2, channels=[4, 8])(torch.randn(2, 2, 64)).shape == (2, 8, 8)


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
        (lambda: ResidualConv1d(3, channels=()), r"channels: \[\] is empty"),
        (lambda: MLP(4, init_gain=0), "init_gain: 0 is not a number above 0"),
        (lambda: ResidualConv1d(3, kernel_size=4), "kernel_size: 4 is even; residual blocks need an odd length"),
    ],
)
def test_impossible_sizes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
