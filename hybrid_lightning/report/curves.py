"""From predictions to the few numbers that a figure shows, by numpy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hybrid_lightning.data.table import Array

_MOST_CLASSES = 25
_MOST_CURVES = 12
_MOST_POINTS = 120
_MOST_ROWS = 1000  # of a scatter
_BINS = 10
OTHERS = "other classes"


def confusion(truth: Array, predicted: Array, names: Sequence[str]) -> dict[str, Any]:
    """How often each class `(N,)` was predicted as which; the rarest of many classes are one."""
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (truth, predicted), 1)
    if len(names) <= _MOST_CLASSES:
        return {"names": list(names), "counts": counts.tolist()}
    order = np.argsort(-counts.sum(1), kind="stable")
    kept = np.sort(order[: _MOST_CLASSES - 1])
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    joined = np.zeros((len(kept) + 1, len(kept) + 1), dtype=np.int64)
    np.add.at(joined, (place[truth], place[predicted]), 1)
    return {"names": [*(names[index] for index in kept), OTHERS], "counts": joined.tolist()}


def ranking_curves(truth: Array, probabilities: Array, names: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """ROC and precision–recall of each class or label; truth `(N, C)` of 0 and 1, probabilities `(N, C)`.

    Of many the most frequent ones; those of which a class has no row, or all, have no curves.
    """
    frequent = np.argsort(-truth.sum(0), kind="stable")[:_MOST_CURVES]
    roc, precision_recall = [], []
    for index in np.sort(frequent):
        positive = truth[:, index] == 1
        if positive.all() or not positive.any():
            continue
        hits, misses = _cumulated(positive, probabilities[:, index])
        true_rate = np.concatenate([[0.0], hits / positive.sum()])
        false_rate = np.concatenate([[0.0], misses / (~positive).sum()])
        roc.append(_curve(names[index], false_rate, true_rate, float(np.trapezoid(true_rate, false_rate))))
        precision = np.concatenate([[1.0], hits / (hits + misses)])
        average = float((np.diff(true_rate) * precision[1:]).sum())
        precision_recall.append(_curve(names[index], true_rate, precision, average))
    return roc, precision_recall


def _cumulated(positive: Array, score: Array) -> tuple[Array, Array]:
    """How many positive and other rows have at least each score, from the highest to the lowest."""
    order = np.argsort(-score, kind="stable")
    is_last = np.append(np.diff(score[order]) != 0, True)  # of rows with one score
    hits = np.cumsum(positive[order])[is_last]
    return hits, np.flatnonzero(is_last) + 1 - hits


def _curve(name: str, x: Array, y: Array, value: float) -> dict[str, Any]:
    chosen = spread(len(x), _MOST_POINTS)
    return {"name": name, "x": x[chosen].tolist(), "y": y[chosen].tolist(), "value": value}


def spread(count: int, most: int) -> Array:
    """Positions from the first to the last of `count` ones, evenly spread, at most `most`."""
    if count <= most:
        return np.arange(count)
    return np.unique(np.linspace(0, count - 1, most).round().astype(np.int64))


def reliability(confidence: Array, is_correct: Array) -> dict[str, Any]:
    """Mean confidence and share of correct predictions in ten bins of the confidence, both `(N,)` in [0, 1]."""
    bins = np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)
    found: dict[str, Any] = {"confidence": [], "correct": [], "rows": []}
    for number in np.unique(bins):
        inside = bins == number
        found["confidence"].append(float(confidence[inside].mean()))
        found["correct"].append(float(is_correct[inside].mean()))
        found["rows"].append(int(inside.sum()))
    return found


def numbers(truth: Array, predicted: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """True and predicted numbers `(N, K)` of at most four columns and a thousand rows, drawn by a seed."""
    rows = np.random.default_rng(0).permutation(len(truth))[:_MOST_ROWS]
    found = []
    for index, name in enumerate(names[:4]):
        own = {"true": truth[rows, index].tolist(), "predicted": predicted[rows, index].tolist()}
        found.append({"name": name, **own})
    return found
