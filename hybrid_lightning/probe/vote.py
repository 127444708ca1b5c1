"""What the features of a part say about a target alone: the best linear map, in closed form."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid_lightning.errors import ConfigError, at, check_number, listing
from hybrid_lightning.probe.calibration import Link, class_link, label_link
from hybrid_lightning.probe.ridge import (
    MOST_DIRECTIONS,
    HeldOut,
    coefficients,
    leave_folds_out,
    leave_one_out,
    principal_scores,
)
from hybrid_lightning.probe.targets import Kind, encode, relative_weights, standardize

STRENGTHS = tuple(10.0 ** (step / 2) for step in range(8, -13, -1))
"""Strengths of the ridge that are tried, 10,000 to a millionth, two per decade; the strongest first: it wins ties."""
_TIE = 1e-9  # of the loss per row, in nats or in variances of the target
_FOLDS = 10  # of groups, at most
_SECONDS = 25.0  # for a decomposition of the largest size, on one core
_PRODUCTS = 25e9  # of float64, that one core multiplies and adds up in a second
_NOTICEABLE = 5.0  # seconds


@dataclass(frozen=True)
class Vote:
    """A linear map from features `(B, F)` to outputs `(B, K)`, as `fit_vote` makes it.

    Outputs are logits of classes or of labels, or values in the target's own units. `weight` and `bias` are for
    features as they were given: standardization and temperature are folded in, so that an `nn.Linear` can take
    ``weight.T`` and ``bias``.
    """

    weight: Tensor
    """`(F, K)`; 0 for features that are constant."""
    bias: Tensor
    """`(K,)`."""
    strength: float
    """Of the ridge, one of `STRENGTHS`, relative to the mean eigenvalue of the features' Gram matrix."""
    held_out: Tensor
    """`(N, K)`: the outputs for each training row by a fit that saw neither it nor, with groups, its fold of groups."""

    def __call__(self, features: Tensor) -> Tensor:
        """Outputs `(B, K)` for features `(B, F)`, in the dtype of the weight."""
        return features.to(self.weight.dtype) @ self.weight + self.bias


@torch.no_grad()
def fit_vote(
    features: Tensor,
    target: Tensor,
    kind: Kind,
    *,
    outputs: int,
    row_weights: Tensor | None = None,
    groups: Tensor | None = None,
) -> Vote:
    """Fits a ridge regression of the target on standardized features and chooses its strength on rows held out.

    For classes and labels the regression aims at 0 and 1; its outputs become logits by a factor (an inverse
    temperature; one per label) and offsets, those with the least log loss of the held-out outputs. The strength, one
    for all outputs, has the least held-out loss: this log loss, for values the squared error.

    All held-out outputs come from one eigendecomposition, of the Gram matrix of the features or, where those are more,
    of the rows; with groups, of one more for each fold. Leaving one row out is exact (PRESS; Allen 1974,
    doi:10.1080/00401706.1974.10489157). Held out are the coefficients and the intercept; the features' scales, the
    strength, the factor and the offsets are those of all rows. Computed in float64, where the features are; memory:
    two copies of the features in float64, with groups three.

    The time goes with the cube of the smaller of rows and features. Where both are more than 4,096, the fit takes so
    many mixtures of the standardized features: each feature is in one of them, with a random sign, always the same.
    What is held out is exact for that fit. A line says so, or how long it will take if that is more than some seconds.

    Args:
        features: `(N, F)`, finite; at least two rows. Constant ones count for nothing.
        target: Classes `(N,)`, integers from 0 to ``outputs - 1``, of which some may be absent; labels `(N, K)` of 0
            and 1; values `(N, K)`, or `(N,)` for one output. Values are fitted in units of their standard deviations.
        kind: ``classes``, ``labels`` or ``values``.
        outputs: K, the number of classes, labels or values.
        row_weights: `(N,)`, how much each row's error counts, 0 or more, such as the weights of classes; only
            their ratios matter. Default: all the same.
        groups: `(N,)` integers. Rows with the same number, such as those of one patient, are held out together: the
            groups are dealt into at most 10 folds of similar size. Default: each row is held out alone.

    Returns:
        The map, with outputs in the features' dtype (float32 unless they are float64), on their device.

    Raises:
        ConfigError: If shapes, classes, labels or weights are impossible, a number is not finite, or fewer than two
            rows or groups have a weight.
    """
    check_number(outputs, "outputs", low=1)
    _check_features(features, len(target))
    weights = relative_weights(row_weights, features)
    goal = encode(target, kind, outputs).to(features.device)
    folds = None if groups is None else _folds(groups.to(features.device), len(features))
    _check_left_out(weights, folds)
    _announce(features, 1 if folds is None else 1 + len(torch.unique(folds)))
    middle, unit = goal.new_zeros(1), goal.new_ones(1)
    if kind == "values":
        goal, middle, unit = standardize(goal, weights)

    spectrum = principal_scores(features, weights)
    held_out = leave_one_out(spectrum, goal) if folds is None else leave_folds_out(spectrum, goal, folds)
    strength, raw, link = _choose(held_out, spectrum.unit, lambda raw: _LINKS[kind](raw, goal, weights))
    weight, bias = coefficients(spectrum, goal, strength * spectrum.unit)
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return Vote(
        weight=(weight * link.factor * unit).to(dtype),
        bias=(link(bias) * unit + middle).to(dtype),
        strength=strength,
        held_out=(link(raw) * unit + middle).to(dtype),
    )


