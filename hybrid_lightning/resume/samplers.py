"""A rank's share of the order that one process would read, and what loaders' samplers hold."""

from collections.abc import Callable, Iterable, Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

_BLOCK = 4096  # indices


class RankShare:
    """A rank's share of the order that one process would read: every `ranks`-th index, from the rank's own on.

    The first indices are repeated at the end until each rank has equally many. Takes the place of the sampler that
    Lightning injects on several ranks, which draws an order of its own, and shuffles training data in any case.
    """

    def __init__(self, sampler: Any, ranks: int, rank: int) -> None:
        self.sampler, self.ranks, self.rank = sampler, ranks, rank

    def __iter__(self) -> Iterator[Any]:
        order = _order_of(self.sampler)
        missing = -len(order) % self.ranks
        if isinstance(order, list):
            order += islice(cycle(order), missing)
            return iter(order[self.rank :: self.ranks])
        own = order[self.rank :: self.ranks].copy()  # a view would hold the shares of all ranks
        place = self.rank + len(own) * self.ranks  # of the next one
        if place < len(order) + missing:
            own = np.append(own, order[place % len(order)])
        return _in_blocks(own)

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.ranks)


def with_light_order(sampler: Any) -> Any:
    """The same batches in the same order; those of a permutation of torch's without a list of all indices."""
    # what draws with replacement is left alone: it draws a few indices at a time, and has no such list
    if type(sampler) is not BatchSampler or not _is_permutation(sampler.sampler):
        return sampler
    return BatchSampler(RankShare(sampler.sampler, ranks=1, rank=0), sampler.batch_size, sampler.drop_last)


def _order_of(sampler: Any) -> "list[Any] | np.ndarray[Any, np.dtype[np.int64]]":
    """All that a sampler draws: an array in place of torch's list of a permutation, which takes five times as much."""
    if not _is_permutation(sampler):
        return list(sampler)
    # the same numbers as torch's, and as many of the global generator
    generator = torch.Generator()
    generator.manual_seed(int(torch.empty((), dtype=torch.int64).random_().item()))
    return torch.randperm(sampler.num_samples, generator=generator).numpy()


def _is_permutation(sampler: Any) -> bool:
    """Whether a sampler is torch's own, and draws each sample once in an order from the global random state."""
    if type(sampler) is not RandomSampler or sampler.generator is not None or sampler.replacement:
        return False
    return sampler.num_samples == len(sampler.data_source)


def _in_blocks(indices: "np.ndarray[Any, np.dtype[np.int64]]") -> Iterator[int]:
    """The indices as Python's numbers, a few of them at a time."""
    for start in range(0, len(indices), _BLOCK):
        yield from indices[start : start + _BLOCK].tolist()


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
