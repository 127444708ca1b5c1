"""Data loaders whose order and random numbers depend on a seed, the epoch and the position in it alone.

Random state cannot be saved where workers prefetch. So every draw gets a seed of its own, hashed from what it is for:
an epoch can then start at any batch, in any process, and give what it would have given there.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    IterDataPipe,
    RandomSampler,
    SequentialSampler,
    Subset,
    get_worker_info,
)

from hybrid_lightning.resume.samplers import RankShare, held_generators, set_epoch, share_of, with_light_order


def hashed(*words: object) -> int:
    """A stable 63-bit hash of the words' string forms, to be used as a seed."""
    digest = hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def seed_cpu(seed: int) -> None:
    """Seeds torch on the CPU, numpy and random; 7 µs, where ``torch.manual_seed`` alone takes 100."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


class Drawn(NamedTuple):
    """What a sampler drew for a batch (for a sample, in a loader without batches), and its place in the run."""

    place: str
    indices: Any
    epoch: int = 0
    positions: range | None = None  # of the samples, in the order that one process would read; None if unknown


class SeededSampler:
    """Takes the place of a loader's (batch) sampler: seeds each draw, and skips what was read before the restart.

    Torch generators that the sampler or the loader holds are seeded anew at each pass, from their first seed and the
    epoch. `name` differs between the loaders of one run.
    """

    def __init__(self, sampler: Any, generators: list[torch.Generator], seed: int, name: str) -> None:
        self.sampler, self._seed, self._name = sampler, seed, name
        self._generators = [(generator, generator.initial_seed()) for generator in generators]
        self._epoch, self._pass, self._skip = 0, 0, 0
        # these draw from the global state when a pass begins, and then from generators of their own or not at all
        inner = sampler.sampler if type(sampler) is BatchSampler else None
        uses_global = getattr(inner, "generator", None) is torch.default_generator
        self._draws_once = type(inner) in (RandomSampler, SequentialSampler) and not uses_global
        self._share = share_of(inner)
        self.batch_size: int | None = None if inner is None else sampler.batch_size
        """Samples that this rank takes in a batch; None of a batch sampler of somebody's own."""
        order = inner.sampler if isinstance(inner, RankShare) else inner or sampler
        self.order = type(order).__name__
        """The class of the sampler that decides the order of all ranks."""

    def start(self, epoch: int, passes: int = 0, skip: int = 0) -> None:
        """Sets where the next pass starts, after whole passes of this epoch and the first batches of the next one."""
        self._epoch, self._pass, self._skip = epoch, passes, skip

    def __iter__(self) -> Iterator[Drawn]:
        # nothing is counted before the first draw: a loader with workers makes one more iterator, which it never uses
        place = f"{self._name}/{self._epoch}/{self._pass}"
        skip = self._skip
        self._skip = 0
        self._pass += 1
        for generator, first_seed in self._generators:
            generator.manual_seed(hashed(first_seed, "order", place))
        seed_cpu(hashed(self._seed, "order", place))
        indices = iter(with_light_order(self.sampler))
        for number in count():
            if number == 0 or not self._draws_once:
                seed_cpu(hashed(self._seed, "order", place, number))
            try:
                drawn = next(indices)
            except StopIteration:
                return
            if number >= skip:
                yield Drawn(f"{place}/{number}", drawn, self._epoch, self._positions(number, drawn))

    def _positions(self, number: int, drawn: Any) -> range | None:
        """Where the samples of a batch stand in the order that one process would read."""
        if self.batch_size is None:
            return None
        ranks, rank = self._share
        first = number * self.batch_size * ranks + rank
        return range(first, first + len(drawn) * ranks, ranks)

    @property
    def samples(self) -> int | None:
        """Samples that all ranks together take in a batch; None if that is not told."""
        return None if self.batch_size is None else self.batch_size * self._share[0]

    def __len__(self) -> int:
        return len(self.sampler)


