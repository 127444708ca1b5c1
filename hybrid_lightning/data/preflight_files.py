"""Checks of the files of a manifest: which cannot be used, and which shapes they have."""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybrid_lightning.data.inputs.audio import AudioInput
from hybrid_lightning.data.inputs.base import Value
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.inputs.images import ImageInput
from hybrid_lightning.data.inputs.numpy_files import is_numpy
from hybrid_lightning.data.inputs.series import SeriesInput
from hybrid_lightning.data.inputs.volumes import VolumeInput
from hybrid_lightning.data.splits import TRAIN, Array
from hybrid_lightning.errors import ConfigError

Shape = tuple[int, ...]
_THREADS = 8
_HEADERS, _FILES = 64, 2
"""Rows that a thread takes at once: headers are read much faster than whole files."""
_WAITING = 16
"""Such portions per thread that are handed out at once, so that a long manifest takes no memory."""
_COMPARED = 20
"""Different shapes of which a file is read to tell whether they differ in a batch."""


class Problem(NamedTuple):
    """What is wrong with a row.

    Args:
        row: Its number.
        key: Key of the batch, or ``id``.
        cell: The file as the manifest names it; empty if it is about none.
        reason: In words.
    """

    row: int
    key: str
    cell: str
    reason: str


class Seen(NamedTuple):
    """What a file shows: the shape that it states, the shape of its value if it was read, or why it cannot be used."""

    stored: Shape = ()
    value: Shape = ()
    decisive: Shape = ()
    reason: str = ""


class Extent:
    """The smallest and the largest sides of shapes, by their number of dimensions."""

    def __init__(self) -> None:
        self._sides: dict[int, tuple[list[int], list[int]]] = {}

    def add(self, shape: Shape) -> None:
        """Takes a shape in; an empty one says nothing."""
        if not shape:
            return
        low, high = self._sides.setdefault(len(shape), (list(shape), list(shape)))
        for axis, side in enumerate(shape):
            low[axis], high[axis] = min(low[axis], side), max(high[axis], side)

    def __str__(self) -> str:
        return " or ".join(
            " × ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in zip(low, high, strict=True))
            for low, high in self._sides.values()
        )


class FileFindings:
    """What was found about the files of one input.

    Args:
        entry: The input, bound to the manifest.
        rows: Number of rows of the manifest.
    """

    def __init__(self, entry: FileInput, rows: int) -> None:
        self.entry = entry
        self.problems: list[Problem] = []
        self.stored, self.values = Extent(), Extent()
        """Shapes as files state them, and of what a sample adds to a batch; the latter empty unless files were read."""
        self._shapes: dict[Shape, int] = {}
        self._numbers = np.full(rows, -1, dtype=np.int32)
        """Of the shape of each row that has to be the same in a batch; -1 where it is not known."""

    def add(self, row: int, seen: Seen) -> None:
        """Takes in what the file of a row shows."""
        if seen.reason:
            self.refuse(row, seen.reason)
            return
        self.stored.add(seen.stored)
        self.values.add(seen.value)
        if seen.decisive:
            self._numbers[row] = self._shapes.setdefault(seen.decisive, len(self._shapes))

    def refuse(self, row: int, reason: str) -> None:
        """Notes that the file of a row cannot be used."""
        self.problems.append(Problem(row, self.entry.key, self.entry.cell(row), reason))
        self._numbers[row] = -1

    def compare(self, split: Array) -> None:
        """Refuses the rows whose values cannot be joined with those of most rows of their split.

        Shapes that files state are a suspicion only, as transforms may make them equal: one file of each is read.

        Args:
            split: Of each row.
        """
        for code in np.unique(split):
            groups = self._by_shape(np.flatnonzero(split == code), training=code == TRAIN)
            usual = max(groups, key=lambda shape: len(groups[shape]), default=())
            for shape, rows in groups.items():
                for row in rows if shape != usual else ():
                    self.refuse(row, f"its shape {_text(shape)} is not that of most, {_text(usual)}")

    def _by_shape(self, rows: Array, training: bool) -> dict[Shape, list[int]]:
        """Shape that has to be the same → its rows; empty if nothing is suspicious."""
        rows = rows[self._numbers[rows] >= 0]
        numbers, firsts, counts = np.unique(self._numbers[rows], return_index=True, return_counts=True)
        groups: dict[Shape, list[int]] = {}
        for place in np.argsort(-counts, kind="stable")[: _COMPARED if len(numbers) > 1 else 0]:
            first = int(rows[firsts[place]])
            seen = look(self.entry, first, probe=False, read=True, training=training)
            if seen.reason:
                self.refuse(first, seen.reason)
            else:
                groups.setdefault(seen.decisive, []).extend(rows[self._numbers[rows] == numbers[place]].tolist())
        return groups


