"""Columns of the inputs that give the target away: copies of it, under other names, spellings or units."""

from collections.abc import Mapping

import numpy as np

from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.text import TextInput
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.data.target import FittedTarget

_LEAST_ROWS = 20  # in fewer rows a column may agree with the target by chance


def answers(table: Table, entries: Mapping[str, Input], target: FittedTarget) -> list[str]:
    """A line for each column of cells from which the target of every row follows, and the other way round."""
    lines = []
    for entry, column in telling_columns(table, entries, target):
        lines.append(
            f"{entry.where}: column {column!r} tells the target of each row; if it is a copy of it, or made from it, "
            f"leave it out"
        )
    return lines


def telling_columns(table: Table, entries: Mapping[str, Input], target: FittedTarget) -> list[tuple[Input, str]]:
    """These columns, each with its input."""
    found: list[tuple[Input, str]] = []
    values = target.values.numpy()
    if values.ndim > 1 or len(values) < _LEAST_ROWS:
        return found
    is_quantity = target.kind == "regression"
    agree = _are_linear if is_quantity else _are_renamed
    for entry in entries.values():
        in_cells = entry.in_memory or isinstance(entry, TextInput)
        for column in entry.columns if in_cells else ():
            if is_quantity and column in entry.text_columns:
                continue
            known = ~table.empty(column)
            cells = _numbered(table, entry, column)[known]
            if len(cells) >= _LEAST_ROWS and agree(cells, values[known]):
                found.append((entry, column))
    return found


def _numbered(table: Table, entry: Input, column: str) -> Array:
    """The numbers of a column, or the places of its texts among its distinct ones."""
    if column not in entry.text_columns:
        return table.numbers(column, entry.where)
    encoded = table.texts(column).dictionary_encode()
    return np.asarray(encoded.indices.fill_null(-1), dtype=np.float64)


def _are_renamed(cells: Array, classes: Array) -> bool:
    """Whether each value stands for one class, and each class for one value."""
    names, places = np.unique(cells, return_inverse=True)
    distinct = len(np.unique(classes))
    if distinct < 2 or len(names) != distinct:
        return False
    return len(np.unique(places * (classes.max() + 1) + classes)) == distinct


def _are_linear(cells: Array, numbers: Array) -> bool:
    """Whether one is the other in another unit, up to the rounding of float32."""
    if not np.isfinite(cells).all() or not cells.std() or not numbers.std():
        return False
    return bool(abs(np.corrcoef(cells, numbers)[0, 1]) > 1 - 1e-10)
