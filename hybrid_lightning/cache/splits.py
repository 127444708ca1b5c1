"""The training and validation samples of a fit: which of their entries are the same each time, and passes over them."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning.cache.fingerprints import digest, random_state, same_values
from hybrid_lightning.cache.frozen_parts import fixed_parts, startable_parts
from hybrid_lightning.cache.ranks import has_whole_parts
from hybrid_lightning.cache.served import Collate, ServedDataset, exchange, read
from hybrid_lightning.data.in_memory import as_batch
from hybrid_lightning.drift.reference_batch import (
    batches_on_device,
    evaluation_loaders,
    own_random_state,
)
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.trainer import as_validation
from hybrid_lightning.unfreezing.freezing import dry_run

Outputs = dict[str, Tensor]
"""Part → what a cache keeps of it, `(B, ...)` on the CPU."""
_LOOKED_AT = 8  # samples that are read twice


class CannotCacheError(Exception):
    """Why features are computed live, half a sentence."""


@dataclass
class Split:
    """The samples of one loader of a fit; `size` is that of the batches in which features are computed."""

    name: str
    loader: DataLoader[Any]
    is_training: bool
    size: int
    hashed: tuple[Any, str] | None = None  # raw samples, and their hash

    @property
    def dataset(self) -> Any:
        """The dataset that the loader was given."""
        given: Any = self.loader.dataset
        return given.original if isinstance(given, ServedDataset) else given

    @property
    def collate(self) -> Collate:
        """Its collation."""
        given: Any = self.loader.dataset
        return given.original_collate if isinstance(given, ServedDataset) else self.loader.collate_fn

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.dataset)

    def read(self, rows: Sequence[int]) -> Any:
        """A raw batch, in this process."""
        return read(self.dataset, list(rows), self.collate)

    def serve(self, served: ServedDataset) -> None:
        """Puts a served dataset into the loader, whose next iterator takes it."""
        self._exchange(served, as_batch)

    def restore(self) -> None:
        """Puts back what the loader was given."""
        if isinstance(self.loader.dataset, ServedDataset):
            self._exchange(self.dataset, self.collate)

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
    with own_random_state(trainer):
        for split in splits:
            samples = split.read(split.spread_rows(2))
            # to compare is several times as fast as to hash, and most often nothing has changed since the last epoch
            if split.hashed is None or not same_values(split.hashed[0], samples):
                split.hashed = copy.deepcopy(samples), digest(split.rows, samples)
            found[split.name] = split.hashed[1]
    return found


def varying_keys(trainer: Trainer, pl_module: LightningModule, split: Split) -> set[str]:
    """The keys whose entries may differ the next time that the same samples are read.

    Raises:
        CannotCacheError: If that may be any of them.
    """
    rows = split.spread_rows(_LOOKED_AT)
    with own_random_state(trainer):
        before = random_state()
        first = split.read(rows)
        # a transform that was not applied this time has drawn that, too
        if random_state() != before:
            raise CannotCacheError("reading a sample draws random numbers, as a random transform does")
        second = split.read(rows)
    if not isinstance(first, Mapping):
        raise CannotCacheError("its batches are not dicts")
    varying = _differing(first, second)
    with split.stage(trainer):
        return varying | _changed_at_random(trainer, pl_module, first)


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> set[str]:
    keys = set(first) ^ set(second)
    for key in set(first) & set(second):
        before = digest(first[key])
        after = digest(second[key])
        if before != after:
            keys.add(key)
    return keys


def _changed_at_random(trainer: Trainer, pl_module: LightningModule, batch: Mapping[str, Any]) -> set[str]:
    """The keys that hooks of batches, such as an augmentation, may change in another way the next time."""
    device = trainer.strategy.root_device
    converted = trainer.precision_plugin.convert_input(batch)
    moved = move_data_to_device(converted, device)
    raw = {key: digest(entry) for key, entry in moved.items()}
    with own_random_state(trainer):
        before = all_random_state(device)
        once = as_the_module_gets_it(trainer, pl_module, dict(moved))
        after = all_random_state(device)
        twice = as_the_module_gets_it(trainer, pl_module, dict(moved))
    changed = _differing(once, twice)
    if after == before:
        return changed
    for key, entry in once.items():
        # with a small probability of a change, two equal results would prove nothing
        is_passed_on = key in moved and _same_tensors(moved[key], entry)
        if not is_passed_on or digest(entry) != raw[key]:
            changed.add(key)
    return changed


def as_the_module_gets_it(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    """A batch after the hooks of batches, on the device."""
    return next(batches_on_device(trainer, pl_module, [batch]))


def all_random_state(device: torch.device) -> str:
    """A hash of the states of the global generators of the CPU and of a device."""
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random_state() + digest(of_device)


def _same_tensors(one: Any, other: Any) -> bool:
    """Whether two entries are the same objects, in dicts as well."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return one is other
    if one.keys() != other.keys():
        return False
    return all(_same_tensors(one[key], other[key]) for key in one)


class Cacheable(NamedTuple):
    """What of training samples can be kept, and the names of the splits for which the same can."""

    fixed: list[str]  # parts
    started: list[str]  # parts of which the start can
    splits: list[str]


def cacheable(
    trainer: Trainer,
    pl_module: LightningModule,
    network: HybridNetwork,
    frozen: Sequence[str],
    partly: Sequence[str],
    splits: Sequence[Split],
) -> Cacheable:
    """Which of the frozen and partly frozen parts read what is the same each time."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for split in splits:
        try:
            varying = varying_keys(trainer, pl_module, split)
            fixed = fixed_parts(network, frozen, varying)
            found[split.name] = fixed, startable_parts(network, partly, fixed, varying)
        except CannotCacheError:
            if split.is_training:
                raise
            found[split.name] = [], []
    fixed, started = found["train"]
    if not fixed and not started:
        raise CannotCacheError("what it reads changes at random from epoch to epoch")
    same = [name for name, of_split in found.items() if of_split == found["train"]]
    return Cacheable(fixed, started, same)


@contextmanager
def computing(trainer: Trainer, network: HybridNetwork, split: Split) -> Iterator[None]:
    """As in a validation, but with the hooks of batches of this split; no trace is left in the fit."""
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
        # its own, so that making an iterator draws nothing from the fit's
        generator=torch.Generator().manual_seed(0),
    )
    with computing(trainer, network, split):
        for rows, batch in zip(own, batches, strict=True):
            outputs = outputs_of(trainer, pl_module, network, batch, parts) if parts else {}
            write(rows, batch, outputs)
