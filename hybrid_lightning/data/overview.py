"""What a manifest holds: rows, classes and gaps of each split, shapes of each input, and columns that never vary."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_lightning.data.answers import answers
from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.inputs.text import TextInput
from hybrid_lightning.data.preflight_files import FileFindings
from hybrid_lightning.data.repeated_files import repeated_files
from hybrid_lightning.data.spelling import alike, seem_codes
from hybrid_lightning.data.splits import CALIBRATION, SPLITS, TRAIN, groups_of
from hybrid_lightning.data.table import Array, Table, rows_of
from hybrid_lightning.data.target import FittedTarget
from hybrid_lightning.errors import counted, format_table, listing

_MOST_LABELS = 12
_MOST_LINE_ENDS = 5  # in a cell
_INPUTS = ("input", "stored", "in a batch")

Line = list[str]  # A line of the table of splits: what is counted, and its text for each split


@dataclass(frozen=True)
class ManifestToCheck:
    """A manifest before its files are read."""

    table: Table
    entries: Mapping[str, Input]  # not yet bound to the table
    id: str | None
    split: Array | None  # of each row; None: nothing but files is checked
    target: FittedTarget | None
    group_column: str | None
    joined: bool  # whether samples are joined with others, and so need equal shapes


def overview(
    manifest: ManifestToCheck, split: Array, findings: Mapping[str, FileFindings], decode: bool = False
) -> str:
    """Two aligned tables, of the splits and of the inputs, and a line for each warning; `decode`: files were read."""
    rows = [np.flatnonzero(split == code) for code in range(len(SPLITS))]
    lines = _sizes(manifest, rows)
    lines += _targets(manifest.target, split, rows)
    lines += _gaps(manifest, rows)
    header: tuple[str, ...] = (manifest.table.title, *SPLITS)
    splits = [dict(zip(header, line, strict=True)) for line in lines]
    if not len(rows[CALIBRATION]):
        header = header[:-1]
    inputs = [_shapes(manifest, key, findings.get(key)) for key in manifest.entries]
    warnings = _warnings(manifest, rows[TRAIN])
    warnings += _codes(manifest)
    if manifest.target is not None:
        warnings += answers(manifest.table, manifest.entries, manifest.target)
    warnings += _spellings(manifest)
    warnings += _long_cells(manifest.table)
    for found in findings.values():
        warnings += _remarks(found)
    if decode:
        warnings += _repeated(manifest, split, findings.values())
    # numbers are aligned at their last digit
    told = [f"warning: {line}" for line in warnings]
    return "\n".join([format_table(splits, header, right=SPLITS), "", format_table(inputs, _INPUTS), *told])


def _repeated(manifest: ManifestToCheck, split: Array, findings: Iterable[FileFindings]) -> list[str]:
    """A line about files that stand in several rows, also where columns of one kind share them."""
    labels = None if manifest.target is None else manifest.target.labels
    of_kind: dict[type, list[tuple[FileInput, Array]]] = {}
    for found in findings:
        of_kind.setdefault(type(found.entry), []).append((found.entry, found.files))
    lines = []
    for columns in of_kind.values():
        lines += repeated_files(columns, split, labels)
    return lines


def _sizes(manifest: ManifestToCheck, rows: Sequence[Array]) -> list[Line]:
    lines = [_counts("rows", map(len, rows))]
    if manifest.group_column is not None:
        groups = groups_of(manifest.table, manifest.group_column)
        numbers = [len(np.unique(groups[own])) for own in rows]
        lines.append(_counts(f"values of {manifest.group_column}", numbers))
    return lines


def _counts(what: str, counts: Iterable[int]) -> Line:
    return [what, *(f"{count:,}" for count in counts)]


def _targets(target: FittedTarget | None, split: Array, rows: Sequence[Array]) -> list[Line]:
    """A line per class or label with its counts, or per number with its range."""
    if target is None:
        return []
    if target.kind == "regression":
        return _ranges(target, rows)
    # labels that are columns bear their names already
    column = f"{target.columns[0]} " if len(target.columns) == 1 else ""
    counts = target.counts(split).T
    shown = len(counts) if len(counts) <= _MOST_LABELS else _MOST_LABELS - 1
    lines = []
    for name, own in zip(target.names[:shown], counts, strict=False):
        lines.append(_counts(f"{column}{name}", own))
    if shown < len(counts):
        others = counts[shown:].sum(axis=0)
        lines.append(_counts(f"{len(counts) - shown} others", others))
    return lines


def _ranges(target: FittedTarget, rows: Sequence[Array]) -> list[Line]:
    columns = target.values.numpy().reshape(len(target.values), -1).T
    lines = []
    for name, column in zip(target.names, columns, strict=True):
        line = [name]
        for own in rows:
            values = column[own]
            line.append(f"{values.min():.4g} to {values.max():.4g}" if len(values) else "")
        lines.append(line)
    return lines


def _gaps(manifest: ManifestToCheck, rows: Sequence[Array]) -> list[Line]:
    """The share of empty cells, of inputs that have some."""
    lines = []
    for key, entry in manifest.entries.items():
        if isinstance(entry, FileInput):
            empty = entry.empty(manifest.table)
        else:  # of an input of several columns, the share of its cells
            empty = np.mean([manifest.table.empty(column) for column in entry.columns], axis=0)
        if empty.any():
            shares = [f"{empty[own].mean():.1%}" if len(own) else "" for own in rows]
            lines.append([f"{key} empty", *shares])
    return lines


def _shapes(manifest: ManifestToCheck, key: str, found: FileFindings | None) -> dict[str, str]:
    entry = manifest.entries[key]
    if found is not None:
        counts = _files_per_row(found)
        return {"input": key, "stored": f"{counts}{found.stored}", "in a batch": str(found.values)}
    stored = counted(len(entry.columns), "column")
    if isinstance(entry, TextInput):
        import pyarrow.compute as compute

        lengths = compute.min_max(compute.utf8_length(manifest.table.texts(entry.columns[0]))).as_py()
        low, high = lengths["min"], lengths["max"]
        stored = "nothing" if low is None else f"{low:,} to {high:,} letters"
    return {"input": key, "stored": stored, "in a batch": ""}


def _files_per_row(found: FileFindings) -> str:
    """How many files rows have, where a cell may have several."""
    if found.entry.separator is None or not len(found.files):
        return ""
    counts = np.unique(found.entry.rows_of(found.files), return_counts=True)[1]
    low, high = int(counts.min()), int(counts.max())
    return f"{low} to {high} files of " if high > low else f"{counted(low, 'file')} of "


def _warnings(manifest: ManifestToCheck, training: Array) -> list[str]:
    """A line for each column in memory that never varies, and for empty ids."""
    lines = []
    for entry in manifest.entries.values():
        for column in entry.columns if entry.in_memory else ():
            only = _only_value(manifest.table, column, training)
            if only is not None:
                lines.append(
                    f"{entry.where}: column {column!r} holds nothing but {only!r} in the training rows; "
                    f"it tells nothing"
                )
    if manifest.id is not None:
        empty = np.flatnonzero(manifest.table.empty(manifest.id))
        if len(empty):
            lines.append(f"data.id: column {manifest.id!r} is empty in {rows_of(empty)}")
    return lines


def _codes(manifest: ManifestToCheck) -> list[str]:
    """A question for each column of whole numbers that is read as a quantity, and may hold codes."""
    lines = []
    for entry in manifest.entries.values():
        quantities = [column for column in entry.columns if column not in entry.text_columns]
        for column in quantities if entry.in_memory else ():
            numbers = manifest.table.numbers(column, entry.where)
            if seem_codes(column, numbers):
                found = np.unique(numbers[~np.isnan(numbers)])
                shown = listing([f"{number:.0f}" for number in found], 3)
                lines.append(
                    f"{entry.where}: column {column!r} holds {len(found)} whole numbers, {shown}: codes, or a "
                    f"quantity? Codes belong into 'categorical', where their size means nothing"
                )
    return lines


def _spellings(manifest: ManifestToCheck) -> list[str]:
    """A line for each column with names that differ by letter case, blanks or zeros alone."""
    columns: dict[str, str] = {}
    if manifest.group_column is not None:
        columns[manifest.group_column] = "data.split_by"
    if manifest.id is not None:
        columns.setdefault(manifest.id, "data.id")
    for entry in manifest.entries.values():
        for column in entry.text_columns if entry.in_memory else ():
            columns.setdefault(column, entry.where)
    lines = []
    for column, place in columns.items():
        names = manifest.table.names(column).unique().drop_null()
        same = alike(names.to_pylist())
        if same:
            taken = "are taken for one" if place == "data.split_by" else "count as different ones; write them alike"
            more = f", and {len(same) - 1} more such" if len(same) > 1 else ""
            lines.append(f"{place}: column {column!r} holds {listing(same[0], 4)}{more}, which {taken}")
    return lines


def _long_cells(table: Table) -> list[str]:
    """A line for each column with many line ends in a cell, as a quote that is closed late takes in other rows."""
    import pyarrow.compute as compute

    lines = []
    for column in table.untyped:
        counts = compute.fill_null(compute.count_substring(table.texts(column), "\n"), 0)
        most = compute.max(counts).as_py()
        if most > _MOST_LINE_ENDS:
            row = compute.index(counts, most).as_py()
            lines.append(
                f"{table.place}: column {column!r} has a cell with {most} line ends, in row {row}. If these are rows "
                f"of their own, a quote is missing"
            )
    return lines


def _remarks(found: FileFindings) -> list[str]:
    """A line for each thing that is odd about files of an input."""
    lines = []
    for remark, files in found.remarks.items():
        example = f"row {found.entry.row_of(files[0])}, {found.entry.cell(files[0])!r}"
        lines.append(f"{found.entry.where}: {len(files)} of {len(found.files)} files {remark}; the first is {example}")
    return lines


def _only_value(table: Table, column: str, rows: Array) -> object | None:
    """The value of all of the rows that have one; None if they differ, or none has."""
    import pyarrow

    values = table.values(column)
    if pyarrow.types.is_nested(values.type):  # there are no sets of these, and an input will refuse them
        return None
    filled = rows[~table.empty(column)[rows]]  # gaps do not make a column vary
    different = values.take(filled).unique()
    return different[0].as_py() if len(different) == 1 else None
