"""Several files per sample that are of one kind, such as a photo of the front and one of the back."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hybrid_lightning.data.inputs.base import Input, check_count
from hybrid_lightning.data.inputs.cells import check_separator
from hybrid_lightning.data.inputs.files import FileInput, fit_files
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.data.tensors import FILES_POOL, FILES_POOLS, PRESENT, map_tensors
from hybrid_lightning.errors import ConfigError, check_choice

MOST_IN_CELL = 64  # files in a cell, unless the config allows more: a batch has as many times its memory


class SeveralFiles(Input):
    """Several files per sample, which the part that reads them encodes with the same weights and then pools.

    A batch has a dict: ``values`` `(B, K, ...)` for at most K files of a sample, what else a file of this kind has,
    such as ``mask``, and ``present`` `(B, K)` bool, False where there is no file, whose values are zeros. What is
    standardized gets the same mean and deviation in all files.

    Args:
        key: Key in the batch.
        columns: Names of the columns.
        pool: How the features of a sample's files become those of the sample: ``mean`` or ``max`` of those that are
            there.
    """

    def __init__(self, key: str, columns: list[str], pool: Any) -> None:
        super().__init__(key, columns)
        self.pool = check_choice(pool, "pool", FILES_POOLS, "pooling")

    @property
    @abstractmethod
    def _first(self) -> FileInput:
        """The input of a file, by which those of a batch are joined."""

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """Those of a single file, and the pooling."""
        return {**self._first.inferred_arguments, FILES_POOL: self.pool}

    def collate(self, values: Sequence[Any], placeholder: Any) -> dict[str, Tensor]:
        """All files as one batch, which is then parted by samples."""
        count = max(len(of_sample) if of_sample is not None else len(self.columns) for of_sample in values)
        files: list[Any] = []
        for of_sample in values:
            own = of_sample or []
            files += [*own, *[None] * (count - len(own))]
        if isinstance(placeholder, list):
            placeholder = next(value for value in placeholder if value is not None)
        joined = self._first.collate(files, placeholder)
        named = joined if isinstance(joined, dict) else {"values": joined}
        named = {**named, PRESENT: torch.tensor([value is not None for value in files])}
        parted = map_tensors(lambda tensor: tensor.reshape(-1, count, *tensor.shape[1:]), named)
        assert isinstance(parted, dict)
        return parted


class FileSet(SeveralFiles):
    """A file in each of several columns. A sample lacks the input if all its cells are empty.

    Args:
        key: Key in the batch.
        files: Column → input that reads it.
        pool: See `SeveralFiles`.
    """

    def __init__(self, key: str, files: Mapping[str, FileInput], pool: Any = "mean") -> None:
        super().__init__(key, list(files), pool)
        self._files = dict(files)
        for file in files.values():
            file.where = self.where

    @property
    def members(self) -> dict[str, Input]:
        """``key.column`` → the input of that column."""
        return {file.key: file for file in self._current_files()}

    def _current_files(self) -> list[FileInput]:
        """The inputs of single columns, with the folder and the statistics that were given to the set."""
        for file in self._files.values():
            file.folder = self.folder
            file.statistics = self.statistics
        return list(self._files.values())

    @property
    def _first(self) -> FileInput:
        return self._files[self.columns[0]]

    def fit(self, table: Table, rows: Array) -> dict[str, Any]:
        """Statistics over the files of all columns."""
        return fit_files(self._current_files(), table, rows)

    def bind(self, table: Table) -> None:
        """Takes the columns of paths."""
        self._is_filled = {column: ~table.empty(column) for column in self.columns}
        for file in self._current_files():
            file.bind(table)

    def read(self, row: int, training: bool) -> Any:
        """The value of each column's file; None where there is none."""
        values = []
        for column, file in self._files.items():
            is_filled = bool(self._is_filled[column][row])
            values.append(file.read(row, training) if is_filled else None)
        return values


class FileList(SeveralFiles):
    """Several files in each cell of a column, from none to ``most``; a sample lacks the input if its cell has none.

    Args:
        key: Key in the batch.
        file: Input that reads the column.
        separator: What stands between two paths in a cell.
        most: Files in a cell at most; more are an error.
        pool: See `SeveralFiles`.
    """

    def __init__(self, key: str, file: FileInput, separator: Any, most: Any = MOST_IN_CELL, pool: Any = "mean") -> None:
        super().__init__(key, file.columns, pool)
        self._file = file
        file.separator = check_separator(separator)
        file.most = check_count(most, "most")

    @property
    def _first(self) -> FileInput:
        self._file.folder = self.folder
        self._file.statistics = self.statistics
        return self._file

    @property
    def members(self) -> dict[str, Input]:
        """The input that reads the files."""
        return {self.key: self._first}

    def empty(self, table: Table) -> Array:
        """Rows whose cell names no file, `(rows,)` bool."""
        return self._first.empty(table)

    def fit(self, table: Table, rows: Array) -> dict[str, Any]:
        """Statistics over all files of the rows."""
        return fit_files([self._first], table, rows)

    def bind(self, table: Table) -> None:
        """Takes the column of paths."""
        self._first.bind(table)

    def read(self, row: int, training: bool) -> Any:
        """The value of each file of the row, as many as it has."""
        return [self._file.read(number, training) for number in self._file.numbers_of(row)]


def check_columns(columns: Sequence[Any]) -> None:
    """Raises `ConfigError` unless it names different columns, and at least one."""
    if not columns:
        raise ConfigError("there is no column in the list. Name the columns of the files.")
    if len(set(map(str, columns))) < len(columns):
        raise ConfigError(f"{list(columns)!r} names a column twice.")
