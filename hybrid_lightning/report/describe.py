"""From predictions of rows to what a record holds of them: curves, tables and the rows with the largest loss."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.report import curves
from hybrid_lightning.report.pictures import shown, texts
from hybrid_lightning.report.record import Record
from hybrid_lightning.tasks.objective import output_names

MOST_WORST = 12
_LEAST_PROBABILITY = 1e-12


class Rows(NamedTuple):
    """What is predicted for some rows."""

    truth: Array  # (N,) classes, or (N, K) labels or numbers
    predicted: Array  # (N, K): probabilities or numbers
    decided: Array  # like `truth`: classes, labels or numbers


class Worst(NamedTuple):
    """A row with a large loss."""

    loss: float
    place: int  # among the rows that are read
    row: int = 0  # the batch's own id, or the place
    shown: list[dict[str, Any]] = []  # noqa: RUF012  replaced as a whole


def new_record(objective: Any, split: str) -> Record:
    """A record of nothing yet; its kind is empty for a task of a user's own."""
    kind = getattr(objective, "kind", "") or {"values": "regression"}.get(objective.closed_form, "")
    return Record(split=split, kind=kind, main=objective.main_metric)


def describe(record: Record, rows: Rows, worst: Iterable[Worst], objective: Any, data: Any) -> None:
    """Fills the figures of a record, and the rows with the largest loss; refuses predictions that are not finite."""
    if not np.isfinite(rows.predicted).all():
        raise ConfigError("some predictions are not finite numbers.")
    record.rows = len(rows.truth)
    width = rows.predicted.shape[1] if rows.predicted.ndim > 1 else 1
    record.names = output_names(objective.names or None, width)
    if record.kind == "regression":
        _describe_numbers(record, rows)
    elif record.kind == "multilabel":
        _describe_labels(record, rows)
    else:
        _describe_classes(record, rows)
    cells_of = getattr(data, "cells", None)
    for one in worst:
        record.worst.append(_sample(record, rows, one, cells_of))


def _describe_numbers(record: Record, rows: Rows) -> None:
    count = len(rows.truth)
    truth = rows.truth.reshape(count, -1)
    predicted = rows.predicted.reshape(count, -1)
    record.numbers = curves.numbers(truth, predicted, record.names)


def _describe_labels(record: Record, rows: Rows) -> None:
    record.roc, record.precision_recall = curves.ranking_curves(rows.truth, rows.predicted, record.names)
    is_true = rows.truth.ravel() == 1
    record.reliability = curves.reliability(rows.predicted.ravel(), is_true)


def _describe_classes(record: Record, rows: Rows) -> None:
    names = record.names
    record.confusion = curves.confusion(rows.truth, rows.decided, names)
    one_hot = np.eye(len(names), dtype=np.int64)[rows.truth]
    first = 1 if len(names) == 2 else 0  # of two classes one says all
    ranked = curves.ranking_curves(one_hot[:, first:], rows.predicted[:, first:], names[first:])
    record.roc, record.precision_recall = ranked
    is_right = rows.predicted.argmax(1) == rows.truth
    record.reliability = curves.reliability(rows.predicted.max(1), is_right)


def _sample(record: Record, rows: Rows, one: Worst, cells_of: Callable[[int], dict[str, str]] | None) -> dict[str, Any]:
    """A row as the report shows it."""
    cells = {} if cells_of is None else cells_of(one.row)
    return {
        "row": str(one.row),
        "loss": one.loss,
        "truth": _named(record, rows.truth[one.place], None),
        "predicted": _named(record, rows.decided[one.place], rows.predicted[one.place]),
        "shown": [*one.shown, *texts(cells)],
    }


def _named(record: Record, values: Any, probabilities: Array | None) -> str:
    """Classes, labels or numbers of a row as text."""
    names = record.names
    if record.kind == "regression":
        return ", ".join(f"{number:.4g}" for number in np.atleast_1d(values))
    if record.kind == "multilabel":
        true = [name for name, value in zip(names, values, strict=True) if value == 1]
        return ", ".join(true) or "none"
    share = "" if probabilities is None else f" ({probabilities[int(values)]:.0%})"
    return f"{names[int(values)]}{share}"


def row_losses(predictions: Tensor, target: Tensor, objective: Any) -> Tensor:
    """How wrong each prediction is, `(B,)`: the log loss of classes and labels, the squared error of numbers.

    Of several labels the mean; of several numbers the mean of those on their own scale.
    """
    if objective.closed_form == "values":
        difference = predictions - target.to(predictions)
        if difference.ndim == 1:
            return difference.square()
        scaled: Tensor = difference / objective.scale.std.to(predictions)
        return scaled.square().mean(1)
    if target.ndim == 1:
        chosen = predictions.gather(1, target.long()[:, None]).squeeze(1)
        return -chosen.clamp_min(_LEAST_PROBABILITY).log()
    right = torch.where(target == 1, predictions, 1 - predictions)
    return -right.clamp_min(_LEAST_PROBABILITY).log().mean(1)


def record_of_table(task: Any, data: Any, outputs: Tensor, target: Tensor) -> Record:
    """The record of outputs `(N, outputs)` for all rows of the table that ``data`` predicts, with its target."""
    objective = task.objective
    record = new_record(objective, "table")
    predictions = task.predictions(outputs).float()
    losses = row_losses(predictions, target, objective)
    largest = losses.topk(min(MOST_WORST, len(losses)))
    dataset = data.datasets["predict"]
    worst = []
    for loss, place in zip(largest.values.tolist(), largest.indices.tolist(), strict=True):
        worst.append(Worst(loss, place, place, shown(dataset[place])))
    decided = objective.decisions(predictions).numpy()
    describe(record, Rows(target.numpy(), predictions.numpy(), decided), worst, objective, data)
    return record
