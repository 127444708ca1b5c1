"""The 84 kernels of nine taps that convolve series: at which dilations, over which channels, and what they give."""

import math
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor
from torch.nn import functional

TAPS = 9
KERNELS = 84  # ways to choose three of nine taps
PER_BLOCK = KERNELS // 2
_MOST_DILATIONS = 32
_MOST_CHANNELS = 9  # that one kernel sums over


@dataclass(frozen=True)
class Block:
    """The kernels of one dilation that treat the ends of the series alike."""

    difference: bool  # of neighboring samples, in place of the series
    dilation: int
    padded: bool  # by zeros, so that there is an activation at every position
    kernels: slice  # half of the 84
    thresholds: int  # biases of each kernel


def make_blocks(length: int, per_kernel: int, difference: bool) -> list[Block]:
    """All kernels at all dilations, such that each has `per_kernel` biases, for series `(..., length)`."""
    steps = min(per_kernel, _MOST_DILATIONS)
    largest = math.log2((length - 1) / (TAPS - 1))
    thresholds: dict[int, int] = {}
    for index in range(per_kernel):
        exponent = largest * (index % steps) / max(steps - 1, 1)
        # exponents are spread evenly, so small dilations come several times
        dilation = int(2**exponent)
        thresholds[dilation] = thresholds.get(dilation, 0) + 1
    blocks = []
    for index, (dilation, count) in enumerate(sorted(thresholds.items())):
        # every other kernel is padded, the others at the next dilation
        for first, padded in ((index % 2, True), (1 - index % 2, False)):
            kernels = slice(first, None, 2)
            blocks.append(Block(difference, dilation, padded, kernels, count))
    return blocks


def kernel_weights() -> Tensor:
    """`(84, 9)`: weight 2 at three taps, in all ways, and -1 at the others."""
    chosen = torch.tensor(list(combinations(range(TAPS), 3)))
    return torch.full((len(chosen), TAPS), -1.0).scatter(1, chosen, 2.0)


def draw_channels(rows: int, channels: int, generator: torch.Generator) -> Tensor:
    """Which channels each of the rows sums over, 0 or 1 `(rows, channels)`; small numbers of them are more likely."""
    most = min(channels, _MOST_CHANNELS)
    exponents = torch.rand(rows, 1, generator=generator) * math.log2(most + 1)
    counts = (2**exponents).long().clamp(max=most)
    order = torch.rand(rows, channels, generator=generator).argsort(1)
    # not bool, which gloo does not send
    return (order.argsort(1) < counts).to(torch.uint8)


def convolve(series: Tensor, real: Tensor, weights: Tensor, dilation: int, padded: bool) -> tuple[Tensor, Tensor]:
    """Activations `(kernels, B, positions)`, -inf where they do not count, and bool `(B, positions)`, where they do.

    `series` is `(B, C, L)`, `real` `(B, L)`, `weights` `(kernels, 9 C)`.
    """
    span = (TAPS - 1) * dilation + 1
    if padded:
        series = functional.pad(series, (span // 2, span // 2))
        counted = real
    else:
        counted = _whole(real, dilation)
    taps = series.unfold(2, span, 1)[..., ::dilation].permute(1, 3, 0, 2)
    # one more row of weight 1 makes -inf of what does not count, in the same product
    columns = torch.cat([taps.flatten(0, 1), series.new_zeros(1, *counted.shape).masked_fill(~counted, -math.inf)])
    weights = functional.pad(weights, (0, 1), value=1.0)
    activations = weights @ columns.flatten(1)
    return activations.view(len(weights), *counted.shape), counted


def _whole(real: Tensor, dilation: int) -> Tensor:
    """Where all taps of a kernel lie on what is real `(B, L)`, `(B, positions)`."""
    positions = real.shape[1] - (TAPS - 1) * dilation
    whole = real[:, :positions]
    for tap in range(1, TAPS):
        whole = whole & real[:, tap * dilation : tap * dilation + positions]
    return whole
