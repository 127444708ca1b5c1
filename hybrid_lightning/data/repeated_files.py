"""Files that stand in several rows of a manifest, under one name or as copies."""

import hashlib
from pathlib import Path

import numpy as np

from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.splits import places_of
from hybrid_lightning.data.table import Array

_START = 2**16  # bytes that tell nearly all files of one size apart

Digest = tuple[int, bytes]


def repeated_files(entry: FileInput, rows: Array, split: Array, labels: Array | None) -> list[str]:
    """A line about the files of an input that stand in several of `rows`; none if all differ."""
    rows_of_file = _rows_by_content(entry, rows)
    groups = [np.array(own) for own in rows_of_file.values() if len(own) > 1]
    if not groups:
        return []
    shared = [own for own in groups if len(np.unique(split[own])) > 1]
    torn = [] if labels is None else [own for own in groups if len(np.unique(labels[own], axis=0)) > 1]
    first = (shared or torn or groups)[0]
    names = sorted({entry.cell(int(row)) for row in first})
    line = f"{entry.where}: {len(groups)} files stand in several rows"
    if shared:
        line += f", {len(shared)} of them in more than one split, so that a model is tested on what it has seen"
    if torn:
        line += f", {len(torn)} of them with different labels"
    copies = f", which have equal bytes as {names[1]!r}" if len(names) > 1 else ""
    return [f"{line}; such as {names[0]!r}{copies} ({places_of(first, split)})"]


def _rows_by_content(entry: FileInput, rows: Array) -> dict[Digest, list[int]]:
    """Content of a file → its rows. Only files of one size are read, and only the first bytes of most."""
    paths: dict[Path, list[int]] = {}
    for row in rows.tolist():
        path = Path(entry.folder, entry.cell(row)).resolve()
        paths.setdefault(path, []).append(row)
    by_size: dict[Digest, list[Path]] = {}
    for path in paths:
        by_size.setdefault((path.stat().st_size, b""), []).append(path)
    by_start = _split(by_size, _START)
    by_content = _split(by_start, None)
    found = {}
    for digest, alike in by_content.items():
        found[digest] = sorted(row for path in alike for row in paths[path])
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


def _digest(path: Path, length: int | None) -> bytes:
    with path.open("rb") as file:
        if length is None:
            return hashlib.file_digest(file, "blake2b").digest()
        return hashlib.blake2b(file.read(length)).digest()
