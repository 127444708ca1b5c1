"""Random features of tables whose products approximate a Gaussian kernel; they are never trained."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, check_number
from hybrid_lightning.network.modules.random_rows import RandomRows, drawn_seed, inputs_by_name
from hybrid_lightning.network.modules.tabular_mlp import require_columns

SAMPLE = 2000
"""Training rows among which the median distance is taken."""


class RandomFourierFeatures(nn.Module):
    """Sines and cosines of random projections of a table's columns, drawn once and never trained.

    With directions w from a normal distribution of deviation 1 / σ, the mean over features of the product of two rows'
    features approaches exp(-d² / (2 σ²)) for rows at distance d, with an error like 1 / sqrt(features) (Rahimi and
    Recht, Random Features for Large-Scale Kernel Machines, NeurIPS 2007). Every direction gives a sine and a cosine
    rather than a cosine with a random phase, because that has the smaller variance for this kernel and gives a row at
    distance 0 exactly 1 (Sutherland and Schneider, arXiv 1506.02785). Features lie between -√2 and √2, so that their
    mean square is 1 for any number of them.

    The input is that of `TabularMLP`: a dict with ``numeric``, ``categorical`` or both, a list of two keys in this
    order, or the numbers alone. A number that is nan or infinite is missing: the training mean takes its place, and a
    column of its own is 1 there. A category becomes one 1 among as many columns as there are categories, none if it is
    missing or unknown; two categories are √2 apart, as two standardized numbers are in the mean square.

    What it takes from the data (`prepare`) stands in buffers, and there are no parameters.

    Args:
        in_features: Number of numeric columns.
        categories: Number of categories of each categorical column.
        features: Features of the output, an even number of at least 2: sines, then cosines.
        bandwidth: σ, above 0, in deviations of the standardized columns; None takes the median distance between
            training rows, of at most 2,000 that `seed` draws, and never 0.
        standardize: Whether numbers are brought to mean 0 and deviation 1 over the training rows. A column that is
            constant there becomes 0.
        seed: Of directions and rows; None follows the seed of the run.

    Raises:
        ConfigError: If an argument is impossible, there are no columns, or a batch has another number of them.
    """

    prepared: Tensor
    bandwidth: Tensor
    directions: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        in_features: int = 0,
        categories: Sequence[int] = (),
        features: int = 2048,
        bandwidth: float | None = None,
        standardize: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        require_columns(in_features, categories)
        check_number(features, "features", 2)
        if features % 2:
            raise ConfigError(f"{features} is odd; each direction gives a sine and a cosine.", "features")
        if bandwidth is not None:
            check_number(bandwidth, "bandwidth", 0, above_low=True)
        self.in_features = in_features
        self.categories = list(categories)
        self.chosen_bandwidth = bandwidth
        self.standardize = standardize
        self.seed = drawn_seed(seed)
        # a number has a second column that says where it is missing
        columns = 2 * in_features + sum(categories)
        generator = torch.Generator().manual_seed(self.seed)
        directions = torch.randn(features // 2, columns, generator=generator)
        self.register_buffer("directions", directions)
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("scale", torch.ones(in_features))
        self.register_buffer("bandwidth", torch.tensor(float(bandwidth or 1.0)))
        self.register_buffer("prepared", torch.zeros((), dtype=torch.int64))

    def forward(self, numeric: Tensor | None = None, categorical: Tensor | None = None) -> Tensor:
        """Columns `(B, in_features)` and `(B, len(categories))` → `(B, features)`, in the dtype of the buffers."""
        self._check_columns(numeric, categorical)
        columns = self._columns(numeric, categorical)
        # half precision would round the angles, which are many turns, and not only the result
        with torch.autocast(columns.device.type, enabled=False):
            angles = functional.linear(columns / self.bandwidth, self.directions)
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        return math.sqrt(2) * features

    @torch.no_grad()
    def prepare(self, batches: Iterable[list[Any]]) -> None:
        """Takes mean, deviation and bandwidth from training samples.

        Args:
            batches: The part's inputs of each batch, in one pass that is always in the same order; read once.

        Raises:
            ConfigError: If there is no row, or a number is infinite (nan is a missing one).
        """
        moments = _Moments(self.in_features)
        # another stream of random numbers than that of the directions
        generator = torch.Generator().manual_seed(self.seed + 1)
        sample = RandomRows(SAMPLE, generator)
        for inputs in batches:
            entries = inputs_by_name(inputs, ("numeric", "categorical"))
            rows = self._checked(**entries)
            self._refuse_infinite(rows)
            moments.add(rows[:, : self.in_features])
            sample.add(rows)
        if not sample.rows():
            raise ConfigError("RandomFourierFeatures: there is no training sample to prepare with.")
        if self.standardize:
            self.mean.copy_(moments.mean)
            self.scale.copy_(moments.scale())
        if self.chosen_bandwidth is None:
            rows = torch.stack(sample.rows()).to(self.mean)
            numeric = rows[:, : self.in_features]
            categorical = rows[:, self.in_features :]
            columns = self._columns(numeric, categorical)
            self.bandwidth.fill_(_median_distance(columns))
        self.prepared.fill_(1)

    def _columns(self, numeric: Tensor | None, categorical: Tensor | None) -> Tensor:
        """What is projected, `(B, columns)`: numbers on their scale, 1 where they are missing, and one-hot codes."""
        columns: list[Tensor] = []
        if numeric is not None and self.in_features:
            numbers = numeric.to(self.mean.dtype)
            known = numbers.isfinite()
            centered = (numbers - self.mean) * self.scale
            columns.append(torch.where(known, centered, 0.0))
            columns.append(~known)
        if categorical is not None:
            for index, size in enumerate(self.categories):
                code = categorical[:, index].unsqueeze(1)
                columns.append(code == torch.arange(size, device=code.device))
        parts = [column.to(self.mean.dtype) for column in columns]
        return torch.cat(parts, dim=1)

    def _checked(self, numeric: Tensor | None = None, categorical: Tensor | None = None) -> Tensor:
        """Numbers and codes beside each other, `(B, in_features + len(categories))`, float64 on the CPU."""
        self._check_columns(numeric, categorical)
        given = [table for table in (numeric, categorical) if table is not None]
        rows = [table.detach().cpu().double() for table in given]
        return torch.cat(rows, dim=1)

    def _check_columns(self, numeric: Tensor | None, categorical: Tensor | None) -> None:
        """Raises `ConfigError` if a batch has another number of columns than the arguments say."""
        expected = {
            "in_features": (numeric, self.in_features),
            "categories": (categorical, len(self.categories)),
        }
        for option, (table, count) in expected.items():
            found = 0 if table is None else table.shape[-1]
            if found != count:
                raise ConfigError(
                    f"RandomFourierFeatures: a batch has {found} columns where {option} says {count}. Correct it.",
                )

    def _refuse_infinite(self, rows: Tensor) -> None:
        """Raises `ConfigError` if a number of the training rows is infinite."""
        is_infinite = rows.isinf().any(dim=0)
        if is_infinite.any():
            infinite = is_infinite.nonzero().flatten().tolist()
            raise ConfigError(
                f"RandomFourierFeatures: the training rows have infinite numbers in columns {infinite} (from 0). "
                f"Correct them, or write nan for a missing number."
            )


class _Moments:
    """Mean and deviation of columns `(rows, n)` with gaps (nan), merged batch by batch (Chan et al. 1979)."""

    def __init__(self, columns: int) -> None:
        self.count = torch.zeros(columns, dtype=torch.float64)
        self.mean = torch.zeros(columns, dtype=torch.float64)
        self._squares = torch.zeros(columns, dtype=torch.float64)

    def add(self, numbers: Tensor) -> None:
        """Counts rows in; those of a batch are centered before they are squared."""
        known = numbers.isfinite()
        count = known.sum(dim=0)
        total = torch.where(known, numbers, 0.0).sum(dim=0)
        mean = total / count.clamp(min=1)
        centered = torch.where(known, numbers - mean, 0.0)
        shift = mean - self.mean
        share = count / (self.count + count).clamp(min=1)
        self._squares += centered.square().sum(dim=0)
        self._squares += shift.square() * self.count * share
        self.mean += shift * share
        self.count += count

    def scale(self) -> Tensor:
        """One over the deviation; 0 for a column whose deviation is within rounding."""
        variance = self._squares / self.count.clamp(min=1)
        deviation = variance.sqrt()
        rounding = torch.finfo(torch.float32).eps * self.mean.abs()
        is_constant = deviation <= rounding
        return torch.where(is_constant, 0.0, 1 / deviation)


def _median_distance(columns: Tensor) -> float:
    """The median distance of rows `(N, columns)`; of rows that differ if most are alike, and 1 if all are."""
    distances = functional.pdist(columns.float())
    apart = distances[distances > 0]
    if not len(apart):
        return 1.0
    median = distances.median()
    return float(median) if median > 0 else float(apart.median())