def check_files(
    entry: FileInput, rows: Array, total: int, decode: bool, advance: Callable[[int], object]
) -> FileFindings:
    """Looks at files of an input, with several threads and in bounded memory.

    Args:
        entry: The input, bound to the manifest; it need not be fitted.
        rows: Rows that have a file.
        total: Number of rows of the manifest.
        decode: Whether files are read as a whole, and not only the first bytes of each.
        advance: Called with the number of rows looked at since the last call.
    """
    entry = without_statistics(entry)
    findings = FileFindings(entry, total)
    size = _FILES if decode else _HEADERS
    handed = size * _THREADS * _WAITING
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(rows), handed):
            some = rows[start : start + handed].tolist()
            portions = [some[place : place + size] for place in range(0, len(some), size)]
            failed = []
            for portion, shown in zip(portions, pool.map(partial(_look, entry, decode), portions), strict=True):
                for row, seen in zip(portion, shown, strict=True):
                    if seen.reason:
                        failed.append(row)
                    else:
                        findings.add(row, seen)
                advance(len(portion))
            for row in failed:  # again and alone: Python's parser of literals, in numpy's headers, may fail in threads
                findings.add(row, look(entry, row, read=decode))
    if not decode:
        _try_one(findings, rows)
    return findings


def _try_one(findings: FileFindings, rows: Array) -> None:
    """Reads the first file that seems to be good, for the shape in a batch."""
    bad = {problem.row for problem in findings.problems}
    row = next((int(row) for row in rows if int(row) not in bad), None)
    if row is None:
        return
    seen = look(findings.entry, row, probe=False, read=True)
    if seen.reason:
        findings.refuse(row, seen.reason)
    findings.values.add(seen.value)


def without_statistics(entry: FileInput) -> FileInput:
    """The input as it can be read before it is fitted: a series that is not standardized."""
    if not isinstance(entry, SeriesInput) or not entry.standardize:
        return entry
    plain = copy.copy(entry)
    plain.standardize = False
    return plain


def _look(entry: FileInput, decode: bool, rows: Sequence[int]) -> list[Seen]:
    return [look(entry, row, read=decode) for row in rows]


def look(entry: FileInput, row: int, probe: bool = True, read: bool = False, training: bool = False) -> Seen:
    """What the file of a row shows.

    Args:
        entry: The input.
        row: The row.
        probe: Whether its first bytes are asked for its shape.
        read: Whether it is read as a whole.
        training: Whether it is read with the transforms of training.

    Raises:
        ConfigError: If something is wrong that is not about this file, such as a missing library.
    """
    try:
        stored = entry.peek(row) if probe else ()
        if not read:
            return Seen(stored, decisive=_decisive(entry, row, stored))
        return Seen(stored, *_shapes_of(entry.read(row, training)))
    except ConfigError as error:
        return Seen(reason=_reason(entry, row, error))


def _reason(entry: FileInput, row: int, error: ConfigError) -> str:
    text = str(error)
    if f"row {row}: " not in text:
        raise error
    return text.removeprefix(f"{entry.where}: row {row}: {entry.cell(row)!r}: ")


def _shapes_of(value: Value) -> tuple[Shape, Shape]:
    """The shape of a value, and what of it has to be the same in a batch; of steps all but their number."""
    if isinstance(value, dict):
        shape = tuple(next(iter(value.values())).shape)
        return shape, shape[1:]
    return tuple(value.shape), tuple(value.shape)


def _decisive(entry: FileInput, row: int, stored: Shape) -> Shape:
    """What of a stated shape has to be the same in all files, unless transforms make it so; empty if nothing has."""
    if isinstance(entry, ImageInput):
        return () if entry.size else stored[1:]
    if isinstance(entry, SeriesInput):
        return () if not stored else stored[1:] or (1,)
    if isinstance(entry, AudioInput):
        return (1 if entry.channels == 1 else stored[0], 1 if entry.seconds else stored[1])
    if isinstance(entry, VolumeInput) and entry.size:
        return (stored[:-3] if is_numpy(Path(entry.cell(row))) else stored[3:]) or (1,)
    return stored


def _text(shape: Shape) -> str:
    return " × ".join(map(str, shape))
