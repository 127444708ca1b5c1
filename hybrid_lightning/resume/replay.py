"""What Lightning's fit loop reads batches from, so that an epoch can start at any of them."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info

from hybrid_lightning.lightning_private import combination_of, wrapped_samplers
from hybrid_lightning.resume.seeded_loaders import SeededLoader, hashed, seed_cpu


class ReplayedLoader:
    """The training loaders, seeded for each batch, from where the fit stands.

    Takes the place of the `CombinedLoader` in the Trainer's data fetcher alone; ``trainer.train_dataloader`` and the
    loaders stay what they are.

    Args:
        trainer: Its fit loop says where an epoch starts, see `position`.
        combined: The training loaders.
        seed: The seed of all seeds.
    """

    def __init__(self, trainer: pl.Trainer, combined: CombinedLoader, seed: int) -> None:
        self.combined = combined
        self._trainer, self._seed = trainer, seed
        loaders = combined.flattened
        self._cycled = len(loaders) > 1 and combination_of(combined) == "max_size_cycle"
        rank = trainer.global_rank
        self._loaders = [SeededLoader(each, seed, rank, str(n), wrapped_samplers) for n, each in enumerate(loaders)]
        distinct = len({id(loader) for loader in loaders}) == len(loaders)
        self._can_skip = distinct and all(loader.can_skip(self._cycled) for loader in self._loaders)

    def __len__(self) -> int:
        return len(self.combined)

    def reset(self) -> None:
        """Shuts the workers down."""
        self.combined.reset()

    def __iter__(self) -> Iterator[Any]:
        epoch, first = epoch_of(self._trainer), position(self._trainer)
        if first and not self._can_skip:
            rank_zero_info(f"Exact resume: reads the first {first} batches of the epoch again, to go on from there.")
        skipped = first if self._can_skip else 0
        for loader in self._loaders:
            loader.start(epoch, skipped, self._cycled)
        seed_cpu(hashed(self._seed, "iterators", epoch))
        with self._exchanged():
            iterator = iter(self.combined)
        return self._batches(iterator, epoch, skipped, first)

    def _batches(self, iterator: Iterator[Any], epoch: int, number: int, first: int) -> Iterator[Any]:
        """Batches from `first` on, of an iterator whose next one is `number`."""
        device, rank = self._trainer.strategy.root_device, self._trainer.global_rank
        for number in count(number):  # noqa: B020
            if not self._can_skip:  # the others are seeded by themselves
                seed_cpu(hashed(self._seed, "load", epoch, number))
            try:
                batch, loader_index = self._next(iterator)
            except StopIteration:
                seed_device(device, hashed(self._seed, "batch", epoch, number, rank))
                return
            if number >= first:
                seed_device(device, hashed(self._seed, "batch", epoch, number, rank))
                yield batch, number, loader_index

    def _next(self, iterator: Iterator[Any]) -> tuple[Any, int]:
        if not self._cycled:
            batch, _, loader_index = next(iterator)
        else:
            with self._exchanged():  # a loader that is exhausted makes a new iterator
                batch, _, loader_index = next(iterator)
        return batch, loader_index

    def _exchanged(self) -> ExitStack:
        stack = ExitStack()
        for loader in self._loaders:
            stack.enter_context(loader.exchanged())
        return stack


def epoch_of(trainer: pl.Trainer) -> int:
    """The epoch that is under way or about to start; what Lightning tells the samplers."""
    current: Any = trainer.fit_loop.epoch_progress.current
    return int(current.processed)


def position(trainer: pl.Trainer) -> int:
    """Batches of the epoch that a restored fit has read already; 0 unless it continues within an epoch."""
    loop = trainer.fit_loop.epoch_loop
    return int(loop.batch_progress.current.ready) if loop.restarting else 0


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds torch on the CPU and on the device, numpy and random."""
    seed_cpu(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(seed)
