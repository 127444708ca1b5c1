"""What all kinds of input have in common: which columns they read, and what a batch gets from a row."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.errors import ConfigError, check_number

Value = Tensor | dict[str, Tensor]


class Input(ABC):
    """One key of the batches, from one or several columns of a manifest.

    Life: made from the config; `fit` on the training rows (or `statistics` taken from a checkpoint); then `bind` to a
    table, after which values can be read. Both get tables that have the `columns`. It can be pickled, and reads the
    same in any process.

    Errors of the options have their local place, as `at` surrounds the parser. All later ones begin with `where`, as
    they may occur in a worker process.
    """

    in_memory: ClassVar[bool] = False
    """True: `batch` gives the values of many rows at once. False: `read` gives those of one row, `collate` joins."""

    def __init__(self, key: str, columns: list[str]) -> None:
        self.key = key
        self.columns = columns
        self.where = f"data.inputs.{key}"
        self.statistics: dict[str, Any] = {}
        """What was fitted on the training rows, as plain data; goes into checkpoints."""
        self.folder = "."  # where relative paths start
        self.options: dict[str, Any] | None = None
        """What the config says of it, without transforms of training, if that is plain data; goes into checkpoints."""

    @property
    def text_columns(self) -> list[str]:
        """Columns that are read as text, so that 007 is not 7."""
        return self.columns

    def empty(self, table: Table) -> Array:
        """Rows in which this modality is missing, `(rows,)` bool: all its cells are empty."""
        empty: Array = np.logical_and.reduce([table.empty(column) for column in self.columns])
        return empty

    def fit(self, table: Table, rows: Array) -> dict[str, Any]:
        """Statistics of the training rows, as plain data; nothing by default."""
        return {}

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """Arguments that a part which reads this key may leave out, such as ``categories``; set once it is fitted."""
        return {}

    @property
    def members(self) -> "dict[str, Input]":
        """Name → input, for each of which files are checked; itself, unless it consists of others."""
        return {self.key: self}

    @abstractmethod
    def bind(self, table: Table) -> None:
        """Takes the columns of a table."""

    def batch(self, rows: Tensor) -> Value:
        """Values of rows, samples first; for inputs in memory. Those of rows that are missing have no meaning."""
        raise NotImplementedError

    def read(self, row: int, training: bool) -> Value:
        """The value of one row that is not missing; random transforms only if `training`."""
        raise NotImplementedError

    def collate(self, values: Sequence[Value | None], placeholder: Value) -> Value:
        """Joins what `read` gave to a batch, zeros for None (missing); `placeholder` is a value if all are None."""
        raise NotImplementedError

    def prefetch(self) -> list[str]:
        """Downloads what `bind` loads offline, such as a tokenizer; returns a line for each that is now on disk."""
        return []

    def cell_error(self, row: int, cell: str, reason: object) -> ConfigError:
        """An error about one cell of the manifest."""
        return ConfigError(f"row {row}: {shortened_cell(cell)}: {str(reason)[:400]}", self.where)


def shortened_cell(cell: str) -> str:
    """A cell as an error shows it."""
    return repr(cell) if len(cell) <= 200 else f"{cell[:200]!r} ..."


def collate_padded(values: Sequence[Value | None], placeholder: Value, padding: Mapping[str, int]) -> dict[str, Tensor]:
    """Joins sequences of different lengths, padded at their ends to the longest of the batch."""
    known = [value for value in values if isinstance(value, dict)]
    example = known[0] if known else placeholder
    assert isinstance(example, dict)
    joined = {}
    for name, tensor in example.items():
        lengths = [len(value[name]) for value in known]
        zeros = tensor.new_zeros(max([1, *lengths]), *tensor.shape[1:])
        sequences = [value[name] if isinstance(value, dict) else zeros for value in values]
        # the zeros at the end give a batch of empty sequences one step, without which a transformer fails
        sequences.append(zeros)
        padded = pad_sequence(sequences, batch_first=True, padding_value=padding.get(name, 0))
        joined[name] = padded[:-1]
    return joined


def check_name(value: Any, place: str) -> str:
    """The value; raises `ConfigError` unless it is text."""
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{value!r} is not a name. Give one, as text.", place)
    return value


def check_count(value: Any, place: str, low: int = 1) -> int:
    """The value; raises `ConfigError` unless it is a whole number of at least `low`."""
    check_number(value, place, low)
    if not isinstance(value, int):
        raise ConfigError(f"{value!r} is not a whole number.", place)
    return value
