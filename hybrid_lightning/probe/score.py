"""How good outputs are, with a standard error, and the difference of two voters, paired."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.probe.targets import Kind, encode, moments, relative_weights

_NAMES = {"classes": "accuracy", "labels": "accuracy", "values": "r2"}


@dataclass(frozen=True)
class Score:
    """A score, or the difference of two, with its uncertainty."""

    name: str
    """``accuracy``, of labels the mean over labels, or ``r2``, the mean over outputs."""
    value: float
    """In accuracy 0 to 1; R² is 1 at best and 0 for the mean of the target. Higher is better."""
    error: float
    """One standard error: by how much the value would vary between sets of as many rows (or groups)."""


@torch.no_grad()
def score(
    outputs: Tensor,
    target: Tensor,
    kind: Kind,
    row_weights: Tensor | None = None,
    groups: Tensor | None = None,
) -> Score:
    """The score of outputs such as `Vote.held_out`.

    Args:
        outputs: `(N, K)` logits of classes or labels, or values.
        target: As for `fit_vote`. R² leaves out values that are constant.
        kind: ``classes``, ``labels`` or ``values``.
        row_weights: `(N,)`, how much each row counts; only the ratios matter. Default: all the same.
        groups: `(N,)` integers; the error is then that of groups drawn, not of rows. Default: rows are independent.

    Returns:
        Accuracy or R² with its error, that of R² by the infinitesimal jackknife (Efron 1982,
        doi:10.1137/1.9781611970319). With fewer than two rows or groups the error is nan.
    """
    weights = relative_weights(row_weights, outputs)
    rows = _row_scores(outputs, target, kind, weights)
    return mean_with_error(rows, weights, groups, _NAMES[kind])


@torch.no_grad()
def paired_difference(
    first: Tensor,
    second: Tensor,
    target: Tensor,
    kind: Kind,
    row_weights: Tensor | None = None,
    groups: Tensor | None = None,
) -> Score:
    """The score of `first` minus that of `second`, on the same rows, and the error of this difference.

    Rows that are hard for both do not enter it, so it is smaller than the errors of the two scores. For the arguments
    see `score`.
    """
    weights = relative_weights(row_weights, first)
    of_first = _row_scores(first, target, kind, weights)
    of_second = _row_scores(second, target, kind, weights)
    return mean_with_error(of_first - of_second, weights, groups, _NAMES[kind])


def _row_scores(
    outputs: Tensor,
    target: Tensor,
    kind: Kind,
    weights: Tensor,
) -> Tensor:
    """A number for each row, `(N,)`, whose weighted mean is the score and whose scatter gives its error."""
    check_outputs(outputs, target)
    goal = encode(target, kind, outputs.shape[1]).to(outputs.device)
    if kind == "classes":
        is_right = outputs.argmax(1) == goal.argmax(1)
        return is_right.double()
    if kind == "labels":
        is_right = (outputs > 0) == (goal > 0)
        return is_right.double().mean(1)
    middle, deviation = moments(goal, weights)
    varies = deviation > 0
    if not varies.any():
        raise ConfigError("all values of the target are the same, so there is no R².", "target")
    variance = deviation[varies].square()
    spread = (goal - middle)[:, varies].square()
    error = (outputs.double() - goal)[:, varies].square()
    mean_error = weights @ error / weights.sum()
    r2 = 1 - mean_error / variance
    # to first order what R² changes by when a row gets more weight; the mean over rows is R² itself
    influence = (1 - r2) * spread - error
    rows = r2 + influence / variance
    return rows.mean(1)


def mean_with_error(
    rows: Tensor,
    weights: Tensor,
    groups: Tensor | None,
    name: str,
) -> Score:
    """The weighted mean of `(N,)` numbers and its standard error, groups of rows taken as one draw each."""
    value = weights @ rows / weights.sum()
    parts = weights * (rows - value)
    if groups is not None:
        _, member = torch.unique(groups.to(rows.device), return_inverse=True)
        count = int(member.max()) + 1
        parts = parts.new_zeros(count).index_add(0, member, parts)
        weights = weights.new_zeros(count).index_add(0, member, weights)
    draws = int((weights > 0).sum())
    error = torch.nan
    if draws > 1:
        variance = parts.square().sum() * draws / (draws - 1)
        error = float(variance.sqrt() / weights.sum())
    return Score(name, float(value), error)


def log_likelihood(outputs: Tensor, target: Tensor, kind: Kind) -> Tensor:
    """Logarithms of the probabilities given to what is true: `(N, 1)` for classes, `(N, K)` for labels, in float64."""
    check_outputs(outputs, target)
    goal = encode(target, kind, outputs.shape[1]).to(outputs.device)
    logits = outputs.double()
    if kind == "classes":
        return logits.log_softmax(1).gather(1, goal.argmax(1, keepdim=True))
    of_the_truth = torch.where(goal > 0, logits, -logits)
    return functional.logsigmoid(of_the_truth)


def check_outputs(outputs: Tensor, target: Tensor) -> None:
    """Raises `ConfigError` unless the outputs are a finite matrix with as many rows as the target."""
    if outputs.ndim != 2 or len(outputs) != len(target):
        raise ConfigError(
            f"the shape {tuple(outputs.shape)} is not ({len(target)}, outputs), a row for each of the target.",
            "outputs",
        )
    if not outputs.isfinite().all():
        is_bad = ~outputs.isfinite()
        count = int(is_bad.any(1).sum())
        raise ConfigError(f"{count} of {len(outputs)} rows are not finite. Leave them out.", "outputs")
