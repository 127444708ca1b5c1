from math import ceil

import pytest
import torch
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.convolution import ResidualBlock, ResidualConv1d, ResidualConv2d, ResidualConv3d

NETS = {1: ResidualConv1d, 2: ResidualConv2d, 3: ResidualConv3d}


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("length", [8, 13])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_residual_block_divides_every_side_rounding_up(dimensions, length, stride):
    block = ResidualBlock(dimensions, 3, 5, stride=stride)
    assert block(torch.randn(2, 3, *[length] * dimensions)).shape == (2, 5, *[ceil(length / stride)] * dimensions)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_a_residual_block_of_one_shape_passes_its_input_on(dimensions):
    block = ResidualBlock(dimensions, 3, 3, stride=1).eval()
    maps = torch.randn(2, 3, *[8] * dimensions)
    torch.testing.assert_close(block(maps), (maps + block.body(maps)).relu())
    assert isinstance(block.shortcut, nn.Identity)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_residual_conv_halves_in_the_stem_and_in_each_block(dimensions):
    net = NETS[dimensions](2, channels=[4, 12])
    assert net(torch.randn(2, 2, *[32] * dimensions)).shape == (2, 12, *[4] * dimensions)
    assert [name for name, _ in net.named_children()] == ["stem", "block0", "block1"]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_group_norm_treats_each_sample_alone(dimensions):
    net = NETS[dimensions](2, channels=[4, 12], norm="group").train()
    maps = torch.randn(3, 2, *[16] * dimensions)
    torch.testing.assert_close(net(maps)[:1], net(maps[:1]))
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


def test_the_scale_of_initial_weights_does_not_matter():
    images = torch.randn(4, 3, 64, 64, dtype=torch.double)
    net = ResidualConv2d(3).double()
    usual = net(images)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(10 if parameter.ndim > 1 else 1)
    torch.testing.assert_close(net(images), usual, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": ()}, r"channels: \[\] is empty"),
        ({"kernel_size": 4}, "kernel_size: 4 is even; residual blocks need an odd one"),
        ({"norm": "layer"}, "norm: unknown normalization 'layer'.*'batch', 'group'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        ResidualConv2d(3, **options)