class _StandIn:
    """Gives a dataset's attributes as its own, also in a worker, to which it is sent by pickle."""

    def __init__(self, dataset: Any, seed: int, **facts: Any) -> None:
        vars(self).update(_dataset=dataset, _seed=seed, **facts)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_dataset"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class SeededDataset(_StandIn):
    """A map-style dataset under a `SeededSampler`: seeds each sample, or each batch if the dataset loads whole batches.

    The seed of a sample is hashed from its position in the epoch, or, where that is unknown, from its batch's place in
    the run, its index and how often that index stood in the batch before. So it is the same in any worker, on any rank
    and, by position, with any number of ranks. Whole batches, and samples without a number or text as index, are seeded
    by rank.
    """

    def __init__(self, dataset: Any, seed: int, rank: int) -> None:
        super().__init__(dataset, seed, _rank=rank)

    def __getitem__(self, drawn: Any) -> Any:
        if not isinstance(drawn, Drawn):
            return self._dataset[drawn]
        seed_cpu(hashed(self._seed, "whole", drawn.place, self._rank))
        return self._dataset[drawn.indices]

    def __getitems__(self, drawn: Drawn) -> Any:
        """A batch; torch's loader prefers this to one call per sample."""
        if loads_batches(self._dataset):
            seed_cpu(hashed(self._seed, "whole", drawn.place, self._rank))
            return self._dataset.__getitems__(drawn.indices)
        if drawn.positions is not None:
            return self._by_position(drawn, drawn.positions)
        samples: list[Any] = []
        times: dict[Any, int] = {}
        for index in drawn.indices:
            has_name = isinstance(index, int | str | np.integer)
            name = index if has_name else f"{self._rank}/{len(samples)}"
            times[name] = times.get(name, 0) + 1
            seed_cpu(hashed(self._seed, "sample", drawn.place, name, times[name]))
            samples.append(self._dataset[index])
        return samples

    def _by_position(self, drawn: Drawn, positions: range) -> list[Any]:
        of_pass = drawn.place.rpartition("/")[0]
        samples = []
        for index, position in zip(drawn.indices, positions, strict=True):
            seed_cpu(hashed(self._seed, "position", of_pass, position))
            samples.append(self._dataset[index])
        return samples


class DatasetView(_StandIn):
    """A version of each sample of a map-style dataset, the same each time, in any process and on any rank.

    The seed of a sample is hashed from a seed, the number of the version and the sample's index.
    """

    def __init__(self, dataset: Any, seed: int, number: int) -> None:
        super().__init__(dataset, seed, _number=number)

    @property
    def dataset(self) -> Any:
        """What it gives a version of."""
        return self._dataset

    def around(self, dataset: Any) -> Any:
        """The same version of other samples; a dataset that loads whole batches stays as it is."""
        return dataset if loads_batches(dataset) else DatasetView(dataset, self._seed, self._number)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer) and index < 0:
            index += len(self)
        seed_cpu(hashed(self._seed, "view", self._number, index))
        return self._dataset[index]

    def __getitems__(self, drawn: Any) -> list[Any]:
        """The samples of a batch; `drawn` are indices, or have them as an attribute."""
        indices = getattr(drawn, "indices", drawn)
        return [self[index] for index in indices]


def seeded(dataset: Any, seed: int, rank: int) -> Any:
    """A `SeededDataset`; of a dataset that stands before another one, that one alone is seeded."""
    with_inner = getattr(dataset, "with_inner", None)
    if with_inner is None:
        return SeededDataset(dataset, seed, rank)
    return with_inner(lambda inner: SeededDataset(inner, seed, rank))


class SeededIterable(_StandIn):
    """An iterable dataset that seeds the process that reads it, from the epoch and the number of the worker.

    All ranks get the same seed, because a dataset may shuffle before it takes its rank's share.
    """

    def __init__(self, dataset: Any, seed: int, name: str) -> None:
        super().__init__(dataset, seed, _name=name, _epoch=0)

    def start(self, epoch: int) -> None:
        """Sets the epoch of the next pass; in a persistent worker each further pass is the next epoch."""
        vars(self)["_epoch"] = epoch

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        number = worker.id if worker else 0
        seed_cpu(hashed(self._seed, "stream", self._name, self._epoch, number))
        vars(self)["_epoch"] += 1
        return iter(self._dataset)


