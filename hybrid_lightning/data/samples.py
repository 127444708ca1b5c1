"""Samples and batches from the rows of a manifest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hybrid_lightning.data.in_memory import as_batch
from hybrid_lightning.data.inputs.base import Input, Value
from hybrid_lightning.data.splits import rows_of
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError

Shape = dict[str, Any]
"""What a value looks like, as plain data: ``{shape: [...], dtype: float32}``, or a dict of such per name."""


class SampleError(ConfigError):
    """A sample or batch cannot be made; of what a worker adds to it on its way, only the reason is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


class Samples:
    """The rows of one manifest, as its entries read them; it can be sent to a worker.

    Args:
        entries: Key → entry, fitted; they are bound to the table here.
        table: The manifest.
        folder: Where relative paths start.
        incomplete: Keys that have a presence although no cell of them is empty here.
        target: Of all rows; None if there is none.
        shapes: Key → what a value looks like, for keys of which no row is at hand.

    Raises:
        ConfigError: If a column is missing, or all inputs of a row are empty.
    """

    def __init__(
        self,
        entries: Mapping[str, Input],
        table: Table,
        folder: str,
        incomplete: Sequence[str] = (),
        target: Tensor | None = None,
        shapes: Mapping[str, Shape] | None = None,
    ) -> None:
        self.entries, self.target, self.rows = dict(entries), target, len(table)
        self.files = [key for key, entry in self.entries.items() if not entry.in_memory]
        """Keys that are read sample by sample."""
        for entry in self.entries.values():
            for column in entry.columns:
                table.require(column, entry.where)
        present = {key: torch.from_numpy(~entry.empty(table)) for key, entry in self.entries.items()}
        self._refuse_empty_rows(present, table)
        gaps = {key for key, known in present.items() if not bool(known.all())}
        self.incomplete = [key for key in self.entries if key in gaps or key in incomplete]
        """Keys of which batches say in ``present/<key>`` whether a sample has them."""
        self.present = {key: present[key] for key in self.incomplete}
        for entry in self.entries.values():
            entry.bind(table, folder)
        self.shapes = {key: self._shape(key, present[key], shapes or {}) for key in self.files}
        """Key of a file entry → what its values look like, if that is known."""

    def _refuse_empty_rows(self, present: Mapping[str, Tensor], table: Table) -> None:
        empty = np.flatnonzero(~torch.stack(list(present.values())).any(dim=0).numpy())
        if len(empty):
            raise ConfigError(
                f"{table.where}: in {len(empty)} rows of {str(table.path)!r} all inputs are empty: {rows_of(empty)}. "
                f"Fill in a cell of {', '.join(present)}, or remove these rows."
            )

    def _shape(self, key: str, present: Tensor, shapes: Mapping[str, Shape]) -> Shape | None:
        """Known from an earlier run, or from the first row that has a file."""
        if key in shapes or not bool(present.any()):
            return shapes.get(key)
        return shape_of(self.entries[key].read(int(present.int().argmax()), training=False))

    def read(self, row: int, training: bool) -> dict[str, Any]:
        """What one row adds to a batch: ``id``, and the values of its files; None where there is none."""
        sample: dict[str, Any] = {"id": row}
        try:
            for key in self.files:
                known = key not in self.present or bool(self.present[key][row])
                sample[key] = self.entries[key].read(row, training) if known else None
        except ConfigError as error:
            raise SampleError(str(error)) from error
        return sample

    def join(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch from what `read` gave."""
        batch = self.batch(torch.tensor([sample["id"] for sample in samples]))
        try:
            for key in self.files:
                values = [sample[key] for sample in samples]
                batch[key] = self.entries[key].collate(values, self._placeholder(key, values))
        except ConfigError as error:
            raise SampleError(str(error)) from error
        return batch

    def _placeholder(self, key: str, values: Sequence[Value | None]) -> Value:
        known = next((value for value in values if value is not None), None)
        if known is not None:
            return known
        shape = self.shapes.get(key)
        if shape is None:
            raise ConfigError(
                f"{self.entries[key].where}: no row has a file, so that its shape is unknown. Give the statistics of a "
                f"checkpoint (data.statistics)."
            )
        return zeros_of(shape)

    def batch(self, rows: Tensor) -> dict[str, Any]:
        """What is in memory of rows: entries, ``target``, ``id`` and presences."""
        batch: dict[str, Any] = {key: e.batch(rows) for key, e in self.entries.items() if e.in_memory}
        for key, present in self.present.items():
            batch[f"present/{key}"] = present[rows]
            if key in batch:
                batch[key] = zeroed(batch[key], ~present[rows])
        if self.target is not None:
            batch["target"] = self.target[rows]
        return {**batch, "id": rows}


class SampleDataset(Dataset[dict[str, Any]]):
    """Some rows of a manifest, read one by one; see `Samples.read` for what a sample is before it is collated.

    Args:
        samples: The manifest.
        rows: Rows of this split, `(N,)`.
        training: Whether random transforms are drawn.
    """

    def __init__(self, samples: Samples, rows: Tensor, training: bool) -> None:
        self.samples, self.rows, self.training = samples, rows, training
        self._row = rows.numpy()  # picks single numbers ten times faster

    @property
    def targets(self) -> Tensor:
        """All targets of the split, in its order."""
        if self.samples.target is None:
            raise AttributeError("these rows have no targets")
        return self.samples.target[self.rows]

    @property
    def collate(self) -> Callable[[Any], dict[str, Any]]:
        """Makes a batch of samples."""
        return self.samples.join

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.samples.read(int(self._row[index]), self.training)


class MemoryDataset(SampleDataset):
    """Rows that have no files: whole batches at once."""

    @property
    def collate(self) -> Callable[[Any], dict[str, Any]]:
        """Batches arrive complete."""
        return as_batch

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A whole batch; torch's loader prefers this to one call per sample."""
        return self.samples.batch(self.rows[torch.as_tensor(indices)])

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.__getitems__([index])
        return {key: {n: v[0] for n, v in e.items()} if isinstance(e, dict) else e[0] for key, e in batch.items()}


def dataset_of(samples: Samples, rows: Tensor, training: bool = False) -> SampleDataset:
    """The rows of a split as a dataset, the fastest that can be."""
    return (SampleDataset if samples.files else MemoryDataset)(samples, rows, training)


def shape_of(value: Value) -> Shape:
    """What a value looks like."""
    if isinstance(value, dict):
        return {name: shape_of(each) for name, each in value.items()}
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}


def zeros_of(shape: Shape) -> Value:
    """Zeros that look like a value."""
    if isinstance(shape.get("shape"), list):
        dtype = getattr(torch, shape["dtype"])
        assert isinstance(dtype, torch.dtype)  # the name may come from a file
        return torch.zeros(shape["shape"], dtype=dtype)
    return {name: zeros_of(each) for name, each in shape.items()}  # type: ignore[misc]


def zeroed(value: Value, absent: Tensor) -> Value:
    """A batch of values with zeros in the samples that are absent."""
    if isinstance(value, dict):
        return {name: zeroed(each, absent) for name, each in value.items()}  # type: ignore[misc]
    return value.masked_fill(absent.reshape(-1, *[1] * (value.ndim - 1)), 0)
