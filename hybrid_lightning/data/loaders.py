"""Loaders: samples for a dry run, labels, lengths, workers and samplers."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from hybrid_lightning.data.first_samples import FirstSamples
from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import loaders_to_read, wrapped_samplers

_MOST_WORKERS = 8  # more worker processes than this seldom help one device


def example_batch(trainer: pl.Trainer) -> Any:
    """A batch of the data that the Trainer is about to read; torch's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        return first_batch(loaders_to_read(trainer))


def require_dict(batch: Any) -> None:
    """Raises `ConfigError` if a batch is not a dict."""
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"a batch is a dict such as {{'image': ..., 'target': ...}}; the loader gave {type(batch).__name__}.",
            "data",
        )


def first_batch(loaders: Any) -> Any:
    """Two collated samples of a map-style dataset, or the first batch of anything else."""
    loader = _first_loader(loaders)
    is_batched = isinstance(loader, DataLoader) and loader.batch_sampler is not None
    if is_batched and not isinstance(loader.dataset, IterableDataset):
        batch = _first_samples(loader)  # without starting the loader and its workers
    else:
        batch = next(iter(loader), None)
        if batch is None:
            raise ConfigError("the loader is empty.", "data")
    return batch


def _first_loader(loaders: Any) -> Any:
    """The first of a collection of loaders."""
    loader = next(iter(loaders.values())) if isinstance(loaders, Mapping) else loaders
    return loader[0] if isinstance(loader, list | tuple) else loader


def _first_samples(loader: DataLoader[Any]) -> Any:
    dataset: Any = loader.dataset
    indices = list(range(min(2, len(dataset))))  # two, because BatchNorm cannot take one
    if not indices:
        raise ConfigError("the dataset is empty.", "data")
    if hasattr(dataset, "__getitems__"):
        return loader.collate_fn(dataset.__getitems__(indices))
    return loader.collate_fn([dataset[index] for index in indices])


def plain_samples(data: Any, loaders: Any, most: int | None = None) -> Any:
    """A loader of training samples in the order of their dataset, each once; `most` bounds how many, drawn by a seed.

    Args:
        data: The DataModule or None. Its ``plain_train_dataset``, if it has one, gives samples without random
            transforms; without it those of the training loader are read as they come.
        loaders: What ``train_dataloader`` returns.
        most: The most samples that are read; None reads all. Of data that are not read by index, such as a stream, the
            first ones are taken, see `FirstSamples`.

    Raises:
        ConfigError: If all samples are asked for, and they cannot be read by index.
    """
    loader = _first_loader(loaders)
    size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or size is None:
        if most is not None:
            return FirstSamples(loader, most)
        raise ConfigError(
            "closed-form fits and 'embed' read all training samples once, by index, and a stream may never end. Give "
            "one DataLoader with a batch size and a dataset that has a length, or leave out 'start: probe'.",
            "data",
        )
    dataset: Any = getattr(data, "plain_train_dataset", None)
    if dataset is None:
        dataset = loader.dataset
        rows = _rows_of(loader)
    else:
        rows = range(len(dataset))
    if most is not None and most < len(rows):
        drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:most]
        rows = [rows[index] for index in drawn.sort().values.tolist()]
    # its own generator, so that making an iterator draws nothing from the run's
    return DataLoader(
        dataset,
        size,
        sampler=rows,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        generator=torch.Generator().manual_seed(0),
    )


def _rows_of(loader: DataLoader[Any]) -> Sequence[int]:
    """The rows of the dataset that a loader reads, in their order: a sampler may leave out those of other splits."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    samples = range(len(loader.dataset))  # type: ignore[arg-type]
    if isinstance(sampler, SubsetRandomSampler):
        return sorted(sampler.indices)
    if isinstance(sampler, SequentialSampler | RandomSampler | WeightedRandomSampler | DistributedSampler):
        return samples
    wrapped = wrapped_samplers(sampler)
    if wrapped or not isinstance(sampler, Iterable):
        return samples
    with torch.random.fork_rng(devices=[]):  # a sampler of somebody's own may draw
        return sorted({int(row) for row in sampler})


def shown_targets(trainer: pl.Trainer) -> Iterator[tuple[str, Tensor]]:
    """Split and all labels of each dataset that shows them, while a run is under way; none may be empty."""
    for split, loaders in (("train", trainer.train_dataloader), ("val", trainer.val_dataloaders)):
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            targets = _targets(loader, split)
            if targets is not None:
                yield split, targets


def _targets(loader: Any, split: str) -> Tensor | None:
    targets = targets_of(getattr(loader, "dataset", None))
    if targets is not None and not len(targets):
        raise ConfigError(f"the {split} split is empty. Give it samples, or leave its loader out.", "data")
    return targets


def targets_of(dataset: Any) -> Tensor | None:
    """All labels in the order of a dataset, if it shows them: a tensor ``targets``, also behind torch's `Subset`."""
    if isinstance(dataset, Subset):
        targets = targets_of(dataset.dataset)
        return None if targets is None else targets[torch.as_tensor(dataset.indices, dtype=torch.long)]
    targets = getattr(dataset, "targets", None)
    return targets if isinstance(targets, Tensor) and targets.ndim and len(targets) == len(dataset) else None


def training_targets(trainer: pl.Trainer) -> Tensor | None:
    """All labels that a run is about to read, `(N, ...)` on the CPU; None if the data do not show them."""
    with torch.random.fork_rng(devices=[]):  # making a loader may draw random numbers
        return _targets(_first_loader(loaders_to_read(trainer)), "train")


def number_of_batches(loaders: Any) -> float:
    """Batches of one pass over the training data, as the Trainer counts them; ``inf`` if the data have no length."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        return max(map(number_of_batches, loaders))
    try:
        return len(loaders)
    except TypeError:
        return float("inf")


def worker_count(processes: int, batches: int) -> int:
    """Default number of loader workers per training process; 0 if each process has one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = cores // processes
    return min(own, _MOST_WORKERS, batches) if own > 1 else 0


def padded_sampler(dataset: Dataset[Any], trainer: pl.Trainer | None) -> Sampler[int] | None:
    """For prediction: equal numbers of samples per rank, the first ones repeated to fill up; None where it works alone.

    Under a sharded strategy all ranks need the same number of batches to gather parameters, which Lightning does not
    provide when it predicts; and it refuses to predict fewer samples than there are ranks.
    """
    if trainer is None:
        return None
    samples: int = len(dataset)  # type: ignore[arg-type]
    is_sharded = isinstance(trainer.strategy, FSDP2Strategy)
    if not is_sharded and not 0 < samples < trainer.world_size:
        return None
    return DistributedSampler(dataset, trainer.world_size, trainer.global_rank, shuffle=False)
