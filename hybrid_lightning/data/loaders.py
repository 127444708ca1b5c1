"""Loaders: samples for a dry run, labels, lengths, workers and samplers."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    Subset,
    WeightedRandomSampler,
)

from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import loaders_to_read

_MOST_WORKERS = 8
"""More worker processes than this seldom help one device."""


def example_batch(trainer: pl.Trainer) -> Mapping[str, Any]:
    """A batch of the data that the Trainer is about to read; torch's random state stays as it was.

    Raises:
        ConfigError: If the loader is empty or its batches are not dicts.
    """
    with torch.random.fork_rng(devices=[]):
        return first_batch(loaders_to_read(trainer))


def require_dict(batch: Any) -> None:
    """Raises `ConfigError` if a batch is not a dict."""
    if not isinstance(batch, Mapping):
        raise ConfigError(
            f"data: a batch is a dict such as {{'image': ..., 'target': ...}}; the loader gave {type(batch).__name__}."
        )


def first_batch(loaders: Any) -> Mapping[str, Any]:
    """Two collated samples of a map-style dataset, or the first batch of anything else.

    Raises:
        ConfigError: If the loader is empty or its batches are not dicts.
    """
    batch = _any_first_batch(loaders)
    require_dict(batch)
    return batch  # type: ignore[no-any-return]


def _any_first_batch(loaders: Any) -> Any:
    loader = next(iter(loaders.values())) if isinstance(loaders, Mapping) else loaders
    loader = loader[0] if isinstance(loader, list | tuple) else loader
    if (
        not isinstance(loader, DataLoader)
        or loader.batch_sampler is None
        or isinstance(loader.dataset, IterableDataset)
    ):
        return _next(loader)
    dataset: Any = loader.dataset
    count = min(2, len(dataset))
    if count == 0:
        raise ConfigError("data: the dataset is empty.")
    whole = hasattr(dataset, "__getitems__")
    samples = dataset.__getitems__(list(range(count))) if whole else [dataset[index] for index in range(count)]
    return loader.collate_fn(samples)


def _next(loader: Iterable[Any]) -> Any:
    for batch in loader:
        return batch
    raise ConfigError("data: the loader is empty.")


def shown_targets(trainer: pl.Trainer) -> Iterator[tuple[str, Tensor]]:
    """Split and all labels of each dataset that shows them, while a fit is under way.

    Raises:
        ConfigError: If a split is empty.
    """
    for split, loaders in (("train", trainer.train_dataloader), ("val", trainer.val_dataloaders)):
        for loader in loaders if isinstance(loaders, list) else [loaders]:
            targets = targets_of(getattr(loader, "dataset", None))
            if targets is not None:
                if not len(targets):
                    raise ConfigError(f"data: the {split} split is empty. Give it samples, or leave its loader out.")
                yield split, targets


def targets_of(dataset: Any) -> Tensor | None:
    """All labels in the order of a dataset, if it shows them: a tensor ``targets``, also behind torch's `Subset`."""
    if isinstance(dataset, Subset):
        targets = targets_of(dataset.dataset)
        return None if targets is None else targets[torch.as_tensor(dataset.indices, dtype=torch.long)]
    targets = getattr(dataset, "targets", None)
    return targets if isinstance(targets, Tensor) and targets.ndim and len(targets) == len(dataset) else None


def training_targets(trainer: pl.Trainer) -> Tensor | None:
    """All labels of the data that a fit is about to read.

    Returns:
        Labels `(N, ...)` on the CPU; None if the data do not show them.

    Raises:
        ConfigError: If there are none.
    """
    with torch.random.fork_rng(devices=[]):
        loaders = loaders_to_read(trainer)
    loader = next(iter(loaders.values())) if isinstance(loaders, Mapping) else loaders
    loader = loader[0] if isinstance(loader, list | tuple) else loader
    targets = targets_of(getattr(loader, "dataset", None))
    if targets is not None and not len(targets):
        raise ConfigError("data: the train split is empty. Give it samples.")
    return targets


def number_of_batches(loaders: Any) -> float:
    """Batches of one pass over the training data, as the Trainer counts them; ``inf`` if the data have no length."""
    if isinstance(loaders, Mapping | list | tuple):
        return max(map(number_of_batches, loaders.values() if isinstance(loaders, Mapping) else loaders))
    try:
        return len(loaders)
    except TypeError:
        return float("inf")


def worker_count(processes: int, batches: int) -> int:
    """Worker processes that the cores of this machine are good for; 0 if there is one core for each training process.

    Args:
        processes: Training processes on this machine.
        batches: Of one pass; more workers would have nothing to do.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = cores // processes
    return min(own, _MOST_WORKERS, batches) if own > 1 else 0


def balanced_sampler(targets: Tensor, seed: int) -> Sampler[int]:
    """Draws as many samples as there are, with replacement, each class equally often.

    It draws from a generator of its own, on all ranks the same, so that Lightning can share the list among them.

    Args:
        targets: Classes `(N,)`, int64.
        seed: Of the generator.
    """
    weights: Any = (1 / torch.bincount(targets).double())[targets]
    return WeightedRandomSampler(weights, len(targets), generator=torch.Generator().manual_seed(seed))


def padded_sampler(dataset: Dataset[Any], trainer: pl.Trainer | None) -> Sampler[int] | None:
    """Under a sharded strategy, shares of equal length, for prediction; the first samples are repeated to fill up.

    All ranks then have the same number of batches, which they need to gather parameters, and which Lightning does not
    see to when it predicts. None under other strategies.
    """
    if trainer is None or not isinstance(trainer.strategy, FSDP2Strategy):
        return None
    return DistributedSampler(dataset, trainer.world_size, trainer.global_rank, shuffle=False)
