"""Features of series by convolutions that are never trained."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, check_choice, check_number, listing
from hybrid_lightning.network.modules.positive_pools import POOLS, pool_positives
from hybrid_lightning.network.modules.random_kernels import (
    KERNELS,
    PER_BLOCK,
    TAPS,
    Block,
    convolve,
    draw_channels,
    kernel_weights,
    make_blocks,
)
from hybrid_lightning.network.modules.random_rows import RandomRows, drawn_seed, inputs_by_name

_GOLDEN_RATIO = (math.sqrt(5) + 1) / 2
_MOST_KEPT = 1024  # training samples for the quantiles; each kernel at each dilation reads one of them
_MOST_KEPT_VALUES = 2**24  # numbers in all samples that are kept, 64 MiB
# Comparisons at a time: on a CPU few enough for its caches, and many enough to make up for the calls.
_COMPARISONS_ON_CPU = 2**20
_COMPARISONS_ELSEWHERE = 2**27  # 512 MiB for each intermediate result


class RandomConvolutions(nn.Module):
    """Many convolutions that are never trained, and how often, how far and where they are positive.

    In the manner of MiniRocket (Dempster et al., arXiv 2012.08791) and MultiRocket (Tan et al., arXiv 2102.00457). The
    84 kernels have nine taps: three of weight 2, six of weight -1. Each is applied at up to 32 dilations, from 1 to
    the largest that fits into the series, every other time with zeros around the series. With several channels a
    kernel sums over a random choice of at most nine of them. The convolution is compared with biases, which `prepare`
    sets to quantiles of what the kernel gives on training samples; before that they are 0. There are no parameters:
    all that is drawn or prepared is in buffers.

    Scale and padding matter: give the series as they were measured, unless folds on training data say otherwise. The
    features pass no gradient back.

    Args:
        in_shape: Shape of a sample: ``[L]``, ``[C, L]``, or ``[L, C]`` with ``layout: steps``. Series of other lengths
            may follow; a kernel that reaches beyond a shorter one gives 0.
        features: About how many features there are, of all pools together; at least 84 of each pool.
        pool: What becomes of a convolution at each bias, one or more of

            - ``share``: the share of positions where it is above the bias, 0 to 1 (MiniRocket);
            - ``mean``: how far it is above the bias at these positions, on average, in the unit of the series;
            - ``index``: where these positions are, on average, 0 to 1, in units of `length`;
            - ``stretch``: the longest time that it does not fall below the bias, 0 to 1, in units of `length`. Equality
              counts, so that it tells how long a series is that zeros pad, where most biases are 0, too.

            All four, with `difference`, are MultiRocket. A convolution that is never above its bias has a share, a mean
            and an index of 0.
        difference: Whether half of the features come from the differences of neighboring samples.
        seed: Of all that is drawn: the channels, and the training sample behind each bias. None follows the seed of the
            run.
        layout: ``channels``, series `(B, C, L)`, or ``steps``, `(B, L, C)`, as the series of a manifest come.
        length: The L up to which dilations go, at least 10. None takes that of `in_shape`, and the dry run that of an
            example batch. One of ``steps`` is padded to its own longest series only, so state a length there.

    Raises:
        ConfigError: If an argument is impossible; in `forward` and `prepare`, if the input has another form.
    """

    passes_gradient = False
    biases: Tensor
    channels: Tensor
    prepared: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        features: int = 10_000,
        pool: Sequence[str] = ("share",),
        difference: bool = False,
        seed: int | None = None,
        layout: str = "channels",
        length: int | None = None,
    ) -> None:
        super().__init__()
        _check_arguments(features, pool)
        self.layout = check_choice(layout, "layout", ("channels", "steps"))
        self.in_channels, self.length = _sizes(in_shape, layout, length)
        self.pool = tuple(pool)
        self.seed = drawn_seed(seed)
        self.difference = difference
        views = [False, True] if difference else [False]
        per_kernel = max(1, features // (KERNELS * len(pool) * len(views)))
        self._blocks: list[Block] = []
        for view in views:
            # differences are one shorter
            self._blocks += make_blocks(self.length - view, per_kernel, view)
        rows = len(self._blocks) * PER_BLOCK
        biases = per_kernel * KERNELS * len(views)
        generator = torch.Generator().manual_seed(self.seed)
        self.register_buffer("channels", draw_channels(rows, self.in_channels, generator))
        self.register_buffer("biases", torch.zeros(biases))
        self.register_buffer("prepared", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Series `(B, C, L)`, `(B, L, C)` by `layout`, or `(B, L)` of one channel, → features `(B, features)`.

        Positions where `mask` `(B, L)` is 0, and those where a value is not finite, count for nothing: convolutions
        see zeros there, and their activations there are not pooled.
        """
        with torch.autocast(values.device.type, enabled=False):
            views = self._views(*self._read(values, mask))
            features = []
            for block, weights, biases in self._weighted_blocks():
                series, real = views[block.difference]
                chunks = _chunks(series, real, biases)
                pooled = [self._pooled(*chunk, block, weights, biases) for chunk in chunks]
                features.append(torch.cat(pooled))
            # the buffers may have been set to a shorter type, as what follows expects it
            return torch.cat(features, dim=1).to(self.biases.dtype)

    @torch.no_grad()
    def prepare(self, batches: Iterable[list[Any]]) -> None:
        """Sets the biases to quantiles of activations on training samples.

        Each kernel at each dilation takes its biases from one sample, drawn from at most 1,024 that are drawn from
        all. The result depends on the samples, their order and the seed, not on how they are batched.

        Args:
            batches: Inputs of this part, read once: lists ``[values]`` or ``[values, mask]``, or of one dict with the
                arguments of `forward`.

        Raises:
            ConfigError: If no sample has a real and finite value.
        """
        generator = torch.Generator().manual_seed(self.seed)
        series, real = self._draw_samples(batches, generator)
        with torch.autocast(series.device.type, enabled=False):
            self.biases.copy_(self._find_biases(series, real, generator))
        self.prepared.fill_(1)

    def _find_biases(self, series: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
        """Quantiles of activations `(biases,)`; for each kernel at each dilation those of one of the samples."""
        views = self._views(series, real)
        biases = []
        count = 0
        for block, weights, _ in self._weighted_blocks():
            chosen = torch.randint(len(series), (len(weights),), generator=generator).tolist()
            for weight, sample in zip(weights, chosen, strict=True):
                own, own_real = (entry[sample].unsqueeze(0) for entry in views[block.difference])
                # over all real positions, as in the paper, also where forward leaves out the ends
                activations, counted = convolve(own, own_real, weight.unsqueeze(0), block.dilation, padded=True)
                # multiples of the golden ratio, modulo 1, spread evenly, however many there are
                order = torch.arange(count + 1, count + block.thresholds + 1, dtype=torch.float64)
                count += block.thresholds
                levels = (order * _GOLDEN_RATIO % 1).to(activations)
                biases.append(_quantiles(activations[0][counted], levels))
        return torch.cat(biases)

    def _read(self, values: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Series `(B, C, L)`, zero where they do not count, and bool `(B, L)`, where they do."""
        series = values.unsqueeze(1) if values.ndim == 2 else values
        if values.ndim == 3 and self.layout == "steps":
            series = values.mT
        if series.ndim != 3 or series.shape[1] != self.in_channels or not series.shape[2]:
            shape = f"L, {self.in_channels}" if self.layout == "steps" else f"{self.in_channels}, L"
            shapes = f"(B, {shape})" + (" or (B, L)" if self.in_channels == 1 else "")
            raise ConfigError(
                f"the series have the shape {tuple(values.shape)}; this module was made for {shapes}. Give it such "
                f"series, or make another one for these; 'layout' says what comes first.",
                "values",
            )
        series = series.to(self._dtype())
        real = series.isfinite().all(1)
        if mask is not None:
            if mask.shape != real.shape:
                raise ConfigError(f"the shape is {tuple(mask.shape)}; {tuple(real.shape)} is needed.", "mask")
            real = real & mask.bool()
        if series.shape[2] == 1:  # as where all samples of a batch lack theirs; differences need a second position
            series, real = functional.pad(series, (0, 1)), functional.pad(real, (0, 1))
        return series.where(real.unsqueeze(1), 0), real

    def _dtype(self) -> torch.dtype:
        """Of all that is computed: at least float32, for the sake of the quantiles."""
        return torch.promote_types(self.biases.dtype, torch.float32)

    def _views(self, series: Tensor, real: Tensor) -> dict[bool, tuple[Tensor, Tensor]]:
        """The series and, if they are asked for (True), their differences; each with where it counts."""
        views = {False: (series, real)}
        if self.difference:
            real = real[:, 1:] & real[:, :-1]
            views[True] = series.diff(dim=2).where(real.unsqueeze(1), 0), real
        return views

    def _weighted_blocks(self) -> Iterator[tuple[Block, Tensor, Tensor]]:
        """Each block with its weights `(kernels, 9 C)` and biases `(kernels, thresholds)`."""
        kernels = kernel_weights().to(self.biases.device, self._dtype())
        row = 0
        bias = 0
        for block in self._blocks:
            channels = self.channels[row : row + PER_BLOCK]
            row += PER_BLOCK
            weights = channels.unsqueeze(2) * kernels[block.kernels].unsqueeze(1)
            count = PER_BLOCK * block.thresholds
            biases = self.biases[bias : bias + count].to(self._dtype())
            bias += count
            yield block, weights.flatten(1), biases.view(-1, block.thresholds)

    def _pooled(self, series: Tensor, real: Tensor, block: Block, weights: Tensor, biases: Tensor) -> Tensor:
        """The features `(B, pools x kernels x thresholds)` of one block."""
        if not block.padded and series.shape[2] <= (TAPS - 1) * block.dilation:
            return series.new_zeros(len(series), len(self.pool) * biases.numel())
        activations, counted = convolve(series, real, weights, block.dilation, block.padded)
        pooled = pool_positives(activations, counted, biases, self.pool, self.length)
        return pooled.movedim(-1, 0).flatten(1)

    def _draw_samples(self, batches: Iterable[list[Any]], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Series `(N, C, L)` and where they count `(N, L)`, of samples that are drawn from all."""
        affordable = _MOST_KEPT_VALUES // (self.in_channels * self.length)
        sample = RandomRows(max(1, min(_MOST_KEPT, affordable)), generator, dtype=torch.float32)
        for inputs in batches:
            entries = inputs_by_name(inputs, ("values", "mask"))
            series, real = self._read(**entries)
            # where a sample counts is one more channel of it
            rows = torch.cat([series, real.unsqueeze(1)], dim=1)
            sample.add(rows[real.any(1)])
        kept = sample.rows()
        if not kept:
            raise ConfigError("no training sample has a finite value at a real position. Look at the data.", "values")
        longest = max(row.shape[1] for row in kept)
        padded = [functional.pad(row, (0, longest - row.shape[1])) for row in kept]
        rows = torch.stack(padded).to(self.biases.device)
        return rows[:, :-1], rows[:, -1].bool()


def _sizes(in_shape: Sequence[int], layout: str, length: int | None) -> tuple[int, int]:
    """Channels, and the number of positions that dilations are made for."""
    if len(in_shape) not in (1, 2):
        raise ConfigError(f"{list(in_shape)!r} is not [L] or [C, L]; write such as [1, 500].", "in_shape")
    sizes = list(in_shape) if layout == "channels" else list(reversed(in_shape))
    channels, positions = sizes if len(sizes) == 2 else (1, sizes[0])
    check_number(channels, "in_shape", 1)
    if length is not None:
        check_number(length, "length", TAPS + 1)
        return channels, length
    if positions <= TAPS:
        other = "channels" if layout == "steps" else "steps"
        raise ConfigError(
            f"{positions} positions are fewer than 10. Pad the series, with a mask; or write 'layout: {other}' if the "
            f"{other} come first in {list(in_shape)!r}, or 'length: N' if other series are longer.",
            "in_shape",
        )
    return channels, positions


def _check_arguments(features: int, pool: Sequence[str]) -> None:
    check_number(features, "features", 1)
    if not pool:
        raise ConfigError(f"it is empty; give at least one of {listing(POOLS)}.", "pool")
    for name in pool:
        check_choice(name, "pool", POOLS, "pool")


def _chunks(series: Tensor, real: Tensor, biases: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """As many samples as are compared with all biases `(kernels, thresholds)` at a time, and where they count."""
    # a program that is traced for any number of samples cannot cut them
    if torch.compiler.is_compiling():
        return [(series, real)]
    most = _COMPARISONS_ON_CPU if series.device.type == "cpu" else _COMPARISONS_ELSEWHERE
    size = max(1, most // (biases.numel() * series.shape[2]))
    return zip(torch.split(series, size), torch.split(real, size), strict=True)


def _quantiles(values: Tensor, levels: Tensor) -> Tensor:
    """Of values `(N,)`, at levels from 0 to 1; zeros if there are none."""
    return torch.quantile(values, levels) if len(values) else torch.zeros_like(levels)
