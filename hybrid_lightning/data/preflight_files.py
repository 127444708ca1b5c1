"""Checks of the files of a manifest: which cannot be used, and which shapes they have."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from hybrid_lightning.data.inputs.audio import AudioInput
from hybrid_lightning.data.inputs.base import shortened_cell
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.inputs.images import ImageInput
from hybrid_lightning.data.inputs.series import SeriesInput
from hybrid_lightning.data.inputs.volumes import VolumeInput, is_nifti
from hybrid_lightning.data.splits import TRAIN
from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import ConfigError

Shape = tuple[int, ...]
_THREADS = 8
_PORTION = 16
"""Rows that a thread takes at once; handing them out one by one takes as long as reading their first bytes."""
_WAITING = 4096  # rows that are handed out to the threads at once, so that a long manifest takes no memory
_COMPARED = 20  # different shapes of which a file is read to find whether they differ in a batch


class Problem(NamedTuple):
    """What is wrong with a row."""

    row: int
    key: str  # of the batch, or "id"
    cell: str  # the file as the manifest names it; empty if it is about none
    reason: str


class Found(NamedTuple):
    """What was found in a file."""

    stored: Shape = ()  # as the file states it
    value: Shape = ()  # in a batch; empty unless the file was read
    joined: Shape = ()  # what has to be the same in all samples of a batch; empty if nothing has
    reason: str = ""  # why the file cannot be used; empty if it can
    remarks: tuple[str, ...] = ()  # what is odd about it, if the file was read


class Extent:
    """The smallest and the largest sides of shapes, by their number of dimensions."""

    def __init__(self) -> None:
        self._sides: dict[int, tuple[Shape, Shape]] = {}

    def add(self, shape: Shape) -> None:
        """Takes a shape in; an empty one is not known."""
        if shape:
            low, high = self._sides.get(len(shape), (shape, shape))
            self._sides[len(shape)] = tuple(map(min, low, shape)), tuple(map(max, high, shape))

    def __str__(self) -> str:
        texts = []
        for low, high in self._sides.values():
            sides = [f"{a}" if a == b else f"{a} to {b}" for a, b in zip(low, high, strict=True)]
            texts.append(" × ".join(sides))
        return " or ".join(texts)


class FileFindings:
    """What was found about the files of one input."""

    def __init__(self, entry: FileInput, files: Array) -> None:
        self.entry = entry
        self.files = files  # their numbers
        self.problems: list[Problem] = []
        self.remarks: dict[str, list[int]] = {}  # what is odd → numbers of such files
        self.stored, self.values = Extent(), Extent()
        """Shapes as files state them, and of what a sample adds to a batch; the latter empty unless files were read."""
        self._numbers: dict[Shape, int] = {}
        # Of the shape that has to be the same in a batch; -1 where it is not known. Numbers take little memory.
        self._shape_of = np.full(entry.count, -1, dtype=np.int32)

    def add(self, file: int, found: Found) -> None:
        """Takes in what was found in a file."""
        if found.reason:
            self.refuse(file, found.reason)
            return
        for remark in found.remarks:
            self.remarks.setdefault(remark, []).append(file)
        self.stored.add(found.stored)
        self.values.add(found.value)
        if found.joined:
            self._shape_of[file] = self._numbers.setdefault(found.joined, len(self._numbers))

    def refuse(self, file: int, reason: str) -> None:
        """Notes that a file cannot be used."""
        row, cell = self.entry.row_of(file), self.entry.cell(file)
        self.problems.append(Problem(row, self.entry.key, cell, reason))
        self._shape_of[file] = -1

    def compare(self, split: Array) -> None:
        """Refuses the files whose values cannot be joined with those of most in their row's split `(rows,)`."""
        # Stated shapes are a suspicion only, as transforms may make them equal: one file of each is read.
        for code in np.unique(split):
            files_by_shape = self._by_shape(np.flatnonzero(split == code), training=code == TRAIN)
            usual = max(files_by_shape, key=lambda shape: len(files_by_shape[shape]), default=())
            for shape, files in files_by_shape.items():
                if shape == usual:
                    continue
                for file in files:
                    self.refuse(file, f"its shape {_text(shape)} is not that of most, {_text(usual)}")

    def _by_shape(self, rows: Array, training: bool) -> dict[Shape, list[int]]:
        """Shape that has to be the same → files of these rows; empty if nothing is suspicious."""
        files = self.entry.numbers(rows)
        files = files[self._shape_of[files] >= 0]
        own_shapes = self._shape_of[files]
        shapes, firsts, counts = np.unique(own_shapes, return_index=True, return_counts=True)
        files_by_shape: dict[Shape, list[int]] = {}
        if len(shapes) == 1:
            return files_by_shape
        most_frequent = np.argsort(-counts, kind="stable")[:_COMPARED]
        for place in most_frequent:
            first = int(files[firsts[place]])
            found = inspect(self.entry, first, True, training)
            if found.reason:
                self.refuse(first, found.reason)
            else:
                alike = files[own_shapes == shapes[place]]
                files_by_shape.setdefault(found.joined, []).extend(alike.tolist())
        return files_by_shape


