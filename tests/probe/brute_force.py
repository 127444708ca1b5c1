"""Ridge regression by the normal equations of one set of rows, for comparison."""

import torch
from torch import Tensor


def refit(features: Tensor, goal: Tensor, weights: Tensor, penalty: float, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight `(F, K)` and bias `(K,)` with the least ``weights × squared error + penalty × |weight × scale|²``."""
    rows = torch.cat([features / scale, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    penalties = torch.full((rows.shape[1],), penalty, dtype=rows.dtype)
    penalties[-1] = 0
    gram = rows.T @ (weights[:, None] * rows) + torch.diag(penalties)
    found = torch.linalg.solve(gram, rows.T @ (weights[:, None] * goal))
    return found[:-1] / scale[:, None], found[-1]


def refits(features: Tensor, goal: Tensor, weights: Tensor, penalty: float, held: Tensor) -> Tensor:
    """Outputs `(N, K)` for each row by an explicit fit to all rows with another number in `held` `(N,)`."""
    center = weights @ features / weights.sum()
    scale = (weights @ (features - center).square() / weights.sum()).sqrt()
    outputs = torch.empty_like(goal)
    for number in held.unique():
        others = held != number
        weight, bias = refit(features[others], goal[others], weights[others], penalty, scale)
        outputs[~others] = features[~others] @ weight + bias
    return outputs
