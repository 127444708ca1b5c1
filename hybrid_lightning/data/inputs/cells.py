"""Cells that hold several paths."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_lightning.data.table import Array, Table, rows_of
from hybrid_lightning.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow

_PARTS_OF_PATHS = "./\\"


def several_per_cell(table: Table, column: str, separator: str, most: int) -> "tuple[pyarrow.Array, Array]":
    """The paths in a column, and the row of each; what is blank between two separators is none.

    Cells that are lists, as Parquet, JSON and tables in memory have them, need no separator.
    """
    import pyarrow
    import pyarrow.compute as compute

    cells = lists_in(table, column)
    if cells is None:
        cells = compute.split_pattern(table.texts(column), separator)
    rows = np.asarray(compute.list_parent_indices(cells))
    paths = compute.list_flatten(cells)
    try:
        paths = compute.utf8_trim_whitespace(paths.cast(pyarrow.string()))
    except pyarrow.ArrowException:
        raise ConfigError(f"column {column!r} holds lists of {paths.type}, not of paths.") from None
    is_filled = np.asarray(compute.fill_null(compute.not_equal(paths, ""), False), dtype=bool)
    paths, rows = paths.filter(pyarrow.array(is_filled)), rows[is_filled]
    counts = np.bincount(rows, minlength=len(table))
    longer = np.flatnonzero(counts > most)
    if len(longer):
        raise ConfigError(
            f"{rows_of(longer)}: {counts[longer[0]]} files in a cell of column {column!r}, of which 'most: {most}' are "
            f"possible. Write 'most: {counts.max()}', which takes memory in proportion; or remove some."
        )
    return paths, rows


def lists_in(table: Table, column: str) -> "pyarrow.Array | None":
    """A column whose cells are lists; None for any other."""
    from pyarrow import types

    cells = table.values(column)
    is_list = types.is_list(cells.type) or types.is_large_list(cells.type) or types.is_fixed_size_list(cells.type)
    return cells.combine_chunks() if is_list else None


def check_separator(value: Any) -> str:
    """The option ``separator``: text that is no part of a path."""
    is_text = isinstance(value, str) and value
    if not is_text or any(letter.isalnum() or letter in _PARTS_OF_PATHS for letter in value):
        raise ConfigError(
            f"{value!r} does not separate paths. Write such as ';' or '|', without letters, digits, dots and slashes.",
            "separator",
        )
    return str(value)
