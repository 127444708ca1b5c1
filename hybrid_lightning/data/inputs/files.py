"""Inputs whose cells are paths of files, one in a cell or several."""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.inputs.base import Input, Value, check_count
from hybrid_lightning.data.inputs.cells import several_per_cell
from hybrid_lightning.data.inputs.missing_files import why_missing
from hybrid_lightning.data.inputs.moments import MOST_FITTED, Moments, spread
from hybrid_lightning.data.shard_members import closing_member
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.data.transforms import Step, apply_steps, make_steps
from hybrid_lightning.errors import ConfigError, at
from hybrid_lightning.files import is_regular_file


class FileInput(Input):
    """A file per sample, which is read when its batch is made: `load` gives its tensor.

    Files are numbered; the number of a file is its row, unless cells have several.
    """

    separator: str | None = None
    """What stands between the paths in a cell; None if a cell has one."""
    most = 1  # paths in a cell

    def __init__(self, key: str, column: str, train: Any = (), eval: Any = ()) -> None:
        super().__init__(key, [column])
        self.transforms: dict[str, list[Step]] = {}
        for split, steps in (("train", train), ("eval", eval)):
            with at(split):
                self.transforms[split] = make_steps(steps)

    def fit(self, table: Table, rows: Array) -> dict[str, Any]:
        """``mean`` and ``std`` of each channel, where files are standardized."""
        return fit_files([self], table, rows)

    @property
    def is_standardized(self) -> bool:
        """Whether `fit` has to read files."""
        return False

    def steps(self, path: Path) -> Array:
        """What is standardized of a file, `(T, C)`."""
        raise NotImplementedError

    def bind(self, table: Table) -> None:
        """Takes the column of paths."""
        self._members = table.members.get(self.columns[0])
        if self.separator is None:
            self._cells = table.texts(self.columns[0])
            self._rows: Array | None = None
        else:
            with at(self.where):
                self._cells, self._rows = several_per_cell(table, self.columns[0], self.separator, self.most)

    def empty(self, table: Table) -> Array:
        """Rows without a file, `(rows,)` bool."""
        if self.separator is None:
            return super().empty(table)
        self.bind(table)
        assert self._rows is not None
        counts = np.bincount(self._rows, minlength=len(table))
        return np.asarray(counts == 0)

    @property
    def count(self) -> int:
        """How many numbers there are of files."""
        return len(self._cells)

    def numbers(self, rows: Array) -> Array:
        """The numbers of the files of some rows `(n,)`, which are sorted."""
        if self._rows is None:
            is_filled = np.asarray(self._cells.is_valid(), dtype=bool)
            return np.asarray(rows[is_filled[rows]])
        return np.flatnonzero(np.isin(self._rows, rows))

    def numbers_of(self, row: int) -> range:
        """The numbers of a row's files."""
        if self._rows is None:
            return range(row, row + 1)
        first, end = np.searchsorted(self._rows, (row, row + 1))
        return range(int(first), int(end))

    def rows_of(self, numbers: Array) -> Array:
        """The row of each of some files."""
        return numbers if self._rows is None else self._rows[numbers]

    def row_of(self, number: int) -> int:
        """The row of a file."""
        return number if self._rows is None else int(self._rows[number])

    def cell(self, number: int) -> str:
        """The path as the manifest has it."""
        return str(self._cells[number].as_py())

    def is_there(self, path: Path) -> bool:
        """Whether a path names something that can be read."""
        return is_regular_file(path)

    @abstractmethod
    def load(self, path: Path, training: bool) -> Tensor:
        """The tensor of one file, before transforms; any exception is reported as the reason why it has none."""

    @abstractmethod
    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """The shape that a file states, from its first bytes; any exception is reported as in `load`."""

    def remarks(self, path: Path, value: Value) -> list[str]:
        """What is odd about a file or does not reach a batch, for the command check; `value` was read of it."""
        return ["hold one value alone"] if is_constant(value) else []

    def read(self, number: int, training: bool) -> Value:
        """The transformed tensor of one file."""
        with self.file_of(number) as path:
            value = self.load(path, training)
        split = "train" if training else "eval"
        try:
            with at(f"{self.where}.{split}"):
                return apply_steps(value, self.transforms[split])
        except ConfigError as error:
            raise ConfigError(f"{error} (row {self.row_of(number)}: {self.cell(number)!r})") from error

    def peek(self, number: int) -> tuple[int, ...]:
        """The shape that a file states."""
        with self.file_of(number) as path:
            return self.stated_shape(path)

    def collate(self, values: Sequence[Value | None], placeholder: Value) -> Value:
        """Tensors `(...)` of one shape → `(B, ...)`."""
        known = [value for value in values if isinstance(value, Tensor)]
        shapes = {tuple(value.shape) for value in known}
        if len(shapes) > 1:
            raise ConfigError(
                f"samples of one batch have different shapes: {sorted(shapes)[:4]}. Give them one size.", self.where
            )
        assert isinstance(placeholder, Tensor)
        # a known value has the type of this batch: files of one input may differ in it
        zeros = torch.zeros_like(known[0] if known else placeholder)
        joined = [value if isinstance(value, Tensor) else zeros for value in values]
        return torch.stack(joined)

    def path(self, number: int) -> Path:
        """Where a file is; of a member of a shard, what stands for it."""
        if self._members is None:
            return Path(self.folder, self.cell(number))
        return self._members.path(self.row_of(number))

    @contextmanager
    def file_of(self, number: int) -> Iterator[Path]:
        """The path of a file; an exception in the block becomes an error that names its row and the cell."""
        row, cell = self.row_of(number), self.cell(number)
        if self._members is None and not self.is_there(self.path(number)):
            folder = "" if Path(cell).is_absolute() else f" in {self.folder!r}"
            reason = f"there is no such file{folder}.{why_missing(self.folder, cell)}"
            raise self.cell_error(row, cell, reason)
        try:
            with at(self.where), closing_member(self.path(number)) as path:
                yield path
        except ConfigError:
            raise
        except Exception as error:  # libraries raise any exception on a broken file
            raise self.cell_error(row, cell, f"cannot be read: {error or type(error).__name__}") from error


def fit_files(inputs: Collection[FileInput], table: Table, rows: Array) -> dict[str, Any]:
    """Statistics of inputs that are standardized alike, over the files of some rows; nothing for others."""
    moments = Moments()
    where = ""
    for entry in inputs:
        if not entry.is_standardized:
            return {}
        where = entry.where
        entry.bind(table)
        for number in spread(entry.numbers(rows), MOST_FITTED // len(inputs)):
            with entry.file_of(number) as path:
                moments.add(entry.steps(path))
    return moments.statistics(where)


def is_constant(value: Value) -> bool:
    """Whether all numbers are the same, of several."""
    tensor = value if isinstance(value, Tensor) else value.get("values")
    return tensor is not None and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())


def check_size(value: Any, names: Sequence[str]) -> list[int] | None:
    """The option ``size``: one side per name; a single number stands for all, None stays None."""
    if value is None:
        return None
    sides = [value] * len(names) if isinstance(value, int) else value
    if not isinstance(sides, list | tuple) or len(sides) != len(names):
        raise ConfigError(f"{value!r} is neither a number nor [{', '.join(names)}].", "size")
    return [check_count(side, "size") for side in sides]
