"""Samples, batches and loaders from the rows of a manifest."""

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hybrid_lightning.data.in_memory import Batch, Loader, as_batch, pick
from hybrid_lightning.data.inputs.base import Input, Value
from hybrid_lightning.data.loaders import worker_count
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.data.tensors import map_tensors, per_sample
from hybrid_lightning.errors import ConfigError

Shape = dict[str, Any]
"""What a value looks like, as plain data: ``{shape: [...], dtype: float32}``, or a dict of such per name."""


class SampleError(ConfigError):
    """A sample or batch cannot be made."""

    def __init__(self, message: str) -> None:
        # A worker sends its traceback as the message, of which the last line tells the user what is wrong.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].rstrip())


@contextmanager
def _sample_errors() -> Iterator[None]:
    """Makes a `SampleError` of each error in the block, as it may happen in a worker process."""
    try:
        yield
    except ConfigError as error:
        raise SampleError(str(error)) from error


class Samples:
    """The rows of one manifest, as its inputs read them; it can be sent to a worker."""

    def __init__(
        self,
        entries: Mapping[str, Input],
        table: Table,
        incomplete: Sequence[str],
        target: Tensor | None,
        shapes: Mapping[str, Shape],
    ) -> None:
        self.entries, self.target = dict(entries), target
        self.files = [key for key, entry in self.entries.items() if not entry.in_memory]
        """Keys that are read sample by sample."""
        self.present: dict[str, Tensor] = {}
        """Key → whether each row has it `(rows,)`, of keys for which batches have a ``present/<key>``."""
        self.shapes: dict[str, Shape | None] = {}  # key of a file → what its values look like, if that is known
        # Before any file is read, as rows without inputs are the cheaper error.
        present = self._presences(table)
        for key, entry in self.entries.items():
            if key in incomplete or not present[key].all():
                self.present[key] = torch.from_numpy(present[key])
            entry.bind(table)
            if not entry.in_memory:
                known = shapes.get(key)
                if known is None and present[key].any():  # from the first row that has a file
                    known = shape_of(entry.read(int(present[key].argmax()), training=False))
                self.shapes[key] = known

    def without(self, keys: Collection[str]) -> "Samples":
        """The same rows without these keys, whose files are then not read."""
        smaller = copy.copy(self)
        smaller.entries = {key: entry for key, entry in self.entries.items() if key not in keys}
        smaller.files = [key for key in self.files if key not in keys]
        return smaller

    def _presences(self, table: Table) -> dict[str, Array]:
        """Key → whether each row has it, `(rows,)` bool; each row has something."""
        present = {}
        for key, entry in self.entries.items():
            present[key] = ~entry.empty(table)
        empty = np.flatnonzero(~np.logical_or.reduce(list(present.values())))
        if len(empty):
            raise ConfigError(
                f"in {len(empty)} rows of {str(table.path)!r} all inputs are empty: {table.named(empty)}. "
                f"Fill in a cell of {', '.join(present)}, or remove these rows.",
                table.place,
            )
        return present

    def read(self, row: int, training: bool) -> Batch:
        """What one row adds to a batch: ``id``, and the values of its files; None where there is none."""
        sample: Batch = {"id": row}
        with _sample_errors():
            for key in self.files:
                is_present = key not in self.present or bool(self.present[key][row])
                sample[key] = self.entries[key].read(row, training) if is_present else None
        return sample

    def join(self, samples: Sequence[Batch]) -> Batch:
        """A batch from what `read` gave."""
        batch = self.batch(torch.tensor([sample["id"] for sample in samples]))
        with _sample_errors():
            for key in self.files:
                values = [sample[key] for sample in samples]
                batch[key] = self.entries[key].collate(values, self._placeholder(key, values))
        return batch

    def _placeholder(self, key: str, values: Sequence[Value | None]) -> Value:
        """A value of the shape that absent samples of a batch get."""
        for value in values:
            if value is not None:
                return value
        shape = self.shapes[key]
        if shape is None:
            raise ConfigError(
                "no row has a file, so that its shape is unknown. Give the statistics of a checkpoint "
                "(data.statistics).",
                self.entries[key].where,
            )
        return zeros_of(shape)

    def batch(self, rows: Tensor) -> Batch:
        """What is in memory of rows: entries, ``target``, ``id`` and presences."""
        batch: Batch = {}
        for key, entry in self.entries.items():
            if entry.in_memory:
                batch[key] = entry.batch(rows)
        for key, present in self.present.items():
            batch[f"present/{key}"] = present[rows]
            if key in batch:
                batch[key] = zeroed(batch[key], ~present[rows])
        if self.target is not None:
            batch["target"] = self.target[rows]
        batch["id"] = rows  # names the samples of predictions
        return batch


