"""How well outputs rank rows, with a standard error by bootstrap, and the difference of two, paired."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid_lightning.probe.score import Score, check_outputs
from hybrid_lightning.probe.targets import Kind, encode, numbered

_DRAWS = 1000
_AT_ONCE = 100


class Ranking(NamedTuple):
    """A score, and what it is in bootstrap draws of the rows."""

    score: Score
    drawn: Tensor
    """`(draws,)`; nan where no class occurs in the draw."""


@torch.no_grad()
def average_precision(
    outputs: Tensor,
    target: Tensor,
    kind: Kind,
    groups: Tensor | None = None,
) -> Ranking:
    """The mean average precision of the classes or labels that occur, with 1,000 bootstrap draws.

    The draws are the same for all outputs of as many rows, so that differences are paired.

    Args:
        outputs: `(N, K)` logits.
        target: Classes `(N,)` or labels `(N, K)`.
        kind: ``classes`` or ``labels``.
        groups: `(N,)` integers; whole groups are drawn. Default: rows.

    Returns:
        The score, and its value in each of the draws `(draws,)`; nan where none of the classes occurs.
    """
    check_outputs(outputs, target)
    goal = encode(target, kind, outputs.shape[1])
    scores = outputs.double().log_softmax(1) if kind == "classes" else outputs.double()
    rows = torch.ones(1, len(scores), dtype=torch.float64)
    value = float(mean_over_classes(scores, goal, rows))
    drawn = [mean_over_classes(scores, goal, counts) for counts in _draws(len(scores), groups)]
    values = torch.cat(drawn)
    return Ranking(Score("average_precision", value, _spread(values)), values)


def paired_ranking(first: Ranking, second: Ranking) -> Score:
    """The score of the first minus that of the second, both on the same rows."""
    difference = first.score.value - second.score.value
    return Score(first.score.name, difference, _spread(first.drawn - second.drawn))


def _spread(values: Tensor) -> float:
    known = values[values.isfinite()]
    return float(known.std()) if len(known) > 1 else torch.nan


def _draws(rows: int, groups: Tensor | None) -> Iterator[Tensor]:
    """How often each row is in each draw, `(draws, rows)` in pieces."""
    member = numbered(rows, groups)
    count = int(member.max()) + 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(_DRAWS // _AT_ONCE):
        chosen = torch.randint(count, (_AT_ONCE, count), generator=generator)
        times = torch.zeros(_AT_ONCE, count, dtype=torch.float64)
        times.scatter_add_(1, chosen, torch.ones_like(times))
        yield times[:, member]


def mean_over_classes(scores: Tensor, goal: Tensor, counts: Tensor) -> Tensor:
    """The mean average precision `(draws,)` over the columns of `scores` `(N, K)` that occur in the draw; nan for none.

    A row is a hit where `goal` `(N, K)` is above 0, and counts as often as `counts` `(draws, N)` says.
    """
    by_class = zip(scores.T, goal.T > 0, strict=True)
    found = [_of_column(own, is_hit, counts) for own, is_hit in by_class]
    return torch.stack(found).nanmean(0)


def _of_column(scores: Tensor, is_hit: Tensor, counts: Tensor) -> Tensor:
    """Average precision `(draws,)`: the mean, over the hits, of the share of hits among the rows that score as high."""
    falling, order = scores.sort(descending=True)
    # rows with equal scores count together
    last = torch.searchsorted(-falling, -falling, right=True) - 1
    taken = counts[:, order]
    hits = taken * is_hit[order]
    found = hits.cumsum(1)[:, last]
    above = taken.cumsum(1)[:, last].clamp(min=1)
    return (hits * found / above).sum(1) / hits.sum(1)
