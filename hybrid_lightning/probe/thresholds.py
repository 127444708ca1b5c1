"""From which probability on a label is given, chosen for a metric on rows that were held out."""

import torch
from torch import Tensor

from hybrid_lightning.errors import check_choice

METRICS = ("accuracy", "balanced_accuracy", "f1", "macro_f1")
"""What a threshold may be chosen for: the share of right decisions; the mean of the shares of the given and of the
others that are right; F1 of the label; and the mean of F1 of the label and of its absence."""
_TIE = 1e-12
_FEWEST = 10  # rows with the label, and rows without it, below which a threshold would be chance


@torch.no_grad()
def best_thresholds(probabilities: Tensor, labels: Tensor, metric: str) -> list[float]:
    """For each label the threshold with the best value of a metric; decisions are ``probability > threshold``.

    It lies midway between two probabilities that occur, and of equals nearest to 0.5. A label with fewer than 10 rows
    that have it, or that lack it, keeps 0.5.

    Args:
        probabilities: `(N, labels)`, 0 to 1.
        labels: `(N, labels)` of 0 and 1.
        metric: One of `METRICS`.
    """
    check_choice(metric, "threshold", METRICS, "metric")
    found = []
    for own, is_given in zip(probabilities.double().T, labels.T > 0, strict=True):
        count = int(is_given.sum())
        is_known = min(count, len(own) - count) >= _FEWEST
        found.append(_best(own, is_given, metric) if is_known else 0.5)
    return found


def _best(probability: Tensor, is_given: Tensor, metric: str) -> float:
    """The threshold of one label from `(N,)` probabilities; rows above it are decided for it."""
    ends = torch.tensor([0.0, 1.0], dtype=probability.dtype)
    values = torch.unique(torch.cat([ends, probability]))
    between = (values[1:] + values[:-1]) / 2
    thresholds = torch.cat([between, ends.mean()[None]])
    scores = threshold_scores(probability, is_given, thresholds, metric)
    best = thresholds[scores >= scores.max() - _TIE]
    nearest = (best - 0.5).abs().argmin()
    return float(best[nearest])


def threshold_scores(probability: Tensor, is_given: Tensor, thresholds: Tensor, metric: str) -> Tensor:
    """The metric `(T,)` of decisions by thresholds `(T,)`, for `(N,)` probabilities of which some have the label."""
    given = probability[is_given].sort().values
    others = probability[~is_given].sort().values
    missed = torch.searchsorted(given, thresholds, right=True)
    rejected = torch.searchsorted(others, thresholds, right=True)
    hits = len(given) - missed
    false = len(others) - rejected
    if metric == "accuracy":
        return (hits + rejected) / len(probability)
    if metric == "balanced_accuracy":
        return (hits / len(given) + rejected / len(others)) / 2
    f1 = 2 * hits / (2 * hits + false + missed)
    if metric == "f1":
        return f1
    f1_of_absence = 2 * rejected / (2 * rejected + false + missed)
    return (f1 + f1_of_absence) / 2
