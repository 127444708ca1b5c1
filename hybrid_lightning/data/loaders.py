"""How many workers a loader gets, and samplers that all ranks agree on."""

import os
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler, Sampler, WeightedRandomSampler

from hybrid_lightning.strategies import FSDP2Strategy

_MOST_WORKERS = 8
"""More worker processes than this seldom help one device."""


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
