"""Ridge regression for every strength, with exact held-out outputs, from one eigendecomposition.

The squared error of each row is weighted; the intercept is free. Features are standardized once, with all rows:
what is held out is held out of the coefficients and the intercept, not of the features' scales.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_DIRECTIONS = 4096
"""Of the features, at most: the time of a decomposition goes with its cube, 22 s on one core for so many."""
_ROWS = 8192  # at a time, where a whole `(N, R)` temporary would be as large as the features
_NEGLIGIBLE = 1e-12  # of the largest eigenvalue; below, directions are rounding error
_ROUNDING = {torch.float64: 1e-14}  # of the largest value of a feature, by dtype; 1e-6 of others, as for float32

HeldOut = Callable[[float], Tensor]
"""Penalty → outputs `(N, K)` for each row, by a fit that did not see it."""


@dataclass(frozen=True)
class PrincipalScores:
    """Standardized features in the directions in which they vary, R of them, at most as many as rows or features."""

    mean: Tensor  # (F,), of the features, weighted
    scale: Tensor  # (F,), their standard deviations; infinite for constant features, which so become 0
    directions: Tensor  # (F, R), orthonormal unless features were mixed
    scores: Tensor  # (N, R), the standardized features along the directions
    variances: Tensor  # (R,), weighted sums of squared scores: the eigenvalues
    weights: Tensor  # (N,), of the rows, with the mean 1

    @property
    def unit(self) -> float:
        """The mean of the eigenvalues, in which penalties can be stated whatever the numbers of rows and features."""
        return float(self.variances.mean()) if len(self.variances) else 1.0


def principal_scores(features: Tensor, weights: Tensor) -> PrincipalScores:
    """Decomposes features `(N, F)` whose rows have weights `(N,)`; holds about two copies of them in float64.

    Where rows and features are both more than `MOST_DIRECTIONS`, it decomposes so many random mixtures of the features.
    """
    rows = features.to(torch.float64, copy=True)
    total = weights.sum()
    mean = weights @ rows / total
    rows -= mean
    variance = weights @ rows.square() / total
    scale = variance.sqrt()
    # the spread of a constant feature is the rounding error of its values, not always exactly 0
    rounding = _ROUNDING.get(features.dtype, 1e-6)
    largest = features.abs().amax(0)
    is_constant = scale <= rounding * largest
    scale[is_constant] = torch.inf
    rows /= scale
    is_mixed = min(rows.shape) > MOST_DIRECTIONS
    if is_mixed:
        mixture, sign = _mixtures(rows.shape[1])
        mixture, sign = mixture.to(rows.device), sign.to(rows.device)
        rows *= sign
        mixed = rows.new_zeros(len(rows), MOST_DIRECTIONS)
        rows = mixed.index_add_(1, mixture, rows)
    variances, directions = _eigenvectors(rows, weights)
    scores = rows @ directions
    if is_mixed:
        directions = sign[:, None] * directions[mixture]
    return PrincipalScores(mean, scale, directions, scores, variances, weights)


def _mixtures(features: int) -> tuple[Tensor, Tensor]:
    """For each feature the mixture that it goes into and its sign there, `(F,)` each, always drawn alike.

    A sketch by counts (Charikar, Chen and Farach-Colton 2004, doi:10.1016/S0304-3975(03)00400-6), of equal shares.
    """
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randperm(features, generator=generator) % MOST_DIRECTIONS
    sign = 2.0 * torch.randint(2, (features,), generator=generator, dtype=torch.float64) - 1
    return mixture, sign


def _eigenvectors(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues `(R,)` and eigenvectors `(F, R)` of the features' weighted Gram matrix, without empty directions.

    Where there are more features than rows, they follow from the Gram matrix of the rows, the dual form.
    """
    is_dual = rows.shape[1] > len(rows)
    if is_dual:
        weighted = weights.sqrt()[:, None] * rows
        gram = weighted @ weighted.T
    else:
        gram = rows.T @ (weights[:, None] * rows)
    values, vectors = torch.linalg.eigh(gram)
    largest = values[-1].clamp(min=0)  # in ascending order
    kept = values > _NEGLIGIBLE * largest
    values = values[kept]
    vectors = vectors[:, kept]
    if is_dual:
        vectors = weighted.T @ vectors / values.sqrt()
    return values, vectors