class SampleDataset(Dataset[Batch]):
    """Some rows of a manifest, read one by one; see `Samples.read` for what a sample is before it is collated."""

    def __init__(self, samples: Samples, rows: Tensor, training: bool) -> None:
        self.samples = samples
        self.rows = rows
        self.training = training
        self._row = rows.numpy()  # picks single numbers ten times faster

    @property
    def targets(self) -> Tensor:
        """All targets of the split, in its order."""
        if self.samples.target is None:
            raise AttributeError("these rows have no targets")
        return self.samples.target[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.samples.read(int(self._row[index]), self.training)

    def collate(self, samples: Sequence[Batch]) -> Batch:
        """A batch of what it gives."""
        return self.samples.join(samples)

    def without(self, keys: Collection[str]) -> "SampleDataset":
        """The same samples without these keys, which are then not read."""
        return dataset_of(self.samples.without(keys), self.rows, self.training)


class MemoryDataset(SampleDataset):
    """Rows that have no files: whole batches at once."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch; torch's loader prefers this to one call per sample."""
        return self.samples.batch(self.rows[torch.as_tensor(indices)])

    def __getitem__(self, index: int) -> Batch:
        return pick(self.__getitems__([index]), 0)

    def collate(self, samples: Any) -> Batch:
        """Its batches arrive complete."""
        return as_batch(samples)  # type: ignore[no-any-return]


def dataset_of(samples: Samples, rows: Tensor, training: bool = False) -> SampleDataset:
    """The rows of a split as a dataset, the fastest that can be."""
    kind = SampleDataset if samples.files else MemoryDataset
    return kind(samples, rows, training)


def make_loader(
    dataset: SampleDataset,
    batch_size: int,
    workers: int | None,
    persistent: bool,
    sampler: Sampler[int] | None,
    trainer: pl.Trainer | None,
) -> Loader:
    """A loader of some rows, with as many workers as `worker_count` allows, or as given; `persistent` keeps them."""
    ranks, processes, device = 1, 1, "cpu"
    if trainer is not None:
        ranks = trainer.world_size
        processes = trainer.num_devices
        device = trainer.strategy.root_device.type
    rows = math.ceil(len(dataset) / ranks)  # of a rank
    has_files = bool(dataset.samples.files)
    if workers is None:
        workers = worker_count(processes, math.ceil(rows / batch_size)) if has_files else 0
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=dataset.training and sampler is None,
        sampler=sampler,
        collate_fn=dataset.collate,
        drop_last=dataset.training and rows > 1 and rows % batch_size == 1,  # BatchNorm needs two samples
        num_workers=workers,
        persistent_workers=workers > 0 and persistent,
        pin_memory=device != "cpu",
    )


def shape_of(value: Value | list[Value | None]) -> Shape:
    """What a value looks like; of several files, one of them."""
    if isinstance(value, list):
        value = next(one for one in value if one is not None)
    if isinstance(value, dict):
        return {name: shape_of(tensor) for name, tensor in value.items()}
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}


def zeros_of(shape: Shape) -> Value:
    """Zeros that look like a value."""
    if not isinstance(shape.get("shape"), list):
        return {name: _zeros(one) for name, one in shape.items()}
    return _zeros(shape)


def _zeros(shape: Shape) -> Tensor:
    dtype = getattr(torch, shape["dtype"])
    assert isinstance(dtype, torch.dtype)  # the name may come from a file
    return torch.zeros(shape["shape"], dtype=dtype)


def zeroed(value: Value, absent: Tensor) -> Value:
    """A batch of values with zeros in the samples that are `absent`, `(B,)` bool."""
    return map_tensors(lambda tensor: tensor.masked_fill(per_sample(absent, tensor), 0), value)
