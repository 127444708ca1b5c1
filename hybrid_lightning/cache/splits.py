"""The training and validation samples of a run, versions of them, and passes over them."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning.cache.fingerprints import digest, random_state, same_values
from hybrid_lightning.cache.ranks import has_whole_parts
from hybrid_lightning.cache.served import Collate, StandInDataset, exchange, read
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.drift.reference_batch import (
    batches_on_device,
    evaluation_loaders,
    own_random_state,
)
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.resume.seeded_loaders import DatasetView
from hybrid_lightning.trainer import as_validation
from hybrid_lightning.unfreezing.freezing import dry_run

Outputs = dict[str, Tensor]
"""Part → what a cache keeps of it, `(B, ...)` on the CPU."""


class CannotCacheError(Exception):
    """Why features are computed live, half a sentence."""


class DrawsError(CannotCacheError):
    """Reading a sample draws random numbers."""


class View(NamedTuple):
    """One of the versions of samples that are read with random numbers."""

    seed: int  # of the run
    number: int
    total: int  # number of versions


@dataclass
class Split:
    """The samples of one loader of a run, or a version of them.

    `size` is that of the batches in which features are computed.
    """

    name: str
    loader: DataLoader[Any]
    is_training: bool
    size: int
    hashed: tuple[Any, str] | None = None  # raw samples, and their hash
    view: View | None = None
    varies: bool = False
    """Whether the same raw samples may be read in another way the next time."""

    @property
    def given(self) -> Any:
        """The dataset that the loader was given."""
        given: Any = self.loader.dataset
        return given.original if isinstance(given, StandInDataset) else given

    @property
    def dataset(self) -> Any:
        """That dataset, or a version of its samples."""
        given = self.given
        return given if self.view is None else DatasetView(given, self.view.seed, self.view.number)

    def of_view(self, number: int) -> "Split":
        """The same samples in another version."""
        assert self.view is not None
        return dataclasses.replace(self, view=self.view._replace(number=number), hashed=None)

    def views(self) -> list["Split"]:
        """All versions of the samples."""
        return [self.of_view(number) for number in range(self.copies)] if self.view else [self]

    @property
    def copies(self) -> int:
        """Number of versions."""
        return self.view.total if self.view else 1

    @property
    def collate(self) -> Collate:
        """Its collation."""
        given: Any = self.loader.dataset
        return given.original_collate if isinstance(given, StandInDataset) else self.loader.collate_fn

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def read(self, rows: Sequence[int]) -> Any:
        """A raw batch, in this process."""
        return read(self.dataset, list(rows), self.collate)

    @property
    def is_in_memory(self) -> bool:
        """Whether its samples are tensors in memory, given as they are: to read them draws no random numbers."""
        return type(self.dataset) is DictDataset and self.collate is as_batch

    def serve(self, served: StandInDataset) -> None:
        """Puts a served dataset into the loader, whose next iterator takes it."""
        self._exchange(served, as_batch)

    def restore(self) -> None:
        """Puts back what the loader was given."""
        if isinstance(self.loader.dataset, StandInDataset):
            self._exchange(self.given, self.collate)

    def _exchange(self, dataset: Any, collate: Collate) -> None:
        exchange(self.loader, dataset, collate)
        # persistent workers hold the former dataset
        CombinedLoader(self.loader).reset()

    def stage(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Hooks of batches do within it what they do to the batches of this split."""
        return nullcontext() if self.is_training else as_validation(trainer)

    def spread_rows(self, count: int) -> list[int]:
        """Some rows from all over the dataset, always the same."""
        places = torch.linspace(0, self.rows - 1, min(count, self.rows))
        return [int(place) for place in places.round().tolist()]


class Scene(NamedTuple):
    """What is decided about."""

    trainer: Trainer
    pl_module: LightningModule
    network: HybridNetwork
    splits: Sequence[Split]
    folder: Path
    """Of the run, where features beyond the budget of memory lie."""

    @property
    def rows(self) -> int:
        """Number of samples that are kept, each version counted."""
        return sum(split.rows * split.copies for split in self.splits)


