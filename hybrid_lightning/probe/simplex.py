"""Convex problems over weights that are not negative and sum to 1, for few weights, solved exactly."""

import torch
from torch import Tensor

_STEPS = 200
_CONVERGED = 1e-10  # what the loss can still fall by


def least_squares(gram: Tensor) -> Tensor:
    """Weights a `(M,)` with the least ``aᵀ gram a``, for a positive semidefinite `gram` `(M, M)`.

    Where several do, the ones nearest to equal weights.
    """
    start = torch.full_like(gram[0], 1 / len(gram))
    return _quadratic(gram, gram @ start, start)


def best_mixture(likelihoods: Tensor, row_weights: Tensor) -> Tensor:
    """Weights a `(M,)` with the highest mean of ``log(likelihoods @ a)`` over rows.

    `likelihoods` `(R, M)` are not negative, with a positive one in each row. Newton's method: each step solves the
    quadratic problem at hand on the simplex and is shortened until the loss falls. It ends when the duality gap,
    the most that the loss can be above its minimum, is below 1e-10.
    """
    weights = row_weights / row_weights.sum()
    found = torch.full_like(likelihoods[0], 1 / likelihoods.shape[1])
    for _ in range(_STEPS):
        relative = likelihoods / (likelihoods @ found)[:, None]
        slope = -weights @ relative
        if -1 - slope.min() < _CONVERGED:  # the slope times the weights is always -1
            break
        curvature = relative.T @ (weights[:, None] * relative)
        step = _quadratic(curvature, slope, found) - found
        found = found + _step_size(likelihoods @ found, likelihoods @ step, weights) * step
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
    extra = 1e-10 * curvature.diagonal().clamp(min=1e-30)
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
            excess = torch.where(free, -torch.inf, gain - gain[free].mean())
            if excess.max() <= 1e-12 * gain.abs().max():
                break
            free[excess.argmax()] = True
        else:
            found, free = _to_boundary(found, aim, free)
    return found.clamp(min=0) / found.clamp(min=0).sum()


def _on_face(curvature: Tensor, linear: Tensor, free: Tensor) -> Tensor:
    """The minimum `(M,)` over weights that sum to 1, of which only the free ones are not 0; they may be negative."""
    size = int(free.sum())
    system = curvature.new_zeros(size + 1, size + 1)
    system[:size, :size] = curvature[free][:, free]
    unit = curvature.diagonal()[free].mean()  # of the sum, which has to be 1, so that all entries are of one size
    system[:size, size] = system[size, :size] = unit
    right = torch.cat([-linear[free], unit[None]])
    aim = torch.zeros_like(linear)
    aim[free] = torch.linalg.solve(system, right)[:size]
    return aim


def _to_boundary(found: Tensor, aim: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """As far from `found` towards `aim` as no weight is negative; those that have reached 0 are no longer free."""
    shrinks = free & (aim <= 0)
    room = torch.where(shrinks, found / (found - aim), torch.inf)
    moved = found + room.min() * (aim - found)
    free = free & ~(shrinks & (room <= room.min()))
    return torch.where(free, moved, 0.0), free
