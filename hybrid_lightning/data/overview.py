"""What a manifest holds: rows, classes and gaps of each split, shapes of each input, and columns that tell nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.text import TextInput
from hybrid_lightning.data.preflight_files import FileFindings
from hybrid_lightning.data.splits import SPLITS, TRAIN, Array, groups_of, rows_of
from hybrid_lightning.data.table import Table
from hybrid_lightning.data.target import Target, label_counts
from hybrid_lightning.errors import format_table

_MOST_LABELS = 12


@dataclass(frozen=True)
class Checked:
    """What is checked.

    Args:
        table: The manifest.
        entries: Key → input, not yet bound.
        folder: Where relative paths start.
        id: Column that names the samples.
        split: Of each row; None: nothing but files is checked.
        target: What is predicted; None for nothing.
        values: Its tensor.
        split_by: Column such as a patient.
        joined: Whether samples are joined with others, and so need equal shapes.
    """

    table: Table
    entries: Mapping[str, Input]
    folder: str
    id: str | None = None
    split: Array | None = None
    target: Target | None = None
    values: Tensor | None = None
    split_by: str | None = None
    joined: bool = True


Row = dict[str, str]


def overview(checked: Checked, findings: Mapping[str, FileFindings]) -> str:
    """Two aligned tables, of the splits and of the inputs, and a line for each warning.

    Args:
        checked: The manifest, with a split.
        findings: Key → what was found about its files, for inputs that are files.
    """
    assert checked.split is not None
    name = checked.table.path.name
    rows = [*_size_rows(checked, name, checked.split), *_target_rows(checked, name, checked.split)]
    rows += _gap_rows(checked, name, checked.split)
    splits = format_table(rows, (name, *SPLITS), SPLITS)
    inputs = format_table([_shape_row(checked, key, findings.get(key)) for key in checked.entries], _INPUTS)
    return "\n".join([splits, "", inputs, *_warnings(checked, np.flatnonzero(checked.split == TRAIN))])


_INPUTS = ("input", "stored", "in a batch")


def _row(name: str, what: str, values: list[str]) -> Row:
    return {name: what, **dict(zip(SPLITS, values, strict=True))}


def _size_rows(checked: Checked, name: str, split: Array) -> list[Row]:
    rows = [_row(name, "rows", [f"{int((split == code).sum()):,}" for code in range(len(SPLITS))])]
    if checked.split_by is not None:
        groups = groups_of(checked.table, checked.split_by)[0]
        counts = [f"{len(np.unique(groups[split == code])):,}" for code in range(len(SPLITS))]
        rows.append(_row(name, f"values of {checked.split_by}", counts))
    return rows


def _target_rows(checked: Checked, name: str, split: Array) -> list[Row]:
    """A row per class or label with its counts, or per number with its range."""
    target, values = checked.target, checked.values
    if target is None or values is None:
        return []
    names = list(target.names or ())
    column = target.columns[0] if len(target.columns) == 1 else ""
    if target.kind == "regression":
        numbers = values.numpy().reshape(len(values), -1)
        return [
            _row(name, one, [_range(numbers[split == code, index]) for code in range(len(SPLITS))])
            for index, one in enumerate(names)
        ]
    counts = label_counts(target, values, split)
    rows = [
        _row(name, f"{column} {one}".strip(), [f"{c:,}" for c in own]) for one, own in zip(names, counts.T, strict=True)
    ]
    if len(rows) <= _MOST_LABELS:
        return rows
    rest = counts[:, _MOST_LABELS - 1 :].sum(axis=1)
    return [*rows[: _MOST_LABELS - 1], _row(name, f"{len(rows) - _MOST_LABELS + 1} others", [f"{c:,}" for c in rest])]


def _range(values: Array) -> str:
    return f"{values.min():.4g} to {values.max():.4g}" if len(values) else ""


def _gap_rows(checked: Checked, name: str, split: Array) -> list[Row]:
    """The share of empty cells, of inputs that have some."""
    rows = []
    for key, entry in checked.entries.items():
        empty = np.mean([checked.table.empty(column) for column in entry.columns], axis=0)
        if empty.any():
            own = [empty[split == code] for code in range(len(SPLITS))]
            rows.append(_row(name, f"{key} empty", [f"{cells.mean():.1%}" if len(cells) else "" for cells in own]))
    return rows


def _shape_row(checked: Checked, key: str, found: FileFindings | None) -> Row:
    entry = checked.entries[key]
    if found is not None:
        return dict(zip(_INPUTS, (key, str(found.stored), str(found.values)), strict=True))
    stored = f"{len(entry.columns)} column{'s' if len(entry.columns) > 1 else ''}"
    if isinstance(entry, TextInput):
        stored = _letters(checked.table, entry.columns[0])
    return dict(zip(_INPUTS, (key, stored, ""), strict=True))


def _letters(table: Table, column: str) -> str:
    import pyarrow.compute as compute

    sides = compute.min_max(compute.utf8_length(table.texts(column))).as_py()
    return "nothing" if sides["min"] is None else f"{sides['min']:,} to {sides['max']:,} letters"


def _warnings(checked: Checked, training: Array) -> list[str]:
    lines = []
    for entry in checked.entries.values():
        for column in entry.columns if entry.in_memory else ():
            only = _only_value(checked.table, column, training)
            if only is not None:
                lines.append(
                    f"warning: {entry.where}: column {column!r} holds nothing but {only!r} in the training rows; it "
                    f"tells nothing"
                )
    if checked.id is not None:
        empty = np.flatnonzero(checked.table.empty(checked.id))
        if len(empty):
            lines.append(f"warning: data.id: column {checked.id!r} is empty in {rows_of(empty)}")
    return lines


def _only_value(table: Table, column: str, rows: Array) -> object | None:
    """What stands in all of the rows that have something there; None if they differ, or none has."""
    import pyarrow
    import pyarrow.compute as compute

    cells = table.values(column).take(pyarrow.array(rows))
    known = cells.filter(pyarrow.array(~table.empty(column)[rows]))
    different = compute.unique(known)
    return different[0].as_py() if len(different) == 1 else None
