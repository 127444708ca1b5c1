"""Targets of three kinds: classes, labels and values, checked and as the numbers that a linear fit aims at."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, at, check_choice

Kind = Literal["classes", "labels", "values"]
"""Classes, `(N,)` of whole numbers; labels, `(N, K)` of 0 and 1; values, `(N,)` or `(N, K)` of real numbers."""
KINDS = ("classes", "labels", "values")


def encode(target: Tensor, kind: Kind, outputs: int) -> Tensor:
    """The target as `(N, outputs)` in float64: classes one-hot, labels and values as they are."""
    check_choice(kind, "kind", KINDS)
    with at("target"):
        if kind == "classes":
            _check_classes(target, outputs)
            return functional.one_hot(target.long(), outputs).double()
        columns = target[:, None] if target.ndim == 1 else target
        if columns.ndim != 2 or columns.shape[1] != outputs:
            raise ConfigError(f"the shape {tuple(target.shape)} is not (rows, {outputs}), a column for each output.")
        numbers = columns.double()
        if not numbers.isfinite().all():
            is_bad = ~numbers.isfinite()
            count = int(is_bad.any(1).sum())
            raise ConfigError(f"{count} of {len(target)} rows have values that are not finite. Leave them out.")
        is_binary = (numbers == 0) | (numbers == 1)
        if kind == "labels" and not is_binary.all():
            raise ConfigError("labels have to be 0 or 1. For other numbers use the kind 'values'.")
    return numbers


def numbered(rows: int, groups: Tensor | None) -> Tensor:
    """The number of each row's group `(rows,)`, from 0 without gaps; without groups each row is one."""
    return torch.arange(rows) if groups is None else torch.unique(groups, return_inverse=True)[1]


def _check_classes(target: Tensor, outputs: int) -> None:
    """Raises `ConfigError` unless the target holds class numbers from 0 to outputs - 1."""
    if target.ndim != 1 or target.is_floating_point() or target.is_complex():
        given = f"{target.dtype} of shape {tuple(target.shape)}"
        raise ConfigError(f"{given} is not a whole number per row. For labels of 0 and 1 use the kind 'labels'.")
    if not len(target):
        return
    lowest = int(target.min())
    highest = int(target.max())
    if lowest < 0 or highest >= outputs:
        found = f"{lowest} to {highest}"
        raise ConfigError(f"has the classes {found}, but with {outputs} outputs only 0 to {outputs - 1} are possible.")


def relative_weights(row_weights: Tensor | None, like: Tensor) -> Tensor:
    """Weights `(N,)` of rows, in float64 with the mean 1; all 1 for None."""
    if row_weights is None:
        return like.new_ones(len(like), dtype=torch.float64)
    with at("row_weights"):
        if row_weights.shape != (len(like),):
            raise ConfigError(f"the shape {tuple(row_weights.shape)} is not ({len(like)},), a weight for each row.")
        weights = row_weights.to(like.device, torch.float64)
        is_possible = weights.isfinite() & (weights >= 0)
        if not is_possible.all():
            raise ConfigError("a weight is negative or not finite. Give each row a number from 0 on.")
        if not weights.any():
            raise ConfigError("all weights are 0. Give at least some rows a positive one.")
    return weights / weights.mean()


def moments(goal: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means and standard deviations, `(K,)` each, of targets `(N, K)`; exactly 0 for what is constant."""
    total = weights.sum()
    middle = weights @ goal / total
    squares = (goal - middle).square()
    variance = weights @ squares / total
    deviation = variance.sqrt()
    deviation[deviation <= 1e-12 * middle.abs()] = 0.0  # rounding errors of the mean
    return middle, deviation


def standardize(goal: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Targets `(N, K)` with the mean 0 and the deviation 1, or 0 if constant; their former means and units, `(K,)`."""
    middle, unit = moments(goal, weights)
    unit[unit == 0] = 1.0
    standardized = (goal - middle) / unit
    return standardized, middle, unit
