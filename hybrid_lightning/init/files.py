"""What the files of a column are: their kind, sizes and, of sounds, their rate, from the first bytes of some."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from hybrid_lightning.data.inputs import INPUTS
from hybrid_lightning.data.inputs.audio import opened
from hybrid_lightning.data.inputs.dicom_files import is_dicom
from hybrid_lightning.data.inputs.dicom_images import layout
from hybrid_lightning.data.inputs.dicom_series import files_of_series
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.inputs.numpy_files import is_numpy
from hybrid_lightning.data.inputs.series import SeriesInput
from hybrid_lightning.data.shard_members import closing_member
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import reason
from hybrid_lightning.files import is_folder, is_regular_file
from hybrid_lightning.init.columns import Column

_LOOKED_AT = 24  # files of a column, at equal distances
_ANY_NUMBER = 2**31  # of files in a cell
_MOST_FOLDERS = 200  # beside the table, in which files are looked for
_LONGEST_VECTOR = 32  # numbers that are no series, unless their name says so
_VECTOR_NAMES = ("emb", "feat", "vec")
_MOST_CHANNELS = 4  # of an image that is stored as an array


@dataclass(frozen=True)
class Files:
    """What some files of a column are."""

    kind: str  # image, audio, series, array or volume
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # (C, H, W), (C, samples), (T,) or (T, C), ...
    rates: list[int] = field(default_factory=list)  # samples per second of sounds
    problem: str = ""  # why one could not be read; empty if it is not there


def find_root(table: Table, columns: Sequence[Column]) -> str | None:
    """The folder, other than the table's, in which more files of these columns are; None if there is no better one."""
    home = table.path.parent
    cells = []
    for column in columns:
        entry = _bound(table, column)
        cells += [entry.cell(number) for number in _some_files(entry, table)]
    candidates = [home, Path()]
    if home.is_dir():
        folders = sorted(path for path in home.iterdir() if path.is_dir() and not path.name.startswith("."))
        candidates += folders[:_MOST_FOLDERS]
    counts = [_count(folder, cells) for folder in candidates]
    best = int(np.argmax(counts))  # the first of several
    return None if best == 0 else str(candidates[best])


def _count(folder: Path, cells: Sequence[str]) -> int:
    """How many of these files are in a folder."""
    return sum(is_regular_file(folder / cell) or is_folder(folder / cell) for cell in cells)


def is_column_of_series(table: Table, name: str) -> bool:
    """Whether the cells of a column name folders with DICOM files, each with a series."""
    column = Column(name, "volume")
    root = find_root(table, [column])
    folder = table.path.parent if root is None else Path(root)
    entry = _bound(table, column)
    cells = [entry.cell(number) for number in _some_files(entry, table)]
    found = sum(_is_series(folder / cell) for cell in cells)
    return found > len(cells) / 2


def _is_series(folder: Path) -> bool:
    try:
        return is_folder(folder) and bool(files_of_series(folder))
    except (OSError, ValueError):
        return False


def _bound(table: Table, column: Column) -> FileInput:
    """An input that reads a column of files."""
    entry = INPUTS[str(column.kind)](column.name, column.name)
    assert isinstance(entry, FileInput)
    entry.separator = column.separator
    entry.most = _ANY_NUMBER
    entry.bind(table)
    return entry


def describe_files(table: Table, column: Column, root: str | None) -> Files:
    """Looks into some files of a column, whose names say of which kind they are."""
    entry = _bound(table, column)
    kind = str(column.kind)
    entry.folder = str(table.path.parent) if root is None else root
    shapes: list[tuple[int, ...]] = []
    rates: list[int] = []
    frames: list[int] = []  # of DICOM
    problem = ""
    for number in _some_files(entry, table):
        if not (table.members or entry.is_there(entry.path(number))):
            continue
        try:
            with closing_member(entry.path(number)) as path:
                shapes.append(_shape_of(entry, path))
                if kind == "image" and is_dicom(path):
                    frames.append(layout(path).frames)
                if kind == "audio":
                    with opened(path) as file:
                        rates.append(int(file.samplerate))
        except Exception as error:  # libraries raise any exception on a broken file
            problem = reason(error)
    if frames and np.median(frames) > 1:
        return describe_files(table, replace(column, kind="volume"), root)
    if kind == "array" and shapes:
        kind = _kind_of_arrays(column.name, shapes)
    return Files(kind, shapes, rates, "" if shapes else problem)


def _some_files(entry: FileInput, table: Table) -> list[int]:
    """The numbers of some files, at equal distances."""
    numbers = entry.numbers(np.arange(len(table)))
    places = np.linspace(0, len(numbers) - 1, min(len(numbers), _LOOKED_AT)).astype(np.int64)
    return [int(number) for number in numbers[places]]


def _shape_of(entry: FileInput, path: Path) -> tuple[int, ...]:
    if isinstance(entry, SeriesInput) and not is_numpy(path):  # a text states no shape
        return tuple(entry.steps(path).shape)
    return entry.stated_shape(path)


def _kind_of_arrays(column: str, shapes: Sequence[tuple[int, ...]]) -> str:
    """What arrays are by their dimensions: (T,) and (T, C) series, (C, H, W) images, (D, H, W) volumes."""
    [(dimensions, _)] = Counter(map(len, shapes)).most_common(1)
    if dimensions == 1:
        is_vector = len(set(shapes)) == 1 and shapes[0][0] <= _LONGEST_VECTOR
        is_named = any(word in column.lower() for word in _VECTOR_NAMES)
        return "array" if is_vector or is_named else "series"
    if dimensions == 2:
        return "series"
    is_image = dimensions == 3 and all(shape[0] <= _MOST_CHANNELS for shape in shapes)
    return "array" if is_image else "volume"
