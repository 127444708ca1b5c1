"""Convex problems over weights that are not negative and sum to 1, for few weights, solved exactly."""

import torch
from torch import Tensor

_STEPS = 200
_CONVERGED = 1e-10  # what the loss can still fall by


def least_squares(gram: Tensor) -> Tensor:
    """Weights a `(M,)` with the least ``aᵀ gram a``, for a positive semidefinite `gram` `(M, M)`.

    Where several do, the ones nearest to equal weights.
    """
    equal = 1 / len(gram)
    start = torch.full_like(gram[0], equal)
    slope = gram @ start
    return _quadratic(gram, slope, start)


def best_mixture(likelihoods: Tensor, row_weights: Tensor) -> Tensor:
    """Weights a `(M,)` with the highest mean of ``log(likelihoods @ a)`` over rows.

    `likelihoods` `(R, M)` are not negative, with a positive one in each row. Newton's method: each step solves the
    quadratic problem at hand on the simplex and is shortened until the loss falls. It ends when the duality gap,
    the most that the loss can be above its minimum, is below 1e-10.
    """
    weights = row_weights / row_weights.sum()
    equal = 1 / likelihoods.shape[1]
    found = torch.full_like(likelihoods[0], equal)
    for _ in range(_STEPS):
        mixed = likelihoods @ found
        relative = likelihoods / mixed[:, None]
        slope = -weights @ relative
        if -1 - slope.min() < _CONVERGED:  # the slope times the weights is always -1
            break
        weighted = weights[:, None] * relative
        curvature = relative.T @ weighted
        aim = _quadratic(curvature, slope, found)
        step = aim - found
        change = likelihoods @ step
        size = _step_size(mixed, change, weights)
        found = found + size * step
    return found


def _step_size(mixed: Tensor, change: Tensor, weights: Tensor) -> float:
    """The largest of 1, 1/2, 1/4, ... at which ``mean(log(mixed + size × change))`` has risen enough."""
    relative = change / mixed
    slope = float(weights @ relative)
    size = 1.0
    while float(weights @ torch.log1p(size * relative)) < 0.25 * size * slope and size > 1e-9:
        size /= 2
    return size


def _quadratic(curvature: Tensor, slope: Tensor, start: Tensor) -> Tensor:
    """The weights with the least ``slope · d + dᵀ curvature d / 2``, d their distance from `start`.

    An active-set method (as Lawson and Hanson's for non-negative least squares, doi:10.1137/1.9781611971217): weights
    at 0 are freed one by one, the one whose growth helps most first; those that would become negative return to 0.
    """
    # a little more curvature along each weight, so that equal voters share theirs
    diagonal = curvature.diagonal()
    extra = 1e-10 * diagonal.clamp(min=1e-30)
    curvature = curvature + torch.diag(extra)
    linear = slope - curvature @ start
    found = start.clone()
    free = found > 0
    for _ in range(10 * len(start) + 10):
        aim = _on_face(curvature, linear, free)
        if (aim[free] > 0).all():
            found = aim
            gain = -(curvature @ found + linear)
            # at the minimum all free weights have the same gain, and no other has a higher one
            common = gain[free].mean()
            excess = torch.where(free, -torch.inf, gain - common)
            rounding = 1e-12 * gain.abs().max()
            if excess.max() <= rounding:
                break
            best = excess.argmax()
            free[best] = True
        else:
            found, free = _to_boundary(found, aim, free)
    found = found.clamp(min=0)
    return found / found.sum()


def _on_face(curvature: Tensor, linear: Tensor, free: Tensor) -> Tensor:
    """The minimum `(M,)` over weights that sum to 1, of which only the free ones are not 0; they may be negative."""
    size = int(free.sum())
    system = curvature.new_zeros(size + 1, size + 1)
    system[:size, :size] = curvature[free][:, free]
    unit = curvature.diagonal()[free].mean()  # of the sum, which has to be 1, so that all entries are of one size
    system[:size, size] = unit
    system[size, :size] = unit
    right = torch.cat([-linear[free], unit[None]])
    aim = torch.zeros_like(linear)
    solution = torch.linalg.solve(system, right)
    aim[free] = solution[:size]
    return aim


def _to_boundary(found: Tensor, aim: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """As far from `found` towards `aim` as no weight is negative; those that have reached 0 are no longer free."""
    shrinks = free & (aim <= 0)
    until_zero = found / (found - aim)
    room = torch.where(shrinks, until_zero, torch.inf)
    least = room.min()
    moved = found + least * (aim - found)
    is_at_zero = shrinks & (room <= least)
    free = free & ~is_at_zero
    moved = torch.where(free, moved, 0.0)
    return moved, free
