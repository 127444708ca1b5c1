"""What all kinds of input have in common: which columns they read, and what a batch gets from a row."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError

Value = Tensor | dict[str, Tensor]


class Input(ABC):
    """One key of the batches, from one or several columns of a manifest.

    Life: made from the config; `fit` on the training rows (or `statistics` taken from a checkpoint); then `bind` to a
    table, after which values can be read. It can be pickled, and reads the same in any process.

    Args:
        key: The key of the batch.
        columns: Names of the columns that it reads.
        where: Config path, for errors, such as ``data.inputs.photo``.
    """

    in_memory: ClassVar[bool] = False
    """True: `batch` gives the values of many rows at once. False: `read` gives those of one row, `collate` joins."""

    def __init__(self, key: str, columns: Sequence[str], where: str) -> None:
        self.key, self.columns, self.where = key, list(columns), where
        self.statistics: dict[str, Any] = {}
        """What was fitted on the training rows, as plain data; goes into checkpoints."""
        self.folder = "."
        """Where relative paths start."""

    def empty(self, table: Table) -> np.ndarray[Any, Any]:
        """Rows in which this modality is absent, `(rows,)` bool: all its cells are empty."""
        empty: np.ndarray[Any, Any] = np.logical_and.reduce([table.empty(column) for column in self.columns])
        return empty

    def fit(self, table: Table, rows: np.ndarray[Any, Any]) -> dict[str, Any]:
        """Statistics of the training rows, as plain data; nothing by default."""
        return {}

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """Arguments that a part which reads this key may leave out, such as ``categories``; known once it is fitted."""
        return {}

    @abstractmethod
    def bind(self, table: Table, folder: str) -> None:
        """Takes the columns of a table; relative paths start from `folder`."""

    def batch(self, rows: Tensor) -> Value:
        """Values of rows, samples first; for entries in memory."""
        raise NotImplementedError

    def read(self, row: int, training: bool) -> Value:
        """The value of one row whose cells are not empty; random transforms only if `training`.

        Raises:
            ConfigError: If the file cannot be read; it names the row and the file.
        """
        raise NotImplementedError

    def peek(self, row: int) -> tuple[int, ...]:
        """Opens the row's file without reading all of it, and gives the shape that it states.

        Raises:
            ConfigError: If that fails; it names the row and the file.
        """
        raise NotImplementedError

    def collate(self, values: Sequence[Value | None], placeholder: Value) -> Value:
        """Joins values to a batch; where one is None (absent), zeros stand in its place.

        Args:
            values: As `read` gives them, which need not be the form that a batch has.
            placeholder: A value of this entry, for batches in which all are absent.
        """
        known = next((value for value in values if value is not None), placeholder)
        if isinstance(known, dict):
            return {
                name: self._stack([None if value is None else value[name] for value in values], one)  # type: ignore[index]
                for name, one in known.items()
            }
        return self._stack(values, known)  # type: ignore[arg-type]

    def prefetch(self) -> list[str]:
        """Fetches what `bind` takes from this machine alone, such as a tokenizer; says in words what is here now."""
        return []

    def _stack(self, values: Sequence[Tensor | None], known: Tensor) -> Tensor:
        zeros = torch.zeros_like(known)
        shapes = {tuple(value.shape) for value in values if value is not None}
        if len(shapes) > 1:
            raise ConfigError(
                f"{self.where}: samples of one batch have different shapes: {sorted(shapes)[:4]}. Give them one size."
            )
        return torch.stack([zeros if value is None else value for value in values])


def collate_padded(
    values: Sequence[Value | None], placeholder: Value, fill: Mapping[str, int] | None = None
) -> dict[str, Tensor]:
    """Joins sequences of different lengths, padded at their ends to the longest of the batch.

    Args:
        values: Dicts of tensors `(T, ...)`; None where the modality is absent, which becomes zeros.
        placeholder: Such a dict, for batches in which all are absent.
        fill: What stands in the padding of an entry; 0 by default.
    """
    assert isinstance(placeholder, dict)
    known = [value for value in values if isinstance(value, dict)]
    joined = {}
    for name, one in (known or [placeholder])[0].items():
        length = max([1, *(len(value[name]) for value in known)])
        padded = one.new_full((len(values), length, *one.shape[1:]), (fill or {}).get(name, 0))
        for row, value in zip(padded, values, strict=True):
            if isinstance(value, dict):
                row[: len(value[name])] = value[name]
            else:
                row.zero_()
        joined[name] = padded
    return joined


def cell_error(where: str, row: int, what: str, reason: object) -> ConfigError:
    """An error about one cell of a manifest."""
    return ConfigError(f"{where}: row {row}: {what!r}: {str(reason)[:300]}")
