"""Untrained convolution nets, residual and plain, for series, images and volumes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, check_keys
from hybrid_lightning.network.modules.mlp import in_turn, require_sizes

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DROPOUTS = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
_NORMS: dict[int, Callable[[int], nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class ResidualBlock(nn.Module):
    """Two normalized convolutions beside a shortcut; the first one divides every side by `stride`.

    `dimensions` is 1 for series, 2 for images, 3 for volumes; for `norm` see `ResidualConv`.
    """

    def __init__(
        self,
        dimensions: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 2,
        dropout: float = 0.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()

        def convolution(before: int, size: int, stride: int = 1) -> nn.Sequential:
            return _convolution(dimensions, before, out_channels, size, stride, norm)

        # a shortcut without weights fits only where the block changes no shape
        same_shape = in_channels == out_channels and stride == 1
        self.body = nn.Sequential(
            convolution(in_channels, kernel_size, stride),
            nn.ReLU(),
            _DROPOUTS[dimensions](dropout),
            convolution(out_channels, kernel_size),
        )
        self.shortcut = nn.Identity() if same_shape else convolution(in_channels, 1, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `(B, in_channels, ...)` to `(B, out_channels, ...)`, every side L to ceil(L / stride)."""
        return functional.relu(self.shortcut(maps) + self.body(maps))


class ResidualConv(nn.Module):
    """A residual convolution net (He et al., arXiv 1512.03385) for series, images or volumes.

    Every side is halved by the stem and divided by `stride` in each block. A normalization follows every convolution,
    so the scale of the initial weights does not matter; they are torch's (Kaiming uniform), the normalizations start
    as the identity. What is None is taken from the class: `ResidualConv1d`, `ResidualConv2d` or `ResidualConv3d`.

    Args:
        in_channels: Channels of the input.
        channels: Output channels of each residual block; the stem has as many as the first one.
        kernel_size: Side of the filters, in samples, pixels or voxels; odd. The stem's filters are twice as large.
        stride: Factor by which each block divides every side.
        dropout: Probability of zeroing a whole channel within each block while training.
        flip: Probability of changing the sign of a whole input while training, as augmentation where the sign means
            nothing, such as the direction of an alternating current.
        norm: ``batch`` (BatchNorm), or ``group`` (GroupNorm, groups of 8 channels or more), which also works for
            batches of one or two samples.

    Raises:
        ConfigError: If an argument is impossible.
    """

    dimensions: int
    default_channels: Sequence[int]
    default_kernel_size = 3
    default_norm = "batch"

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] | None = None,
        kernel_size: int | None = None,
        stride: int = 2,
        dropout: float = 0.0,
        *,
        flip: float = 0.0,
        norm: str | None = None,
    ) -> None:
        super().__init__()
        channels = self.default_channels if channels is None else channels
        kernel_size = self.default_kernel_size if kernel_size is None else kernel_size
        norm = self.default_norm if norm is None else norm
        require_sizes("channels", channels)
        if kernel_size % 2 == 0:
            raise ConfigError(f"{kernel_size} is even; residual blocks need an odd one, such as 7.", "kernel_size")
        check_keys([norm], ("batch", "group"), "norm", "normalization")
        stem = _convolution(self.dimensions, in_channels, channels[0], 2 * kernel_size + 1, 2, norm)
        self.stem = nn.Sequential(stem, nn.ReLU())
        before = channels[0]
        for index, after in enumerate(channels):
            block = ResidualBlock(self.dimensions, before, after, kernel_size, stride, dropout, norm)
            self.add_module(f"block{index}", block)
            before = after
        self.flip = flip

    def forward(self, maps: Tensor) -> Tensor:
        """Maps inputs `(B, in_channels, ...)` to feature maps `(B, channels[-1], ...)`."""
        if self.training and self.flip:
            # one draw for a whole sample
            draws = torch.rand(len(maps), *[1] * (maps.ndim - 1), device=maps.device)
            maps = torch.where(draws < self.flip, -maps, maps)
        return in_turn(self, maps)


class ResidualConv1d(ResidualConv):
    """A `ResidualConv` for series `(B, C, L)`: channels (32, 64), filters of 7 samples, BatchNorm."""

    dimensions = 1
    default_channels = (32, 64)
    default_kernel_size = 7


class ResidualConv2d(ResidualConv):
    """A `ResidualConv` for images `(B, C, H, W)`: channels (32, 64, 128), filters of 3 pixels, BatchNorm."""

    dimensions = 2
    default_channels = (32, 64, 128)


class ResidualConv3d(ResidualConv):
    """A `ResidualConv` for volumes `(B, C, D, H, W)`: channels (16, 32, 64), filters of 3 voxels, GroupNorm.

    Batches of volumes are often too small for the statistics of BatchNorm.
    """

    dimensions = 3
    default_channels = (16, 32, 64)
    default_norm = "group"


def _convolution(
    dimensions: int,
    before: int,
    after: int,
    kernel_size: int,
    stride: int,
    norm: str,
) -> nn.Sequential:
    """A convolution with its normalization; every side L becomes ceil(L / stride)."""
    # the normalization after it has a bias of its own
    layer = _CONVOLUTIONS[dimensions](before, after, kernel_size, stride, padding=kernel_size // 2, bias=False)
    if norm == "batch":
        return nn.Sequential(layer, _NORMS[dimensions](after))
    # groups of at least 8 channels, as far as the channels can be divided
    groups = 8
    while groups > 1 and (after % groups or after < 8 * groups):
        groups //= 2
    return nn.Sequential(layer, nn.GroupNorm(groups, after))


class ConvExtractor(nn.Module):
    """Two-dimensional convolution blocks: convolution, optional BatchNorm, ReLU, max pooling.

    Args:
        in_channels: Channels of the input image.
        channels: Output channels of each block; the number of blocks is its length.
        kernel_size: Side of the square filters, in pixels; the padding keeps height and width.
        pool_size: Side of the pooling window, in pixels; each block divides height and width by it. 1 pools nothing.
        norm: Whether each block normalizes with BatchNorm.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (16,),
        kernel_size: int = 3,
        pool_size: int = 2,
        norm: bool = False,
    ) -> None:
        super().__init__()
        require_sizes("channels", channels)
        before = in_channels
        for index, after in enumerate(channels):
            block = nn.Sequential(nn.Conv2d(before, after, kernel_size, padding="same", bias=not norm))
            if norm:
                block.append(nn.BatchNorm2d(after))
            block.append(nn.ReLU())
            if pool_size > 1:
                block.append(nn.MaxPool2d(pool_size))
            self.add_module(f"block{index}", block)
            before = after

    def forward(self, image: Tensor) -> Tensor:
        """Maps images `(B, in_channels, H, W)` to feature maps `(B, channels[-1], H', W')`."""
        return in_turn(self, image)
