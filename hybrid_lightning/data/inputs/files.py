"""Inputs whose cells are paths of files, one per sample."""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid_lightning.data.inputs.base import Input, Value, check_count
from hybrid_lightning.data.inputs.missing_files import why_missing
from hybrid_lightning.data.inputs.moments import MOST_FITTED, Moments, spread
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.data.transforms import Step, apply_steps, make_steps
from hybrid_lightning.errors import ConfigError, at
from hybrid_lightning.files import is_regular_file


class FileInput(Input):
    """A file per sample, which is read when its batch is made: `load` gives its tensor."""

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
        self._cells = table.texts(self.columns[0])

    def cell(self, row: int) -> str:
        """The path as the manifest has it."""
        return str(self._cells[row].as_py())

    @abstractmethod
    def load(self, path: Path, training: bool) -> Tensor:
        """The tensor of one file, before transforms; any exception is reported as the reason why it has none."""

    @abstractmethod
    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """The shape that a file states, from its first bytes; any exception is reported as in `load`."""

    def remarks(self, path: Path, value: Value) -> list[str]:
        """What is odd about a file or does not reach a batch, for the command check; `value` was read of it."""
        return ["hold one value alone"] if is_constant(value) else []

    def read(self, row: int, training: bool) -> Value:
        """The transformed tensor of one row's file."""
        with self.file_of(row) as path:
            value = self.load(path, training)
        split = "train" if training else "eval"
        try:
            with at(f"{self.where}.{split}"):
                return apply_steps(value, self.transforms[split])
        except ConfigError as error:
            raise ConfigError(f"{error} (row {row}: {self.cell(row)!r})") from error

    def peek(self, row: int) -> tuple[int, ...]:
        """The shape that the row's file states."""
        with self.file_of(row) as path:
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

    @contextmanager
    def file_of(self, row: int) -> Iterator[Path]:
        """The path of a row's file; an exception in the block becomes an error that names the row and the cell."""
        cell = self.cell(row)
        path = Path(self.folder, cell)
        if not is_regular_file(path):
            folder = "" if Path(cell).is_absolute() else f" in {self.folder!r}"
            reason = f"there is no such file{folder}.{why_missing(self.folder, cell)}"
            raise self.cell_error(row, cell, reason)
        try:
            with at(self.where):
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
        present = rows[~entry.empty(table)[rows]]
        for row in spread(present, MOST_FITTED // len(inputs)):
            with entry.file_of(row) as path:
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