def leave_one_out(spectrum: PrincipalScores, goal: Tensor) -> HeldOut:
    """Outputs for each row by the fit to all others, exactly, without refitting; `goal` is `(N, K)`.

    A linear fit with the leverage h of a row has ``(output - h × goal) / (1 - h)`` for it without it.
    """
    weights = spectrum.weights
    scores = spectrum.scores
    share = weights / weights.sum()
    middle = share @ goal
    centered = weights[:, None] * (goal - middle)
    product = scores.T @ centered

    def held_out(penalty: float) -> Tensor:
        damping = spectrum.variances + penalty
        by_direction = product / damping[:, None]
        fitted = middle + scores @ by_direction
        inverse = 1 / damping
        parts = []
        for chunk in torch.split(scores, _ROWS):
            lengths = chunk.square() @ inverse
            parts.append(lengths)
        # the first term is the leverage of the intercept
        leverage = share + weights * torch.cat(parts)
        leverage = leverage[:, None]
        without = fitted - leverage * goal
        return without / (1 - leverage)

    return held_out


def leave_folds_out(spectrum: PrincipalScores, goal: Tensor, folds: Tensor) -> HeldOut:
    """Outputs for each row by the fit to all rows of other folds, exactly; `goal` is `(N, K)`, `folds` `(N,)` int."""
    parts = []
    for fold in torch.unique(folds):
        inside = (folds == fold).nonzero()[:, 0]
        others = _without(spectrum, goal, inside)
        parts.append((inside, others))

    def held_out(penalty: float) -> Tensor:
        outputs = torch.empty_like(goal)
        for inside, (rows, variances, product, middle) in parts:
            damping = (variances + penalty)[:, None]
            outputs[inside] = middle + rows @ (product / damping)
        return outputs

    return held_out


def _without(spectrum: PrincipalScores, goal: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fit to all rows but those `inside`, for any penalty p: ``middle + rows @ (product / (variances + p))``.

    Taken from the sums over all rows by subtraction, so that the other rows are not read again.
    """
    weights = spectrum.weights
    scores = spectrum.scores
    own_scores = scores[inside]
    own_weights = weights[inside]
    weighted_goal = weights[:, None] * goal
    own_goal = weighted_goal[inside]
    weighted_scores = own_weights[:, None] * own_scores

    total = weights.sum() - own_weights.sum()
    sum_of_scores = weights @ scores - weighted_scores.sum(0)
    center = sum_of_scores / total
    sum_of_goal = weighted_goal.sum(0) - own_goal.sum(0)
    middle = sum_of_goal / total
    gram = torch.diag(spectrum.variances) - own_scores.T @ weighted_scores
    gram -= total * torch.outer(center, center)
    product = scores.T @ weighted_goal - own_scores.T @ own_goal
    product -= total * torch.outer(center, middle)

    variances, vectors = torch.linalg.eigh(gram)
    # where the other rows do not vary, rounding may leave a negative number larger than a small penalty
    variances = variances.clamp(min=0)
    rows = (own_scores - center) @ vectors
    product = vectors.T @ product
    return rows, variances, product, middle


def coefficients(spectrum: PrincipalScores, goal: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight `(F, K)` and bias `(K,)` for features as they were given, not standardized, from all rows."""
    weights = spectrum.weights
    middle = weights @ goal / weights.sum()
    centered = weights[:, None] * (goal - middle)
    product = spectrum.scores.T @ centered
    damping = (spectrum.variances + penalty)[:, None]
    standardized = spectrum.directions @ (product / damping)
    weight = standardized / spectrum.scale[:, None]
    bias = middle - spectrum.mean @ weight
    return weight, bias
