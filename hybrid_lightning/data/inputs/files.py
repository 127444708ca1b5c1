"""Inputs whose cells are paths of files, one per sample."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from hybrid_lightning.data.inputs.base import Input, Value, cell_error
from hybrid_lightning.data.table import Table
from hybrid_lightning.data.transforms import make_transforms
from hybrid_lightning.errors import ConfigError


class FileInput(Input):
    """A file per sample, read into one tensor when it is asked for.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        column: Name of the column of paths.
        train: Transforms of each training sample, see `make_transforms`.
        eval: Transforms of each sample otherwise.
    """

    def __init__(self, key: str, where: str, column: str, train: Any = (), eval: Any = ()) -> None:
        super().__init__(key, [column], where)
        self._transforms = {
            True: make_transforms(train, f"{where}.train"),
            False: make_transforms(eval, f"{where}.eval"),
        }

    def bind(self, table: Table, folder: str) -> None:
        """Takes the column of paths."""
        table.require(self.columns[0], self.where)
        self.folder, self._cells = folder, table.texts(self.columns[0])

    def cell(self, row: int) -> str:
        """What stands in the manifest."""
        return str(self._cells[row].as_py())

    @abstractmethod
    def load(self, path: Path, training: bool) -> Tensor:
        """The tensor of one file, before transforms; any exception tells why it cannot be read."""

    @abstractmethod
    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """The shape that a file states, from its first bytes; any exception tells why it cannot be read."""

    def read(self, row: int, training: bool) -> Value:
        """The transformed tensor of one row's file."""
        with self.telling(row) as path:
            value = self.load(path, training)
        return self.transformed(value, row, training)

    def transformed(self, value: Tensor, row: int, training: bool) -> Tensor:
        """A sample after the transforms of its split; an error names the row."""
        try:
            return self._transforms[training](value)
        except ConfigError as error:
            raise ConfigError(f"{error} (row {row}: {self.cell(row)!r})") from error

    def peek(self, row: int) -> tuple[int, ...]:
        """The shape that the row's file states."""
        with self.telling(row) as path:
            return self.stated_shape(path)

    @contextmanager
    def telling(self, row: int) -> Iterator[Path]:
        """The path of a row's file; what goes wrong with it is told with the row and the cell."""
        cell = self.cell(row)
        try:
            yield Path(self.folder, cell)
        except ConfigError:
            raise
        except Exception as error:  # the libraries raise whatever they like on a broken file
            if not Path(self.folder, cell).is_file():
                place = "" if Path(cell).is_absolute() else f" in {self.folder!r}"
                raise cell_error(self.where, row, cell, f"there is no such file{place}.") from None
            raise cell_error(self.where, row, cell, f"cannot be read: {error or type(error).__name__}") from error


def spread(rows: Sequence[int], most: int) -> list[int]:
    """At most so many rows, evenly spaced, the first and the last among them."""
    count = min(len(rows), most)
    return [int(rows[round(i * (len(rows) - 1) / max(1, count - 1))]) for i in range(count)]