def _announce(features: Tensor, decompositions: int) -> None:
    """Prints a line if the fit to features `(N, F)` takes long, or is one to mixtures of them."""
    rows, columns = features.shape
    size = min(rows, columns, MOST_DIRECTIONS)
    is_mixed = min(rows, columns) > MOST_DIRECTIONS
    width = size if is_mixed else columns
    # the Gram matrix and the scores are a product each
    products = 2 * rows * width * size
    seconds = decompositions * _SECONDS * (size / MOST_DIRECTIONS) ** 3 + products / _PRODUCTS
    lines = []
    if is_mixed:
        lines.append(f"the features are mixed at random into {size:,}, because an exact fit would take too long")
    if seconds > _NOTICEABLE:
        lines.append(f"about {seconds:.0f} s on one core")
    if lines:
        print(f"closed form on {rows:,} rows x {columns:,} features: {'; '.join(lines)}", flush=True)


def _choose(held_out: HeldOut, unit: float, calibrate: Callable[[Tensor], Link]) -> tuple[float, Tensor, Link]:
    """The strength whose held-out outputs have the least loss once calibrated, these outputs, and their link."""
    raw = held_out(STRENGTHS[0] * unit)
    best = (STRENGTHS[0], raw, calibrate(raw))
    for strength in STRENGTHS[1:]:
        raw = held_out(strength * unit)
        link = calibrate(raw)
        if link.loss < best[2].loss - _TIE:
            best = (strength, raw, link)
    return best


def _value_link(raw: Tensor, goal: Tensor, weights: Tensor) -> Link:
    """Values as they are, with their squared error."""
    same = raw.new_ones(1)
    loss = weights @ (raw - goal).square().sum(1) / weights.sum()
    return Link(same, 0 * same, float(loss))


_LINKS = {"classes": class_link, "labels": label_link, "values": _value_link}


def _folds(groups: Tensor, rows: int) -> Tensor:
    """Fold `(N,)` of each row: the groups, largest first, are each put into the fold with the fewest rows so far."""
    with at("groups"):
        if groups.shape != (rows,):
            raise ConfigError(f"the shape {tuple(groups.shape)} is not ({rows},), a group for each row.")
    _, member, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    filled = [0] * min(_FOLDS, len(sizes))
    fold_of_group = torch.zeros_like(sizes)
    for group in sizes.argsort(descending=True, stable=True).tolist():
        fold = filled.index(min(filled))
        filled[fold] += int(sizes[group])
        fold_of_group[group] = fold
    return fold_of_group[member]


def _check_features(features: Tensor, rows: int) -> None:
    """Raises `ConfigError` unless the features are a finite matrix with as many rows as the target."""
    with at("features"):
        if features.ndim != 2 or 0 in features.shape:
            raise ConfigError(f"the shape {tuple(features.shape)} is not (rows, features), both at least 1.")
        if len(features) != rows:
            raise ConfigError(f"there are {len(features)} rows of features, but {rows} of the target.")
        is_finite = features.isfinite()
        if not is_finite.all():
            columns = (~is_finite).any(0).nonzero()[:, 0].tolist()
            count = int((~is_finite).any(1).sum())
            raise ConfigError(
                f"{count} of {rows} rows have values that are not finite, in the columns {listing(map(str, columns))} "
                f"(counted from 0). Leave these rows out, or find what makes the part's features so."
            )


def _check_left_out(weights: Tensor, folds: Tensor | None) -> None:
    """Raises `ConfigError` if nothing with a weight remains when a row, or a fold of groups, is held out."""
    what = "row" if folds is None else "group"
    held = torch.arange(len(weights), device=weights.device) if folds is None else folds
    if len(torch.unique(held[weights > 0])) < 2:
        raise ConfigError(f"only one {what} has a weight, so none can be held out. At least two {what}s are needed.")