def network_of(trainer: Trainer, pl_module: LightningModule) -> HybridNetwork | None:
    """The network of a task of ours, whose weights are whole or can be made so; None for anything else."""
    network = getattr(pl_module, "network", None)
    has_groups = len(trainer.optimizers) == 1
    is_known = isinstance(network, HybridNetwork) and has_whole_parts(trainer.strategy, network)
    return network if is_known and has_groups else None


def splits_of(trainer: Trainer, sizes: Mapping[str, int]) -> list[Split]:
    """The splits whose samples can be read by index; empty if those of the training cannot.

    `sizes` are those of the batches in which an earlier process computed features.
    """
    train: Any = trainer.train_dataloader
    if not _is_readable(train):
        return []
    loaders = {"train": train}
    if trainer.enable_validation:
        found = evaluation_loaders(trainer)
        if not isinstance(found, list):
            found = [found]
        for number, loader in enumerate(found):
            name = f"val{number}" if number else "val"
            if _is_readable(loader) and loader is not train:
                loaders[name] = loader
    splits = []
    for name, loader in loaders.items():
        own_size = getattr(loader.batch_sampler, "batch_size", None)
        size = sizes.get(name) or own_size or 32
        splits.append(Split(name, loader, name == "train", int(size)))
    return splits


def _is_readable(loader: Any) -> bool:
    """Whether it is a plain loader that makes batches of a dataset with indices."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return False
    dataset: Any = loader.dataset
    if isinstance(dataset, IterableDataset) or loader.batch_sampler is None:
        return False
    return hasattr(dataset, "__len__") and len(dataset) > 0


def samples_hashes(trainer: Trainer, splits: Sequence[Split]) -> dict[str, str]:
    """Split → a hash of a few raw samples and of their number."""
    found = {}
    # once for all, because it takes longer than the samples
    needs_own_state = not all(split.is_in_memory for split in splits)
    with own_random_state(trainer) if needs_own_state else nullcontext():
        for split in splits:
            samples = split.read(split.spread_rows(2))
            # to compare is several times as fast as to hash, and most often nothing has changed since the last epoch
            if split.hashed is None or not same_values(split.hashed[0], samples):
                split.hashed = copy.deepcopy(samples), digest(split.rows, samples)
            found[split.name] = split.hashed[1]
    return found


def as_the_module_gets_it(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    """A batch after the hooks of batches, on the device."""
    return next(batches_on_device(trainer, pl_module, [batch]))


def all_random_state(device: torch.device) -> str:
    """A hash of the states of the global generators of the CPU and of a device."""
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random_state() + digest(of_device)


@contextmanager
def computing(trainer: Trainer, network: HybridNetwork, split: Split) -> Iterator[None]:
    """As in a validation, but with the hooks of batches of this split; no trace is left in the run."""
    with (
        split.stage(trainer),
        own_random_state(trainer),
        dry_run(network),
        trainer.precision_plugin.forward_context(),
    ):
        yield


def outputs_of(
    trainer: Trainer,
    pl_module: LightningModule,
    network: HybridNetwork,
    batch: Any,
    parts: Sequence[str],
) -> Outputs:
    """What a cache keeps of a raw batch, on the CPU; to be called within `computing`."""
    moved = as_the_module_gets_it(trainer, pl_module, batch)
    found = network.kept_outputs(moved, parts)
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


def fill(
    trainer: Trainer,
    pl_module: LightningModule,
    network: HybridNetwork,
    split: Split,
    parts: Sequence[str],
    share: tuple[int, int],
    write: Callable[[Tensor, Any, Outputs], None],
) -> None:
    """Goes over a split in its order; `write` gets rows `(B,)`, the raw batch, and what a cache keeps of `parts`.

    `share` is (rank, ranks): every so many-th batch from a first one on.
    """
    rank, ranks = share
    order = torch.arange(split.rows)
    every = torch.split(order, split.size)
    own = every[rank::ranks]
    if not own:
        return
    loader = split.loader
    batches = DataLoader(
        split.dataset,
        batch_sampler=[rows.tolist() for rows in own],
        collate_fn=split.collate,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        # its own, so that making an iterator draws nothing from the run's
        generator=torch.Generator().manual_seed(0),
    )
    with computing(trainer, network, split):
        for rows, batch in zip(own, batches, strict=True):
            outputs = outputs_of(trainer, pl_module, network, batch, parts) if parts else {}
            write(rows, batch, outputs)
