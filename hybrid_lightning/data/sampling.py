"""In which order training rows are read: the option ``sampling`` of a manifest."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler, WeightedRandomSampler

from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError, check_keys, check_number, unknown

_WORDS = ("shuffle", "balanced")


def check_sampling(value: Any) -> str | int:
    """``shuffle``, ``balanced``, or the number under ``shards``."""
    if isinstance(value, Mapping):
        check_keys(value, ("shards",), "data.sampling")
        mixed = value.get("shards")
        check_number(mixed, "data.sampling.shards", low=1)
        if isinstance(mixed, int):
            return mixed
        raise ConfigError(f"{mixed!r} is not a whole number.", "data.sampling.shards")
    if value not in _WORDS:
        raise unknown("data.sampling", "sampling", str(value), (*_WORDS, "{shards: 4}"))
    return str(value)


def balanced_sampler(targets: Tensor, seed: int) -> Sampler[int]:
    """Draws as many samples as there are, with replacement, each class `(N,)` equally often.

    It draws from a generator of its own, on all ranks the same, so that Lightning can share the list among them.
    """
    # in float64, as rounding would favor some classes among millions of samples
    weights: Any = (1 / torch.bincount(targets).double())[targets]
    return WeightedRandomSampler(weights, len(targets), generator=torch.Generator().manual_seed(seed))


def shard_sampler(table: Table, rows: Tensor, mixed: int) -> "ShardSampler":
    """The order of the training rows of a table of shards."""
    if table.shards is None:
        raise ConfigError(f"{str(table.path)!r} holds no shards. Write 'shuffle', or 'balanced'.", "data.sampling")
    return ShardSampler(torch.from_numpy(table.shards)[rows], mixed)


class ShardSampler(Sampler[int]):
    """Each sample once: the shards in random order, and the samples of so many shards at a time shuffled.

    So a process has few shards open, and reads each of them once per epoch. The order is drawn when an iterator starts,
    from a generator of its own, which follows the seed of the run and is the same on all ranks; `SeededSampler` seeds
    it anew for each epoch.

    Args:
        shards: The number of each sample's shard, `(N,)`.
        mixed: How many shards are shuffled together.
    """

    def __init__(self, shards: Tensor, mixed: int) -> None:
        self._samples = shards.argsort(stable=True)
        self._counts = torch.unique(shards, return_counts=True)[1].tolist()
        self._mixed = mixed
        self.generator = torch.Generator().manual_seed(int(os.environ.get("PL_GLOBAL_SEED") or 0))

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[int]:
        by_shard = torch.split(self._samples, self._counts)
        order = torch.randperm(len(by_shard), generator=self.generator).tolist()
        drawn = []
        for start in range(0, len(order), self._mixed):
            together = torch.cat([by_shard[shard] for shard in order[start : start + self._mixed]])
            drawn.append(together[torch.randperm(len(together), generator=self.generator)])
        return iter(torch.cat(drawn).tolist())
