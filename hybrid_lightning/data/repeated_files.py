"""Files that stand in several rows of a manifest, under one name or as copies."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybrid_lightning.data.inputs.dicom_series import files_of_series
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.splits import places_of
from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import counted

_START = 2**16  # bytes that tell nearly all files of one size apart

Digest = tuple[int, bytes]
Place = tuple[int, int]
"""The position of a column among those that are compared, and the number of a file in it."""


def repeated_files(columns: Sequence[tuple[FileInput, Array]], split: Array, labels: Array | None) -> list[str]:
    """Lines about the files of inputs of one kind, each given with their numbers, that stand in several rows.

    One line for each column, and for each set of columns that share files; none if all files differ.
    """
    found: dict[tuple[int, ...], list[_Repeated]] = {}
    for places in _places_by_content(columns).values():
        one = _repeated(columns, places)
        if len(one.rows) > 1:
            found.setdefault(tuple(sorted({column for column, _ in places})), []).append(one)
    lines = []
    for own, files in found.items():
        where = " and ".join([f"data.inputs.{columns[column][0].key}" for column in own])
        lines.append(f"{where}: {_told(files, split, labels)}")
    return lines


class _Repeated(NamedTuple):
    """A file that stands in several cells."""

    rows: Array
    names: list[str]  # by which cells call it


def _repeated(columns: Sequence[tuple[FileInput, Array]], places: Sequence[Place]) -> _Repeated:
    rows = {columns[column][0].row_of(number) for column, number in places}
    names = {columns[column][0].cell(number) for column, number in places}
    return _Repeated(np.array(sorted(rows)), sorted(names))


def _told(files: Sequence[_Repeated], split: Array, labels: Array | None) -> str:
    """How many files of a column, or of several, stand in several rows, and the worst of them."""
    shared = [one for one in files if len(np.unique(split[one.rows])) > 1]
    torn: list[_Repeated] = []
    if labels is not None:
        torn = [one for one in files if len(np.unique(labels[one.rows], axis=0)) > 1]
    line = f"{counted(len(files), 'file')} {'stands' if len(files) == 1 else 'stand'} in several rows"
    if shared:
        line += f", {len(shared)} of them in more than one split, so that a model is tested on what it has seen"
    if torn:
        line += f", {len(torn)} of them with different labels"
    first = (*shared, *torn, files[0])[0]
    name, *others = first.names
    copies = f", which have equal bytes as {others[0]!r}" if others else ""
    return f"{line}; such as {name!r}{copies} ({places_of(first.rows, split)})"


def _places_by_content(columns: Sequence[tuple[FileInput, Array]]) -> dict[Digest, list[Place]]:
    """Content of a file → where it is named. Only files of one size are read, and only the first bytes of most."""
    paths: dict[Path, list[Place]] = {}
    for column, (entry, numbers) in enumerate(columns):
        for number in numbers.tolist():
            path = entry.path(number).resolve()
            paths.setdefault(path, []).append((column, number))
    by_size: dict[Digest, list[Path]] = {}
    for path in paths:
        size = sum(file.stat().st_size for file in _files_in(path))
        by_size.setdefault((size, b""), []).append(path)
    by_start = _split(by_size, _START)
    by_content = _split(by_start, None)
    found = {}
    for digest, alike in by_content.items():
        found[digest] = sorted(place for path in alike for place in paths[path])
    return found


def _split(alike: dict[Digest, list[Path]], length: int | None) -> dict[Digest, list[Path]]:
    """Files that are alike so far, told apart by a digest of their first bytes; None reads all."""
    found: dict[Digest, list[Path]] = {}
    for (size, before), paths in alike.items():
        if len(paths) == 1:
            found[size, before + bytes(str(paths[0]), "utf-8", "surrogateescape")] = paths
            continue
        for path in paths:
            found.setdefault((size, _digest(path, length)), []).append(path)
    return found


def _files_in(path: Path) -> list[Path]:
    """A file itself, and what is read of a folder with a series."""
    return files_of_series(path) if path.is_dir() else [path]


def _digest(path: Path, length: int | None) -> bytes:
    if path.is_dir():  # slices may bear other names in the copy
        digests = sorted(_digest(file, length) for file in _files_in(path))
        return hashlib.blake2b(b"".join(digests)).digest()
    with path.open("rb") as file:
        if length is None:
            return hashlib.file_digest(file, "blake2b").digest()
        return hashlib.blake2b(file.read(length)).digest()
