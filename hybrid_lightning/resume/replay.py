"""What Lightning's fit loop reads batches from, so that an epoch can start at any of them."""

from collections.abc import Iterator, Sized
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import count
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info
from torch.utils.data import DistributedSampler

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import combination_of, hands_out_iterator, loaders_as_given, wrapped_samplers
from hybrid_lightning.resume.seeded_loaders import SeededLoader, hashed, seed_cpu


class ReplayedLoader:
    """The training loaders, seeded for each batch, from where the run stands.

    Takes the place of the `CombinedLoader` in the Trainer's data fetcher alone; ``trainer.train_dataloader`` and the
    loaders stay what they are.
    """

    def __init__(self, trainer: Trainer, combined: CombinedLoader, seed: int) -> None:
        self.combined = combined
        self._trainer, self._seed = trainer, seed
        loaders = combined.flattened
        self._cycled = len(loaders) > 1 and combination_of(combined) == "max_size_cycle"
        self._loaders = []
        rank, ranks = trainer.global_rank, trainer.world_size
        originals = replaced_samplers(trainer, loaders)
        for number, (loader, original) in enumerate(zip(loaders, originals, strict=True)):
            self._loaders.append(SeededLoader(loader, seed, rank, str(number), wrapped_samplers, original, ranks))
        self._length: int | None = None
        # a loader that is there twice could not be given two samplers at a time
        is_distinct = len(set(map(id, loaders))) == len(loaders)
        self._can_skip = is_distinct and all(loader.can_skip(self._cycled) for loader in self._loaders)

    @property
    def samples(self) -> int | None:
        """Samples of a batch on all ranks together; None of several loaders, or if the loader does not tell."""
        sampler = self._loaders[0].sampler
        return None if len(self._loaders) > 1 or sampler is None else sampler.samples

    @property
    def order(self) -> str:
        """The class of the sampler that decides the order of the first loader, else of the loader itself."""
        first = self._loaders[0]
        return type(first.loader).__name__ if first.sampler is None else first.sampler.order

    def __len__(self) -> int:
        return len(self.combined) if self._length is None else self._length

    def reset(self) -> None:
        """Shuts the workers down."""
        self.combined.reset()

    def __iter__(self) -> Iterator[Any]:
        epoch = epoch_of(self._trainer)
        first = position(self._trainer)
        if first and not self._can_skip:
            rank_zero_info(f"Exact resume: reads the first {first} batches of the epoch again, to go on from there.")
        skipped = first if self._can_skip else 0
        for loader in self._loaders:
            loader.start(epoch, skipped, self._cycled)
        seed_cpu(hashed(self._seed, "iterators", epoch))
        iterator = self._from_memory()
        if iterator is None:
            with self._exchanged():
                iterator = iter(self.combined)
        return self._batches(iterator, epoch, skipped, first)

    def _from_memory(self) -> Iterator[Any] | None:
        """What a lone loader of a dataset in memory gives, which several layers of loaders would only pass on."""
        alone = self._loaders[0]
        batches = alone.from_memory() if self.combined.iterables is alone.loader else None
        # a combination has no length before it has an iterator
        self._length = None if batches is None else len(alone.loader)
        return None if batches is None else ((batch, index, 0) for index, batch in enumerate(batches))

    def _batches(self, iterator: Iterator[Any], epoch: int, number: int, first: int) -> Iterator[Any]:
        """Batches from `first` on, of an iterator whose next one is `number`."""
        device = self._trainer.strategy.root_device
        for index in count(number):
            if not self._can_skip:  # loaders that can skip seed each of their draws
                seed_cpu(hashed(self._seed, "load", epoch, index))
            # a cycled loader that is exhausted makes a new iterator within the call
            with self._exchanged() if self._cycled else nullcontext():
                found = next(iterator, None)
            if index >= first or found is None:  # the hooks after the last batch draw numbers, too
                seed_device(device, hashed(self._seed, "batch", epoch, index, self._trainer.global_rank))
            if found is None:
                return
            if index >= first:
                batch, _, loader_index = found
                yield batch, index, loader_index

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        with ExitStack() as stack:
            for loader in self._loaders:
                stack.enter_context(loader.exchanged())
            yield


def refuse_uncounted(done: int, fetcher: Any) -> None:
    """Raises `ConfigError` where an epoch would go on after some batches, and the module reads by itself."""
    if done and hands_out_iterator(fetcher):
        raise ConfigError(
            f"--ckpt_path: the checkpoint was saved after batch {done} of an epoch, and training_step takes "
            f"'dataloader_iter', so how many batches it read is unknown. Continue from a checkpoint of an epoch's "
            f"end, or let training_step take 'batch'."
        )


def replaced_samplers(trainer: Trainer, loaders: list[Any]) -> list[Any]:
    """The user's sampler of each loader in which a distributed Trainer has replaced it; None of the others."""
    nothing = [None] * len(loaders)
    is_injected = [isinstance(getattr(loader, "sampler", None), DistributedSampler) for loader in loaders]
    # with overfit_batches, Lightning keeps the order on purpose
    if trainer.overfit_batches or not any(is_injected):  # type: ignore[attr-defined]
        return nothing
    given = loaders_as_given(trainer)
    if len(given) != len(loaders):
        return nothing
    found = []
    for loader, of_user, injected in zip(loaders, given, is_injected, strict=True):
        sampler = getattr(of_user, "sampler", None) if injected else None
        found.append(sampler if _is_shared(sampler, of_user, loader) else None)
    return found


def _is_shared(sampler: Any, of_user: Any, loader: Any) -> bool:
    """Whether a loader's injected sampler shares as many samples of the same dataset as the user's sampler draws."""
    if isinstance(sampler, DistributedSampler) or not isinstance(sampler, Sized):
        return False
    share = -(-len(sampler) // loader.sampler.num_replicas)
    return len(of_user.dataset) == len(loader.dataset) and share == len(loader.sampler)


def epoch_of(trainer: Trainer) -> int:
    """The epoch that is under way or about to start, as Lightning sets it in the samplers."""
    current: Any = trainer.fit_loop.epoch_progress.current
    return int(current.processed)


def position(trainer: Trainer) -> int:
    """Batches of the epoch that a restored fit has read already; 0 unless it continues within an epoch."""
    loop = trainer.fit_loop.epoch_loop
    return int(loop.batch_progress.current.ready) if loop.restarting else 0


def seed_device(device: torch.device, seed: int) -> None:
    """Seeds torch on the CPU and on the device, numpy and random."""
    seed_cpu(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        getattr(module, "manual_seed_all", module.manual_seed)(seed)