def check_files(entry: FileInput, files: Array, decode: bool, advance: Callable[[int], object]) -> FileFindings:
    """Checks files of an input, given by their numbers, with several threads and in bounded memory."""
    if isinstance(entry, SeriesInput):
        entry.is_fitted = False
    findings = FileFindings(entry, files)
    check = partial(inspect, entry, decode=decode)
    failed, bad = [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(files), _WAITING):
            some = files[start : start + _WAITING].tolist()
            portions = [some[place : place + _PORTION] for place in range(0, len(some), _PORTION)]
            results = pool.map(lambda portion: [check(file) for file in portion], portions)
            for file, found in zip(some, chain.from_iterable(results), strict=True):
                if found.reason:
                    failed.append(file)
                else:
                    findings.add(file, found)
                advance(1)
    for file in failed:  # again and alone: Python's parser of literals, in numpy's headers, may fail in threads
        found = check(file)
        findings.add(file, found)
        if found.reason:
            bad.append(file)
    if not decode:
        # the first file that seems to be good is read for the shape in a batch
        good = np.setdiff1d(files, bad)
        for file in good[:1].tolist():
            found = inspect(entry, file, True)
            if found.joined == found.value:  # otherwise others may have another number of steps
                findings.values.add(found.value)
            if found.reason:
                findings.refuse(file, found.reason)
    return findings


def inspect(entry: FileInput, file: int, decode: bool, training: bool = False) -> Found:
    """The shape that a file states in its first bytes and, with `decode`, that of its value."""
    try:
        stored = entry.peek(file)
        value = entry.read(file, training) if decode else None
        remarks: tuple[str, ...] = ()
        if value is not None:
            with entry.file_of(file) as path:
                remarks = tuple(entry.remarks(path, value))
    except ConfigError as error:
        return Found(reason=_reason(entry, file, error))
    if value is None:
        return Found(stored, joined=_joined(entry, file, stored))
    if isinstance(value, Tensor):
        shape = tuple(value.shape)
        return Found(stored, shape, shape, remarks=remarks)
    shape = tuple(next(iter(value.values())).shape)
    return Found(stored, shape, shape[1:], remarks=remarks)  # steps are padded


def _reason(entry: FileInput, file: int, error: ConfigError) -> str:
    """What is wrong with the file; raises the error if it is not about the file of this row."""
    text, row = str(error), entry.row_of(file)
    if f"row {row}: " not in text:
        raise error
    start = f"row {row}: {shortened_cell(entry.cell(file))}: "
    return text.partition(start)[2] or text


def _joined(entry: FileInput, file: int, stored: Shape) -> Shape:
    """What of a stated shape has to be the same in all files, unless transforms make it so; empty if nothing has."""
    if isinstance(entry, ImageInput):  # which is read with the channels that its options name
        return () if entry.size else stored[1:]
    if isinstance(entry, SeriesInput):  # without its steps, which are padded
        return () if not stored else stored[1:] or (1,)
    if isinstance(entry, AudioInput):
        return (1 if entry.channels == 1 else stored[0], 1 if entry.seconds else stored[1])
    if isinstance(entry, VolumeInput) and entry.size:
        # channels come last in files of NIfTI and first in all others
        return (stored[3:] if is_nifti(Path(entry.cell(file))) else stored[:-3]) or (1,)
    return stored


def _text(shape: Shape) -> str:
    return " × ".join(map(str, shape))
