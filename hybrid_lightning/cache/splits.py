"""The training and validation samples of a fit: which of their entries are the same each time, and passes over them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning.cache.fingerprints import digest, random_state
from hybrid_lightning.cache.frozen_parts import boundary, fixed_parts
from hybrid_lightning.cache.served import Collate, ServedDataset, read
from hybrid_lightning.data.in_memory import as_batch
from hybrid_lightning.drift.reference_batch import (
    as_validation,
    batches_on_device,
    evaluation_loaders,
    own_random_state,
)
from hybrid_lightning.network.hybrid_network import HybridNetwork
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
        # a loader forbids the plain way
        object.__setattr__(self.loader, "dataset", dataset)
        self.loader.collate_fn = collate
        # persistent workers hold the former dataset
        CombinedLoader(self.loader).reset()

    def stage(self, trainer: Trainer) -> AbstractContextManager[None]:
        """Hooks of batches do within it what they do to the batches of this split."""
        return nullcontext() if self.is_training else as_validation(trainer)

    def spread_rows(self, count: int) -> list[int]:
        """Some rows from all over the dataset, always the same."""
        count = min(count, self.rows)
        places = torch.linspace(0, self.rows - 1, count)
        return [int(place) for place in places.round().tolist()]


def network_of(trainer: Trainer, pl_module: LightningModule) -> HybridNetwork | None:
    """The network of a task of ours, under a strategy that leaves its weights whole; None for anything else."""
    network = getattr(pl_module, "network", None)
    is_whole = type(trainer.strategy) in (SingleDeviceStrategy, DDPStrategy)
    has_groups = len(trainer.optimizers) == 1
    return network if isinstance(network, HybridNetwork) and is_whole and has_groups else None


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
        for number, loader in enumerate(found if isinstance(found, list) else [found]):
            if _is_readable(loader) and loader is not train:
                loaders["val" if number == 0 else f"val{number}"] = loader
    splits = []
    for name, loader in loaders.items():
        size = sizes.get(name) or getattr(loader.batch_sampler, "batch_size", None) or 32
        splits.append(Split(name, loader, name == "train", int(size)))
    return splits


def _is_readable(loader: Any) -> bool:
    """Whether it is a plain loader that makes batches of a dataset with indices."""
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return False
    dataset: Any = loader.dataset
    has_indices = not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__")
    return has_indices and loader.batch_sampler is not None and len(dataset) > 0


def samples_hash(trainer: Trainer, split: Split) -> str:
    """A hash of a few raw samples and of their number."""
    with own_random_state(trainer):
        return digest(split.rows, split.read(split.spread_rows(2)))


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
        if digest(first[key]) != digest(second[key]):
            keys.add(key)
    return keys


def _changed_at_random(trainer: Trainer, pl_module: LightningModule, batch: Mapping[str, Any]) -> set[str]:
    """The keys that hooks of batches, such as an augmentation, may change in another way the next time."""
    device = trainer.strategy.root_device
    moved = move_data_to_device(trainer.precision_plugin.convert_input(batch), device)
    raw = {key: digest(entry) for key, entry in moved.items()}
    with own_random_state(trainer):
        before = _all_random_state(device)
        once = next(batches_on_device(trainer, pl_module, [dict(moved)]))
        has_drawn = _all_random_state(device) != before
        twice = next(batches_on_device(trainer, pl_module, [dict(moved)]))
    changed = _differing(once, twice)
    if not has_drawn:
        return changed
    for key, entry in once.items():
        # with a small probability of a change, two equal results would prove nothing
        is_same = key in moved and _same_tensors(moved[key], entry) and digest(entry) == raw[key]
        if not is_same:
            changed.add(key)
    return changed


def _all_random_state(device: torch.device) -> str:
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return random_state() + digest(of_device)


def _same_tensors(one: Any, other: Any) -> bool:
    """Whether two entries are the same objects, in dicts as well."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same_tensors(one[key], other[key]) for key in one)
    return one is other


def cacheable(
    trainer: Trainer, pl_module: LightningModule, network: HybridNetwork, frozen: Sequence[str], splits: Sequence[Split]
) -> tuple[list[str], list[Split]]:
    """The frozen parts whose features of training samples can be kept, and the splits for which all of them can."""
    found: dict[str, list[str]] = {}
    for split in splits:
        try:
            varying = varying_keys(trainer, pl_module, split)
            found[split.name] = boundary(network, fixed_parts(network, frozen, varying))
        except CannotCacheError:
            if split.is_training:
                raise
            found[split.name] = []
    parts = found["train"]
    if not parts:
        raise CannotCacheError("what it reads changes at random from epoch to epoch")
    return parts, [split for split in splits if found[split.name] == parts]


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
    trainer: Trainer, pl_module: LightningModule, network: HybridNetwork, batch: Any, parts: Sequence[str]
) -> Outputs:
    """What a cache keeps of a raw batch, on the CPU; to be called within `computing`."""
    moved = next(batches_on_device(trainer, pl_module, [batch]))
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
    every = torch.split(torch.arange(split.rows), split.size)
    own = every[share[0] :: share[1]]
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
            write(rows, batch, outputs_of(trainer, pl_module, network, batch, parts) if parts else {})


def largest_difference(
    trainer: Trainer, pl_module: LightningModule, network: HybridNetwork, split: Split, features: Outputs
) -> tuple[float, float]:
    """The largest relative difference of features to a live forward, of one full and one ragged batch; what may be."""
    order = torch.randperm(split.rows, generator=torch.Generator().manual_seed(0))
    ragged = max(1, split.size // 4 - 1)
    largest, allowed = 0.0, 0.0
    with computing(trainer, network, split):
        for rows in (order[: split.size], order[-ragged:]):
            live = outputs_of(trainer, pl_module, network, split.read(rows.tolist()), list(features))
            for name, tensor in live.items():
                largest = max(largest, relative_difference(features[name][rows], tensor))
                allowed = max(allowed, tolerance(tensor.dtype))
    return largest, allowed


def relative_difference(kept: Tensor, live: Tensor) -> float:
    """The largest difference relative to the largest value; infinite where one is not a number and the other is."""
    kept, live = kept.double(), live.double()
    if not torch.equal(kept.isfinite(), live.isfinite()):
        return float("inf")
    kept, live = kept.nan_to_num(0, 0, 0), live.nan_to_num(0, 0, 0)
    size = float(live.abs().amax()) if live.numel() else 0.0
    gap = float((kept - live).abs().amax()) if live.numel() else 0.0
    return gap / size if size else gap


def tolerance(dtype: torch.dtype) -> float:
    """The relative difference that may come from batches of other sizes."""
    # of a sum in 16 bits that is rounded otherwise the last two bits may differ
    return 4 * torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 1e-5