class SeededLoader:
    """Starts a `DataLoader` at any batch of any epoch; any other iterable is read as it is.

    A loader takes its sampler and dataset when it makes an iterator, so they are exchanged for that moment alone, and
    the loader stays as it is. `wrapped` gives the samplers inside of one that hides them; `original` is the user's
    sampler, where Lightning has put one in its place that shares the samples among so many `ranks`.
    """

    def __init__(
        self,
        loader: Any,
        seed: int,
        rank: int,
        name: str,
        wrapped: Callable[[Any], Iterable[Any]] = lambda _: (),
        original: Any = None,
        ranks: int = 1,
    ) -> None:
        self.loader, self._original = loader, original
        self.sampler: SeededSampler | None = None
        self._stream: SeededIterable | None = None
        self._exchanged: dict[str, Any] = {}
        is_plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
        if not is_plain or isinstance(loader.dataset, IterDataPipe):
            return
        if isinstance(loader.dataset, IterableDataset):
            self._stream = SeededIterable(loader.dataset, seed, name)
            self._exchanged = {"dataset": self._stream}
            return
        attribute = "sampler" if loader.batch_sampler is None else "batch_sampler"
        sampler: Any = getattr(loader, attribute)
        if original is not None and type(sampler) is BatchSampler:
            shared = RankShare(original, ranks, rank)
            sampler = BatchSampler(shared, sampler.batch_size, sampler.drop_last)
        generators = held_generators(loader, wrapped, sampler)
        self.sampler = SeededSampler(sampler, generators, seed, name)
        self._exchanged = {attribute: self.sampler}
        self._seed, self._rank = seed, rank

    def can_skip(self, cycled: bool) -> bool:
        """Whether a pass can start at a later batch without reading the ones before."""
        return self.sampler is not None and (not cycled or hasattr(self.sampler.sampler, "__len__"))

    def start(self, epoch: int, position: int, cycled: bool) -> None:
        """Prepares the next pass of an epoch of which `position` batches were read; those are skipped, if it can."""
        # a cycled loader starts again when it is exhausted, so its position may lie in a later pass
        set_epoch(self.loader, epoch, self._original)
        if self._stream is not None:
            self._stream.start(epoch)
        if self.sampler is not None:
            passes, skip = 0, position
            if cycled and position:  # only then the sampler has to have a length
                passes, skip = divmod(position, len(self.sampler))
            self.sampler.start(epoch, passes, skip)

    def from_memory(self) -> Iterator[Any] | None:
        """The batches of the next pass, if the dataset collates them itself and says that it `serves_from_memory`."""
        loader = self.loader
        if self.sampler is None or loader.pin_memory or not getattr(loader.dataset, "serves_from_memory", False):
            return None
        dataset = seeded(loader.dataset, self._seed, self._rank)
        return map(dataset.__getitems__, self.sampler)

    @contextmanager
    def exchanged(self) -> Iterator[None]:
        """While it is open, an iterator that the loader makes is a seeded one."""
        exchanged = dict(self._exchanged)
        if self.sampler is not None:
            # taken anew each time: another dataset may stand in the loader by now
            exchanged["dataset"] = seeded(self.loader.dataset, self._seed, self._rank)
        before = {name: getattr(self.loader, name) for name in exchanged}
        try:
            for name, value in exchanged.items():
                object.__setattr__(self.loader, name, value)  # a loader forbids the plain way
            yield
        finally:
            for name, value in before.items():
                object.__setattr__(self.loader, name, value)


def loads_batches(dataset: Any) -> bool:
    """Whether the dataset loads a whole batch in one call; a `Subset` does if what it is a subset of does."""
    if isinstance(dataset, DatasetView):
        return False
    if type(dataset) is Subset:
        return loads_batches(dataset.dataset)
    return callable(getattr(dataset, "__getitems__", None))
