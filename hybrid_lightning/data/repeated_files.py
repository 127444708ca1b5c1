"""Files that stand in several rows of a manifest, under one name or as copies."""

import hashlib
from pathlib import Path

import numpy as np

from hybrid_lightning.data.inputs.dicom_series import files_of_series
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.splits import places_of
from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import counted

_START = 2**16  # bytes that tell nearly all files of one size apart

Digest = tuple[int, bytes]


def repeated_files(entry: FileInput, numbers: Array, split: Array, labels: Array | None) -> list[str]:
    """A line about the files of an input, given by their numbers, that stand in several rows; none if all differ."""
    groups: list[Array] = []
    names: list[list[str]] = []
    for files in _numbers_by_content(entry, numbers).values():
        own = np.unique(entry.rows_of(np.array(files)))
        if len(own) > 1:
            groups.append(own)
            names.append(sorted({entry.cell(file) for file in files}))
    if not groups:
        return []
    shared = [place for place, own in enumerate(groups) if len(np.unique(split[own])) > 1]
    torn: list[int] = []
    if labels is not None:
        torn = [place for place, own in enumerate(groups) if len(np.unique(labels[own], axis=0)) > 1]
    first = (*shared, *torn, 0)[0]
    line = f"{entry.where}: {counted(len(groups), 'file')} {'stands' if len(groups) == 1 else 'stand'} in several rows"
    if shared:
        line += f", {len(shared)} of them in more than one split, so that a model is tested on what it has seen"
    if torn:
        line += f", {len(torn)} of them with different labels"
    name, *others = names[first]
    copies = f", which have equal bytes as {others[0]!r}" if others else ""
    return [f"{line}; such as {name!r}{copies} ({places_of(groups[first], split)})"]


def _numbers_by_content(entry: FileInput, numbers: Array) -> dict[Digest, list[int]]:
    """Content of a file → its numbers. Only files of one size are read, and only the first bytes of most."""
    paths: dict[Path, list[int]] = {}
    for number in numbers.tolist():
        path = Path(entry.folder, entry.cell(number)).resolve()
        paths.setdefault(path, []).append(number)
    by_size: dict[Digest, list[Path]] = {}
    for path in paths:
        size = sum(file.stat().st_size for file in _files_in(path))
        by_size.setdefault((size, b""), []).append(path)
    by_start = _split(by_size, _START)
    by_content = _split(by_start, None)
    found = {}
    for digest, alike in by_content.items():
        found[digest] = sorted(number for path in alike for number in paths[path])
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
