"""Data that fit into memory: one dict of tensors per split, served in whole batches."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hybrid_lightning.data.loaders import padded_sampler
from hybrid_lightning.data.tensors import Tensors, map_tensors
from hybrid_lightning.errors import ConfigError, check_number

Batch = dict[str, Any]  # key → `Tensors`; also a single sample
Loader = DataLoader[Batch]


class DictDataset(Dataset[Batch]):
    """Samples as dicts, from tensors whose first dimension counts samples.

    Args:
        entries: Key → tensor `(N, ...)` or dict of such tensors; ``target`` holds the labels.
    """

    def __init__(self, entries: Mapping[str, Tensors]) -> None:
        self.entries = dict(entries)

    @property
    def targets(self) -> Tensor:
        """All labels, `(N, ...)`."""
        targets = self.entries["target"]
        assert isinstance(targets, Tensor)
        return targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Batch:
        return pick(self.entries, index)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A whole batch at once; torch's loader prefers this to one call per sample."""
        return pick(self.entries, torch.as_tensor(indices))

    def without(self, keys: Collection[str]) -> "DictDataset":
        """The same samples without these keys, which are then not read."""
        smaller = copy.copy(self)
        smaller.entries = {key: entry for key, entry in self.entries.items() if key not in keys}
        return smaller


def pick(entries: Mapping[str, Tensors], index: int | Tensor) -> Batch:
    """A sample of a batch, or several of them as a smaller batch."""
    return {key: map_tensors(lambda tensor: tensor[index], entry) for key, entry in entries.items()}


def as_batch(batch: Any) -> Any:
    """Collation for `DictDataset`, whose batches arrive complete."""
    return batch


def stratified_mask(targets: Tensor, fraction: float, seed: int) -> Tensor:
    """Chooses a share of each class at random."""
    generator = torch.Generator().manual_seed(seed)  # its own, so that splits do not follow the seed of the run
    chosen = torch.zeros(len(targets), dtype=torch.bool)
    for label in torch.unique(targets):
        members = (targets == label).nonzero().flatten()
        shuffled = members[torch.randperm(len(members), generator=generator)]
        chosen[shuffled[: max(1, round(fraction * len(members)))]] = True
    return chosen


def checked_val_fraction(fraction: float) -> float:
    """The share for validation, if it is between 0 and 1."""
    if not 0 < fraction < 1:
        raise ConfigError(f"{fraction!r} is not between 0 and 1.", "data.val_fraction")
    return fraction


def stratified_rows(strata: Tensor, test_share: float, val_fraction: float, seed: int) -> dict[str, Tensor]:
    """The rows of ``train``, ``val`` and ``test``, each class alike; the test rows are the same for every seed."""
    in_test = stratified_mask(strata, test_share, seed=0)
    rest = (~in_test).nonzero().flatten()
    in_val = stratified_mask(strata[rest], val_fraction, seed)
    return {"train": rest[~in_val], "val": rest[in_val], "test": in_test.nonzero().flatten()}


class InMemoryDataModule(pl.LightningDataModule, ABC):
    """A DataModule over `DictDataset`; a subclass says how each split is loaded.

    Args:
        batch_size: Samples per batch.
    """

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        check_number(batch_size, "data.batch_size", low=1)
        self.batch_size = batch_size
        self.splits: dict[str, DictDataset] = {}

    @abstractmethod
    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``."""

    def setup(self, stage: str | None = None) -> None:
        """Loads the splits once."""
        self.splits = self.splits or self.load()

    def train_dataloader(self) -> Loader:
        """Shuffled training batches; the last one is dropped if it holds a single sample."""
        return self._loader("train")

    def val_dataloader(self) -> Loader:
        """Validation batches in order."""
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """Test batches in order."""
        return self._loader("test")

    def predict_dataloader(self) -> Loader:
        """The test batches."""
        return self._loader("test", padded_sampler(self.splits["test"], self.trainer))

    def _loader(self, split: str, sampler: Sampler[int] | None = None) -> Loader:
        dataset, training = self.splits[split], split == "train"
        # BatchNorm needs two samples in training
        drop_last = training and len(dataset) > 1 and len(dataset) % self.batch_size == 1
        # all by name: Lightning makes the loader anew from these names for several ranks and for predictions
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=training,
            sampler=sampler,
            collate_fn=as_batch,
            drop_last=drop_last,
        )
