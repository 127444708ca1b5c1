"""What a table of predictions takes from the manifest: ids and, where it has one, the target."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.prepared import TargetOfState
from hybrid_lightning.data.samples import SampleDataset
from hybrid_lightning.data.spelling import positions
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.data.target import Target, labels_of
from hybrid_lightning.errors import ConfigError


class PredictedRows(TargetOfState):
    """What ``predict`` reads of a DataModule beside its batches, after its `setup`."""

    id: str | None
    inputs: dict[str, Input]
    target: Target | None
    path: str
    predict_path: str | None
    datasets: dict[str, SampleDataset]
    _tables: Mapping[str, Table]

    @property
    def predict_ids(self) -> Sequence[Any] | None:
        """The id of each sample that predict reads, in its order; None if no column has ids."""
        if self.id is None:
            return None
        table, rows = self._predicted()
        return list(table.texts(self.id).take(rows).to_pylist())

    @property
    def predict_targets(self) -> dict[str, Any]:
        """``target``, or ``target_<name>`` of several numbers and of labels, → a value per sample that predict reads.

        Classes have their name, also in another spelling; empty cells are None. Nothing if the manifest has no such
        column, or one that cannot be read.
        """
        if self.target is None or self.target_kind is None or self.target_names is None:
            return {}
        table, rows = self._predicted()
        if not set(self.target.columns) <= set(table.columns):
            return {}
        try:
            found = target_values(table, self.target.columns, self.target_kind, self.target_names)
        except ConfigError as error:  # new rows need no target
            rank_zero_info(f"predict: the table has no target beside the predictions, because {error}")
            return {}
        return {name: _cells(values[rows]) for name, values in found.items()}

    @property
    def predicted_table(self) -> Table:
        """The manifest of the samples that predict reads."""
        return self._predicted()[0]

    def cells(self, row: int) -> dict[str, str]:
        """Column → cell of a row of the manifest, as text, of the columns that the inputs read, without empty ones."""
        table = self._tables[self.path]
        columns = dict.fromkeys(column for entry in self.inputs.values() for column in entry.columns)
        cells = {column: table.cell(column, row) for column in columns}
        return {column: str(cell) for column, cell in cells.items() if cell not in (None, "")}

    def _predicted(self) -> tuple[Table, Array]:
        """The manifest of the samples that predict reads, and their rows."""
        path, split = self.path, "test"
        if self.predict_path is not None and "predict" in self.datasets:
            path, split = self.predict_path, "predict"
        return self._tables[path], self.datasets[split].rows.numpy()


def _cells(values: Array) -> list[Any]:
    """The values of a table that is written; None for nan, which is an empty cell there."""
    return [None if value != value else value for value in values.tolist()]


def target_values(table: Table, columns: Sequence[str], kind: str, names: Sequence[str]) -> dict[str, Array]:
    """The target of all rows, each `(rows,)`, see `PredictedRows.predict_targets`; nothing if all cells are empty."""
    empty = np.logical_and.reduce([table.empty(column) for column in columns])
    if empty.all():
        return {}
    if kind == "regression" or len(columns) > 1:
        if len(columns) == 1:
            return {"target": table.numbers(columns[0])}
        return {f"target_{column}": table.numbers(column) for column in columns}
    if kind == "multilabel":
        return _labels(table, columns[0], names, empty)
    texts = table.names(columns[0])
    places = positions(texts, names)
    known = np.array([*names, None], dtype=object)[places]
    return {"target": np.where(places >= 0, known, np.array(texts.to_pylist(), dtype=object))}


def _labels(table: Table, column: str, names: Sequence[str], empty: Array) -> dict[str, Array]:
    """A column of 0 and 1 per label of one column of labels; None where the cell is empty."""
    labels, rows = labels_of(table.names(column))
    places = positions(labels, names)
    found = {}
    for place, name in enumerate(names):
        has_label = np.zeros(len(table), dtype=object)
        has_label[rows[places == place]] = 1
        has_label[empty] = None
        found[f"target_{name}"] = has_label
    return found
