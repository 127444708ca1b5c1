"""Untrained convolution nets, residual and plain, for series, images and volumes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, unknown
from hybrid_lightning.network.modules.mlp import in_turn, require_sizes

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_DROPOUTS = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
_NORMS: dict[int, Callable[[int], nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_NORM_NAMES = ("batch", "group")


class ResidualBlock(nn.Module):
    """Two normalized convolutions beside a shortcut; the first one divides every side by `stride`.

    Args:
        dimensions: 1 for series, 2 for images, 3 for volumes.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the filters; odd.
        stride: Factor by which the output is smaller than the input.
        dropout: Probability of zeroing a whole channel between the two convolutions.
        norm: ``batch`` or ``group``, see `ResidualConv2d`.
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


class _ResidualConv(nn.Module):
    """A stem, then one residual block per entry of `channels`."""

    dimensions: int

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        kernel_size: int,
        stride: int,
        dropout: float,
        norm: str,
    ) -> None:
        super().__init__()
        require_sizes("channels", channels)
        if kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size: {kernel_size} is even; residual blocks need an odd one, such as 7.")
        if norm not in _NORM_NAMES:
            raise unknown("norm", "normalization", str(norm), _NORM_NAMES)
        stem = _convolution(self.dimensions, in_channels, channels[0], 2 * kernel_size + 1, 2, norm)
        self.stem = nn.Sequential(stem, nn.ReLU())
        for index, (before, after) in enumerate(zip([channels[0], *channels], channels, strict=False)):
            block = ResidualBlock(self.dimensions, before, after, kernel_size, stride, dropout, norm)
            self.add_module(f"block{index}", block)


class ResidualConv1d(_ResidualConv):
    """A residual convolution net for series (He et al., arXiv 1512.03385, in one dimension).

    The length is halved by the stem and divided by `stride` in each block. A normalization follows every convolution,
    so the scale of the initial weights does not matter; they are torch's (Kaiming uniform), the normalizations start
    as the identity.

    Args:
        in_channels: Channels of the input series.
        channels: Output channels of each residual block; the stem has as many as the first one.
        kernel_size: Length of the filters, in samples; odd. The stem's filters are twice as long.
        stride: Factor by which each block shortens the series.
        dropout: Probability of zeroing a whole channel within each block while training.
        flip: Probability of turning a whole series upside down while training, as augmentation where the sign means
            nothing, such as the direction of an alternating current.
        norm: ``batch`` (BatchNorm), or ``group`` (GroupNorm, groups of 8 channels or more), which also works for
            batches of one or two samples.
    """

    dimensions = 1

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (32, 64),
        kernel_size: int = 7,
        stride: int = 2,
        dropout: float = 0.0,
        flip: float = 0.0,
        norm: str = "batch",
    ) -> None:
        super().__init__(in_channels, channels, kernel_size, stride, dropout, norm)
        self.flip = flip

    def forward(self, series: Tensor) -> Tensor:
        """Maps series `(B, in_channels, L)` to feature maps `(B, channels[-1], L')`."""
        if self.training and self.flip:
            upside_down = torch.rand(len(series), 1, 1, device=series.device) < self.flip
            series = torch.where(upside_down, -series, series)
        return in_turn(self, series)


class ResidualConv2d(_ResidualConv):
    """A residual convolution net for images (He et al., arXiv 1512.03385), with initial weights as `ResidualConv1d`.

    Height and width are halved by the stem and divided by `stride` in each block.

    Args:
        in_channels: Channels of the input images.
        channels: Output channels of each residual block; the stem has as many as the first one.
        kernel_size: Side of the square filters, in pixels; odd. The stem's filters are twice as large.
        stride: Factor by which each block divides height and width.
        dropout: Probability of zeroing a whole channel within each block while training.
        norm: ``batch`` (BatchNorm), or ``group`` (GroupNorm, groups of 8 channels or more), which also works for
            batches of one or two samples.
    """

    dimensions = 2

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (32, 64, 128),
        kernel_size: int = 3,
        stride: int = 2,
        dropout: float = 0.0,
        norm: str = "batch",
    ) -> None:
        super().__init__(in_channels, channels, kernel_size, stride, dropout, norm)

    def forward(self, image: Tensor) -> Tensor:
        """Maps images `(B, in_channels, H, W)` to feature maps `(B, channels[-1], H', W')`."""
        return in_turn(self, image)


class ResidualConv3d(_ResidualConv):
    """A residual convolution net for volumes (He et al., arXiv 1512.03385), with initial weights as `ResidualConv1d`.

    Depth, height and width are halved by the stem and divided by `stride` in each block. The norm is that of groups,
    because batches of volumes are small.

    Args:
        in_channels: Channels of the input volumes.
        channels: Output channels of each residual block; the stem has as many as the first one.
        kernel_size: Side of the cubic filters, in voxels; odd. The stem's filters are twice as large.
        stride: Factor by which each block divides depth, height and width.
        dropout: Probability of zeroing a whole channel within each block while training.
        norm: ``group`` (GroupNorm, groups of 8 channels or more) or ``batch`` (BatchNorm).
    """

    dimensions = 3

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int] = (16, 32, 64),
        kernel_size: int = 3,
        stride: int = 2,
        dropout: float = 0.0,
        norm: str = "group",
    ) -> None:
        super().__init__(in_channels, channels, kernel_size, stride, dropout, norm)

    def forward(self, volume: Tensor) -> Tensor:
        """Maps volumes `(B, in_channels, D, H, W)` to feature maps `(B, channels[-1], D', H', W')`."""
        return in_turn(self, volume)


def _convolution(dimensions: int, before: int, after: int, kernel_size: int, stride: int, norm: str) -> nn.Sequential:
    """A convolution with its normalization; every side L becomes ceil(L / stride)."""
    layer = _CONVOLUTIONS[dimensions](before, after, kernel_size, stride, padding=kernel_size // 2, bias=False)
    if norm == "group":
        groups = next(count for count in (8, 4, 2, 1) if count == 1 or (after % count == 0 and after >= 8 * count))
        return nn.Sequential(layer, nn.GroupNorm(groups, after))
    return nn.Sequential(layer, _NORMS[dimensions](after))


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
        for index, (before, after) in enumerate(zip([in_channels, *channels], channels, strict=False)):
            convolution = nn.Conv2d(before, after, kernel_size, padding="same", bias=not norm)
            layers = [convolution, *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU()]
            self.add_module(
                f"block{index}", nn.Sequential(*layers, *([nn.MaxPool2d(pool_size)] if pool_size > 1 else []))
            )

    def forward(self, image: Tensor) -> Tensor:
        """Maps images `(B, in_channels, H, W)` to feature maps `(B, channels[-1], H', W')`."""
        return in_turn(self, image)
