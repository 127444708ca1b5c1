"""From outputs of a linear fit to logits: a factor (an inverse temperature) and offsets with the least log loss."""

from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 100
_CONVERGED = 1e-12  # nats per row
_FLAT = 1e-9  # added to the curvature: adding a number to all offsets changes nothing


class Link(NamedTuple):
    """What turns the outputs `(N, K)` of a fit into those of a vote: ``raw * factor + offset``."""

    factor: Tensor  # (K,) or (1,)
    offset: Tensor  # (K,)
    loss: float  # per row, of held-out outputs so changed

    def __call__(self, raw: Tensor) -> Tensor:
        """Outputs `(N, K)` of the vote."""
        return raw * self.factor + self.offset


def class_link(raw: Tensor, goal: Tensor, weights: Tensor) -> Link:
    """Logits of classes from held-out outputs `(N, K)`: one factor and an offset for each class; `goal` is one-hot.

    The factor is not negative. Leave-one-out outputs of features that say nothing are *against* the target, because
    the mean of the others moves away from each row; turned around they would look perfect.
    """
    goal = _softened(goal)
    weights = weights / weights.sum()
    unit = raw.std().clamp(min=1e-30)
    factor, offset, loss = _newton(raw / unit, goal, weights)
    if factor < 0:
        # the problem is convex, so the best under the bound lies on it: logits that are the same for all rows
        frequency = weights @ goal
        factor, offset = torch.zeros_like(factor), frequency.log()
        loss = -frequency @ offset
    return Link((factor / unit)[None], offset, float(loss))


def label_link(raw: Tensor, goal: Tensor, weights: Tensor) -> Link:
    """Logits of labels from held-out outputs `(N, K)`: a factor and an offset for each; `goal` holds 0 and 1."""
    links = []
    for label in range(raw.shape[1]):
        own, is_given = raw[:, label], goal[:, label]
        # two classes, without the label and with it
        output = torch.stack([torch.zeros_like(own), own], 1)
        choice = torch.stack([1 - is_given, is_given], 1)
        links.append(class_link(output, choice, weights))
    factors = torch.cat([link.factor for link in links])
    offsets = torch.stack([link.offset[1] - link.offset[0] for link in links])
    return Link(factors, offsets, sum(link.loss for link in links))


def _softened(goal: Tensor) -> Tensor:
    """Shares `(N, K)` of classes, mixed with one row that is equally of every class (after Platt, 1999).

    Without it a perfect separation would ask for an infinite factor, and an absent class for the logit -inf.
    """
    rows, classes = goal.shape
    return (rows * goal + 1 / classes) / (rows + 1)


def _newton(raw: Tensor, goal: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor (a scalar) and offsets `(K,)` with the least weighted cross-entropy, and this loss, by Newton's method."""
    found = raw.new_zeros(1 + raw.shape[1])
    loss = _cross_entropy(found, raw, goal, weights)
    for _ in range(_STEPS):
        gradient, curvature = _derivatives(found, raw, goal, weights)
        curvature.diagonal().add_(_FLAT)
        step = torch.linalg.solve(curvature, gradient)
        decrease = float(gradient @ step)
        if decrease < _CONVERGED:
            break
        size = 1.0
        new_loss = _cross_entropy(found - step, raw, goal, weights)
        while new_loss > loss - 0.25 * size * decrease and size > 1e-6:
            size /= 2
            new_loss = _cross_entropy(found - size * step, raw, goal, weights)
        found, loss = found - size * step, new_loss
    return found[0], found[1:], loss


def _cross_entropy(found: Tensor, raw: Tensor, goal: Tensor, weights: Tensor) -> Tensor:
    """The mean over rows of the cross-entropy, a scalar; `found` is the factor, then the offsets."""
    logits = raw * found[0] + found[1:]
    return -weights @ (goal * logits.log_softmax(1)).sum(1)


def _derivatives(
    found: Tensor,
    raw: Tensor,
    goal: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradient `(1 + K,)` and matrix of second derivatives of the cross-entropy by factor and offsets."""
    share = (raw * found[0] + found[1:]).softmax(1)
    error = weights[:, None] * (share - goal)
    gradient = torch.cat([(error * raw).sum()[None], error.sum(0)])
    weighted = weights[:, None] * share
    around = raw - (share * raw).sum(1, keepdim=True)
    mixed = (weighted * around).sum(0)
    curvature = raw.new_empty(len(found), len(found))
    curvature[0, 0] = (weighted * around.square()).sum()
    curvature[0, 1:] = mixed
    curvature[1:, 0] = mixed
    curvature[1:, 1:] = torch.diag(weighted.sum(0)) - share.T @ weighted
    return gradient, curvature
