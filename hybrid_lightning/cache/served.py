"""A dataset that gives cached features in place of what only frozen parts read."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from hybrid_lightning.data.in_memory import DictDataset
from hybrid_lightning.data.tensors import map_tensors
from hybrid_lightning.network.batch import CACHED, CACHED_INDEX
from hybrid_lightning.resume.seeded_loaders import DatasetView

Collate = Callable[[Any], Any]


class StandInDataset(Dataset[Any]):
    """Stands in place of a map-style dataset in its loader; has the same length, indices and attributes.

    Args:
        original: The dataset.
        collate: Makes a batch of its samples.
    """

    _is_complete = False  # before that, what is set is an attribute of its own

    def __init__(self, original: Any, collate: Collate) -> None:
        self.original = original
        self.original_collate = collate
        self.workers: tuple[int, float] = (0, 0)  # of the loader that it stands in, and their timeout
        self.serves_from_memory = False
        """Whether no batch needs anything of the original dataset."""
        self._others: list[Any] = []  # that read the same samples

    def __getattr__(self, name: str) -> Any:
        if "original" not in vars(self):  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.original, name)

    def __setattr__(self, name: str, value: Any) -> None:
        is_own = name in vars(self) or not self._is_complete
        if is_own:
            object.__setattr__(self, name, value)
            return
        # what somebody else sets is meant for the dataset, also after the cache is gone
        for dataset in {id(one): one for one in (self.original, *self._others)}.values():
            setattr(dataset, name, value)

    def __len__(self) -> int:
        return len(self.original)

    def __getitem__(self, index: Any) -> Any:
        return self.original[index]


class ServedDataset(StandInDataset):
    """Gives whole batches of cached features and of what else is still read.

    Features stand under `CACHED`, places in the dataset under `CACHED_INDEX`. Batches of other indices than whole
    numbers are the original ones.

    Args:
        original: The dataset.
        collate: Makes a batch of its samples.
        features: Part → `(rows, ...)`.
        left_out: Keys that nothing reads any more.
        rest: The other entries of all rows; None reads them from the dataset, batch by batch.
        is_view: Whether `original` gives a version of each sample, whose entries are read alike for a whole epoch:
            those left out stay so when a part is retired, as random numbers are drawn in another order with them.
    """

    def __init__(
        self,
        original: Any,
        collate: Collate,
        features: Mapping[str, Tensor],
        left_out: Collection[str],
        rest: Mapping[str, Any] | None = None,
        is_view: bool = False,
    ) -> None:
        super().__init__(original, collate)
        self._features = dict(features)
        self._left_out = set(left_out)
        self._rest = rest
        self._is_view = is_view
        self._raw = original
        self._reader = original
        self._reader_collate = collate
        smaller = None
        if rest is None:
            smaller = dataset_without(original, left_out)
        if smaller is not None:
            self._reader, own_collate = smaller
            if own_collate is not None:
                self._reader_collate = own_collate
        if type(self._reader) is DictDataset:
            self._rest = self._reader.entries
        self._others = [self._reader]
        self.serves_from_memory = self._rest is not None
        # copies share it, so that the one which a running iterator reads follows
        self._retired: set[str] = set()
        self._is_complete = True

    @property
    def feature_bytes(self) -> int:
        """Size of all features."""
        size = 0
        for tensor in self._features.values():
            size += tensor.numel() * tensor.element_size()
        return size

    def with_inner(self, wrap: Callable[[Any], Any]) -> "ServedDataset":
        """The same, with what it reads wrapped, such as to be seeded."""
        wrapped = copy.copy(self)
        wrapped._raw = wrap(self._raw)
        wrapped._reader = wrap(self._reader)
        wrapped._others = [wrapped._reader]
        return wrapped

    def retire(self, parts: Collection[str]) -> None:
        """Serves these parts no more, nor do copies in this process; their entries are read again, if not of a view."""
        self._retired.update(parts)

    def __getitems__(self, drawn: Any) -> Any:
        """A whole batch, collated; `drawn` are indices, or have them as an attribute."""
        indices = getattr(drawn, "indices", drawn)
        rows = rows_of(indices, len(self))
        if rows is None:
            return read(self._raw, drawn, self.original_collate)
        if self._retired and not self._is_view:
            whole = read(self._raw, drawn, self.original_collate)
            batch = dict(whole)
        elif self._rest is not None:
            batch = {key: map_tensors(partial(rows_from, rows), entry) for key, entry in self._rest.items()}
        else:
            whole = read(self._reader, drawn, self._reader_collate)
            batch = {key: entry for key, entry in whole.items() if key not in self._left_out}
        served = {}
        for name, features in self._features.items():
            if name not in self._retired:
                served[name] = features.index_select(0, rows)
        batch[CACHED] = served
        batch[CACHED_INDEX] = rows
        return batch


class ServedViews(StandInDataset):
    """Serves one of several versions of the samples: in epoch e that of the number e modulo their number.

    Args:
        original: The dataset.
        views: What is served of each version.
    """

    def __init__(self, original: Any, views: Sequence[ServedDataset]) -> None:
        super().__init__(original, views[0].original_collate)
        self._views = list(views)
        self._others = self._views
        self.serves_from_memory = all(view.serves_from_memory for view in views)
        self._is_complete = True

    @property
    def feature_bytes(self) -> int:
        """Size of all features."""
        return sum(view.feature_bytes for view in self._views)

    def with_inner(self, wrap: Callable[[Any], Any]) -> "ServedViews":
        """The same, with what it reads wrapped, unless that is a version of samples, which has seeds of its own."""

        def wrap_others(inner: Any) -> Any:
            return inner if isinstance(inner, DatasetView) else wrap(inner)

        return ServedViews(self.original, [view.with_inner(wrap_others) for view in self._views])

    def retire(self, parts: Collection[str]) -> None:
        """Serves these parts no more, nor do copies in this process."""
        for view in self._views:
            view.retire(parts)

    def __getitems__(self, drawn: Any) -> Any:
        """A whole batch, collated, of the version that belongs to the epoch in which it was `drawn`."""
        epoch = getattr(drawn, "epoch", 0)
        return self._views[epoch % len(self._views)].__getitems__(drawn)


def exchange(loader: DataLoader[Any], dataset: Any, collate: Collate) -> None:
    """Puts a dataset and its collation into a loader, whose next iterator takes them.

    What is served from memory needs no worker processes, which would only send it; they come back with the original.
    """
    before: Any = loader.dataset
    if isinstance(before, StandInDataset):
        loader.num_workers, loader.timeout = before.workers
    # a loader forbids the plain way
    object.__setattr__(loader, "dataset", dataset)
    loader.collate_fn = collate
    if isinstance(dataset, StandInDataset):
        dataset.workers = loader.num_workers, loader.timeout
        if dataset.serves_from_memory:
            loader.num_workers, loader.timeout = 0, 0


def rows_of(indices: Sequence[Any], count: int) -> Tensor | None:
    """Indices as int64 `(B,)` from 0 on; None if they are not whole numbers."""
    kinds = set(map(type, indices))
    numbers = list(indices)
    # seldom, and asked for each batch
    if kinds != {int}:
        if not all(issubclass(kind, int | np.integer) for kind in kinds):
            return None
        numbers = [int(index) for index in indices]
    rows = torch.tensor(numbers, dtype=torch.long)
    if numbers and min(numbers) < 0:
        rows = torch.where(rows < 0, rows + count, rows)
    return rows


def rows_from(rows: Tensor, tensor: Tensor) -> Tensor:
    """Rows `(B,)` of a tensor; several times as fast as indexing by them."""
    return tensor.index_select(0, rows)


def read(dataset: Any, drawn: Any, collate: Collate) -> Any:
    """A collated batch of a dataset that may load whole batches."""
    load = getattr(dataset, "__getitems__", None)
    if callable(load):
        samples = load(drawn)
        return collate(samples)
    return collate([dataset[index] for index in drawn])


def dataset_without(dataset: Any, keys: Collection[str]) -> tuple[Any, Collate | None] | None:
    """A dataset that does not read these keys, and its collation if that is another one; None if it offers none."""
    if type(dataset) is Subset:
        inner = dataset_without(dataset.dataset, keys)
        if inner is None:
            return None
        smaller, collate = inner
        return Subset(smaller, dataset.indices), collate
    if isinstance(dataset, DatasetView):
        inner = dataset_without(dataset.dataset, keys)
        return None if inner is None else (dataset.around(inner[0]), inner[1])
    without = getattr(dataset, "without", None)
    if not callable(without):
        return None
    smaller = without(keys)
    return smaller, getattr(smaller, "collate", None)
