"""From predictions to the few numbers that a figure shows, by numpy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hybrid_lightning.data.table import Array

_MOST_CLASSES = 25
_MOST_CURVES = 12
_MOST_POINTS = 120
_MOST_COLUMNS = 4  # of numbers
_MOST_ROWS = 1000  # of a scatter
_BINS = 10
OTHERS = "other classes"


def confusion(truth: Array, predicted: Array, names: Sequence[str]) -> dict[str, Any]:
    """How often each class `(N,)` was predicted as which; the rarest of many classes are one."""
    counts = _counted(truth, predicted, len(names))
    if len(names) <= _MOST_CLASSES:
        return {"names": list(names), "counts": counts.tolist()}
    rows_of_class = counts.sum(1)
    by_frequency = np.argsort(-rows_of_class, kind="stable")
    kept = np.sort(by_frequency[: _MOST_CLASSES - 1])
    # class → its place among those that are shown; all others share the last one
    place = np.full(len(names), len(kept))
    place[kept] = np.arange(len(kept))
    joined = _counted(place[truth], place[predicted], len(kept) + 1)
    shown = [names[index] for index in kept]
    return {"names": [*shown, OTHERS], "counts": joined.tolist()}


def _counted(truth: Array, predicted: Array, classes: int) -> Array:
    """Rows of each true and predicted class, `(classes, classes)`."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (truth, predicted), 1)
    return counts


def ranking_curves(truth: Array, probabilities: Array, names: Sequence[str]) -> tuple[list[Any], list[Any]]:
    """ROC and precision–recall of each class or label; truth `(N, C)` of 0 and 1, probabilities `(N, C)`.

    Of many the most frequent ones; those of which a class has no row, or all, have no curves.
    """
    by_frequency = np.argsort(-truth.sum(0), kind="stable")
    kept = np.sort(by_frequency[:_MOST_CURVES])
    roc = []
    precision_recall = []
    for index in kept:
        positive = truth[:, index] == 1
        if positive.all() or not positive.any():
            continue
        hits, misses = _cumulated(positive, probabilities[:, index])
        roc.append(_roc(names[index], hits, misses))
        precision_recall.append(_precision_recall(names[index], hits, misses))
    return roc, precision_recall


def _cumulated(positive: Array, score: Array) -> tuple[Array, Array]:
    """How many positive and other rows have at least each score, from the highest to the lowest."""
    order = np.argsort(-score, kind="stable")
    steps = np.diff(score[order])
    is_last = np.append(steps != 0, True)  # of rows with one score
    hits = np.cumsum(positive[order])[is_last]
    rows = np.flatnonzero(is_last) + 1
    return hits, rows - hits


def _roc(name: str, hits: Array, misses: Array) -> dict[str, Any]:
    """The curve from (0, 0), with the area below it."""
    true_rate = np.concatenate([[0.0], hits / hits[-1]])
    false_rate = np.concatenate([[0.0], misses / misses[-1]])
    area = np.trapezoid(true_rate, false_rate)
    return _curve(name, false_rate, true_rate, float(area))


def _precision_recall(name: str, hits: Array, misses: Array) -> dict[str, Any]:
    """The curve from recall 0, with the average precision."""
    recall = np.concatenate([[0.0], hits / hits[-1]])
    precision = np.concatenate([[1.0], hits / (hits + misses)])
    average = (np.diff(recall) * precision[1:]).sum()
    return _curve(name, recall, precision, float(average))


def _curve(name: str, x: Array, y: Array, value: float) -> dict[str, Any]:
    chosen = spread(len(x), _MOST_POINTS)
    return {
        "name": name,
        "x": x[chosen].tolist(),
        "y": y[chosen].tolist(),
        "value": value,
    }


def mean_curve(name: str, curves: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The mean of curves over x in [0, 1], and that of the areas below them: each class counts alike."""
    if len(curves) == 1:
        return {**curves[0], "name": name}
    x = np.linspace(0, 1, _MOST_POINTS)
    heights = np.mean([np.interp(x, curve["x"], curve["y"]) for curve in curves], axis=0)
    start = np.mean([curve["y"][0] for curve in curves])  # where several points are at 0, interp takes the last one
    value = float(np.mean([curve["value"] for curve in curves]))
    return {"name": name, "x": [0.0, *x.tolist()], "y": [float(start), *heights.tolist()], "value": value}


def spread(count: int, most: int) -> Array:
    """Positions from the first to the last of `count` ones, evenly spread, at most `most`."""
    if count <= most:
        return np.arange(count)
    exact = np.linspace(0, count - 1, most)
    return np.unique(exact.round().astype(np.int64))


def reliability(confidence: Array, is_correct: Array) -> dict[str, Any]:
    """Mean confidence and share of correct predictions in ten bins of the confidence, both `(N,)` in [0, 1]."""
    bins = (confidence * _BINS).astype(np.int64)
    bins = np.minimum(bins, _BINS - 1)  # a confidence of 1 is in the last one
    means: list[float] = []
    shares: list[float] = []
    rows: list[int] = []
    for number in np.unique(bins):
        inside = bins == number
        means.append(float(confidence[inside].mean()))
        shares.append(float(is_correct[inside].mean()))
        rows.append(int(inside.sum()))
    return {"confidence": means, "correct": shares, "rows": rows}


def numbers(truth: Array, predicted: Array, names: Sequence[str]) -> list[dict[str, Any]]:
    """True and predicted numbers `(N, K)` of at most four columns and a thousand rows, drawn by a seed."""
    drawn = np.random.default_rng(0).permutation(len(truth))
    rows = drawn[:_MOST_ROWS]
    found = []
    for index, name in enumerate(names[:_MOST_COLUMNS]):
        column = {
            "name": name,
            "true": truth[rows, index].tolist(),
            "predicted": predicted[rows, index].tolist(),
        }
        found.append(column)
    return found
