"""A rank's share of the order that one process would read, and what loaders' samplers hold."""

from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from typing import Any

import torch
from torch.utils.data import DataLoader, DistributedSampler


class RankShare:
    """A rank's share of the order that one process would read: every `ranks`-th index, from the rank's own on.

    The first indices are repeated at the end until each rank has equally many. Takes the place of the sampler that
    Lightning injects on several ranks, which draws an order of its own, and shuffles training data in any case.
    """

    def __init__(self, sampler: Any, ranks: int, rank: int) -> None:
        self.sampler, self.ranks, self.rank = sampler, ranks, rank

    def __iter__(self) -> Iterator[Any]:
        order = list(self.sampler)
        missing = -len(order) % self.ranks
        order += islice(cycle(order), missing)
        return iter(order[self.rank :: self.ranks])

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.ranks)


def share_of(sampler: Any) -> tuple[int, int]:
    """How many ranks share the order of a sampler, and which of them this one is."""
    if isinstance(sampler, DistributedSampler):
        return sampler.num_replicas, sampler.rank
    return (sampler.ranks, sampler.rank) if isinstance(sampler, RankShare) else (1, 0)


def held_generators(
    loader: DataLoader[Any], wrapped: Callable[[Any], Iterable[Any]] = lambda _: (), sampler: Any = None
) -> list[torch.Generator]:
    """The torch generators that a loader, its samplers, one within another, and a further sampler draw from."""
    generators: dict[int, torch.Generator] = {}
    holders: list[Any] = [loader, sampler]
    seen: set[int] = set()
    while holders:
        holder = holders.pop(0)
        if holder is None or id(holder) in seen:
            continue
        seen.add(id(holder))
        held = getattr(holder, "__dict__", {})
        for value in held.values():
            if isinstance(value, torch.Generator):
                generators[id(value)] = value
        holders += [held.get("batch_sampler"), held.get("sampler"), *wrapped(holder)]
    return list(generators.values())


def set_epoch(loader: Any, epoch: int, sampler: Any = None) -> None:
    """Sets the epoch of the loader's samplers, and of a further one, that have one, such as `DistributedSampler`."""
    batches = getattr(loader, "batch_sampler", None)
    samplers = [batches, getattr(loader, "sampler", None), getattr(batches, "sampler", None), sampler]
    once = {id(each): each for each in samplers}  # the second and the third are usually the same
    for each in once.values():
        set_epoch_of = getattr(each, "set_epoch", None)
        if callable(set_epoch_of):
            set_epoch_of(epoch)
