"""Computing what is served of a split, on all ranks, or finding it in the store."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from lightning.pytorch import Trainer
from torch import Tensor

from hybrid_lightning.cache.fingerprints import digest, part_fingerprint
from hybrid_lightning.cache.ranks import sum_over_ranks
from hybrid_lightning.cache.served import ServedDataset, dataset_without
from hybrid_lightning.cache.splits import (
    CannotCacheError,
    Outputs,
    Scene,
    Split,
    computing,
    fill,
    outputs_of,
)
from hybrid_lightning.cache.store import FeatureStore
from hybrid_lightning.cache.verification import largest_difference
from hybrid_lightning.network.short_circuit import parts_of
from hybrid_lightning.resume.seeded_loaders import loads_batches

_SMALL = 2**16  # bytes of a sample's other entries that may stay in memory
Path = tuple[str, ...]
"""Where a tensor stands in a batch: its key, and its name if the entry is a dict."""
T = TypeVar("T")


def together(trainer: Trainer, work: Callable[[], T]) -> T:
    """What `work`, without collectives, returns; `CannotCacheError` on all ranks if it fails on one."""
    problem = None
    result = None
    try:
        result = work()
    except CannotCacheError as error:
        problem = str(error)
    except Exception as error:  # third-party datasets and modules may raise any exception
        problem = f"{type(error).__name__}: {error}"[:300]
    is_done = problem is None
    if not trainer.strategy.reduce_boolean_decision(is_done):
        raise CannotCacheError(problem or "another rank could not compute it")
    return result  # type: ignore[return-value]


def _wait() -> None:
    """Does nothing, while other ranks do something."""


class Filling:
    """One split's features of parts or their starts, and its other entries if the dataset only gives whole samples.

    Collective: make and call it on every rank, alike. `samples` is the split's of `samples_hashes`; `offered` are
    features of training samples that need not be computed again: fingerprint of a part → `(rows, ...)`. `left_out` are
    keys that nothing reads.
    """

    def __init__(
        self,
        scene: Scene,
        store: FeatureStore,
        split: Split,
        parts: Sequence[str],
        samples: str,
        offered: Mapping[str, Tensor],
        left_out: Collection[str],
    ) -> None:
        self.trainer, self.pl_module, self.network = scene.trainer, scene.pl_module, scene.network
        trainer = scene.trainer
        self.store = store
        self.split = split
        self.parts = list(parts)
        self._common = [samples, split.rows, split.size, trainer.precision, *(split.view or ())]
        self.left_out = left_out
        self.found: dict[str, Tensor] = {}
        """Key of the store → tensor `(rows, ...)`, of all that is served."""
        self._missing: list[str] = []
        # what has been computed before is not of these versions
        self._offered = offered if split.is_training and split.view is None else {}
        self._accepted: dict[str, Tensor] = {}
        # datasets that differ between ranks are filled by each rank for itself
        strategy = trainer.strategy
        is_equal = strategy.broadcast(samples) == samples
        self._is_shared = trainer.world_size > 1 and strategy.reduce_boolean_decision(is_equal)

    @property
    def keys(self) -> list[str]:
        """The keys of the store under which it is kept."""
        return [*self.part_keys.values(), *self.rest_keys.values()]

    def run(self) -> ServedDataset:
        """The dataset to be served; `CannotCacheError` if that cannot be or differs from a live forward."""
        trainer = self.trainer
        layout = together(trainer, self._layout)
        self._find()
        if self._missing:
            accepted = together(trainer, partial(self._accept, layout))
            if self._is_shared:
                accepted = trainer.strategy.broadcast(accepted)
            self._writers_first(partial(self._allocate, layout))
            together(trainer, partial(self._fill, accepted))
            if self._is_shared:
                self._sum_shares()
            together(trainer, self._keep)
        together(trainer, self._verify)
        return together(trainer, self._served)

    def _find(self) -> None:
        """Looks up what the store has; the ranks fill together what one of them lacks."""
        strategy = self.trainer.strategy
        for key in self.keys:
            look_up = partial(self.store.find, key, self.split.rows)
            tensor = self._writers_first(look_up)
            is_here = tensor is not None
            is_everywhere = strategy.reduce_boolean_decision(is_here)
            if tensor is None or not is_everywhere:
                self._missing.append(key)
            else:
                self.found[key] = tensor

    def _writers_first(self, work: Callable[[], T]) -> T:
        """As `together`; the ranks that map what others write to files come after these."""
        if self.store.writes:
            result = together(self.trainer, work)
            together(self.trainer, _wait)
            return result
        together(self.trainer, _wait)
        return together(self.trainer, work)

    def _sum_shares(self) -> None:
        device = self.trainer.strategy.root_device
        for key in self._missing:
            is_file = self.store.is_file(key)
            # all ranks have written to the same memory
            if is_file and self.store.has_all:
                continue
            sum_over_ranks(self.found[key], device, self.store.writes or not is_file)

    def _served(self) -> ServedDataset:
        split = self.split
        features = {name: self.found[key] for name, key in self.part_keys.items()}
        rest = None
        if self.rest_keys:
            entries = {path: self.found[key] for path, key in self.rest_keys.items()}
            rest = nested(entries)
        is_view = split.view is not None
        served = ServedDataset(split.dataset, split.collate, features, self.left_out, rest, is_view)
        with computing(self.trainer, self.network, split):
            # hooks of batches may need what is left out
            rows = split.spread_rows(2)
            batch = served.__getitems__(rows)
            outputs_of(self.trainer, self.pl_module, self.network, batch, sorted(parts_of(self.parts)))
        return served

    def _layout(self) -> dict[str, Tensor]:
        """Key of the store → what it has of two samples."""
        split = self.split
        with computing(self.trainer, self.network, split):
            rows = split.spread_rows(2)
            batch = split.read(rows)
            outputs = outputs_of(self.trainer, self.pl_module, self.network, batch, self.parts)
        rest = self._rest_of(batch)
        self._fingerprints = {name: part_fingerprint(self.network, name) for name in self.parts}
        self.part_keys = {name: self._key(name, own) for name, own in self._fingerprints.items()}
        self.rest_keys = {path: self._key("rest", path) for path in rest}
        layout = {}
        for name, tensor in outputs.items():
            key = self.part_keys[name]
            layout[key] = tensor
        for path, tensor in rest.items():
            key = self.rest_keys[path]
            layout[key] = tensor
        return layout

    def _key(self, name: str, *of_it: Any) -> str:
        file_name = name.replace("/", ".")
        view = "" if self.split.view is None else f".{self.split.view.number}"
        return f"{self.split.name}{view}-{file_name}-{digest(self._common, *of_it)}"

    def _rest_of(self, batch: Mapping[str, Any]) -> dict[Path, Tensor]:
        """What is kept of a batch beside features; empty if it is read from the dataset each time."""
        dataset = self.split.dataset
        # what loads whole batches has them in memory, as a rule
        if self.split.varies or dataset_without(dataset, self.left_out) is not None or loads_batches(dataset):
            return {}
        found: dict[Path, Tensor] = {}
        for path, value in flat(batch, self.left_out):
            if not isinstance(value, Tensor) or not value.ndim:
                return {}
            found[path] = value
        size = 0.0
        for tensor in found.values():
            size += tensor.numel() * tensor.element_size() / len(tensor)
        return found if size <= _SMALL else {}

    def _accept(self, layout: Mapping[str, Tensor]) -> list[str]:
        """The missing parts whose features are offered, if these are what a live forward gives."""
        found = {}
        for name, key in self.part_keys.items():
            tensor = self._offered.get(self._fingerprints[name])
            like = layout[key]
            if key not in self._missing or tensor is None:
                continue
            if tensor.dtype == like.dtype and tensor.shape == (self.split.rows, *like.shape[1:]):
                found[name] = tensor
        if not found:
            return []
        gap, allowed = largest_difference(self.trainer, self.pl_module, self.network, self.split, found)
        if gap > allowed:
            return []  # such as of samples in another order
        self._accepted = found
        return list(found)

    def _allocate(self, layout: Mapping[str, Tensor]) -> None:
        self.store.forget(self._missing)
        for key in self._missing:
            like = layout[key]
            shape = (self.split.rows, *like.shape[1:])
            self.found[key] = self.store.allocate(key, shape, like.dtype)

    def _fill(self, accepted: Sequence[str]) -> None:
        for name in accepted:
            # the ranks' shares are added up later
            if not self._is_shared or self.trainer.global_rank == 0:
                self.found[self.part_keys[name]].copy_(self._accepted[name])
        parts = [name for name in self.parts if self.part_keys[name] in self._missing and name not in accepted]
        if not parts and not self.rest_keys:
            return

        def write(rows: Tensor, batch: Any, outputs: Outputs) -> None:
            for name, tensor in outputs.items():
                key = self.part_keys[name]
                self.found[key][rows] = tensor
            if not self.rest_keys:
                return
            for path, value in flat(batch, self.left_out):
                key = self.rest_keys[path]
                self.found[key][rows] = value

        share = (0, 1)
        if self._is_shared:
            share = (self.trainer.global_rank, self.trainer.world_size)
        fill(self.trainer, self.pl_module, self.network, self.split, parts, share, write)

    def _keep(self) -> None:
        for key in self._missing:
            self.store.keep(key, self.found[key])

    def _verify(self) -> None:
        features = {}
        for name, key in self.part_keys.items():
            if key not in self.store.verified:
                features[name] = self.found[key]
        if not features:
            return
        gap, allowed = largest_difference(self.trainer, self.pl_module, self.network, self.split, features)
        if gap > allowed:
            raise CannotCacheError(
                f"cached features differ from those of a live forward by {gap:.2g} of their largest value, more than "
                f"{allowed:.2g}"
            )
        self.store.verified.update(self.part_keys.values())


def flat(batch: Mapping[str, Any], left_out: Collection[str] = ()) -> Iterator[tuple[Path, Any]]:
    """The entries of a batch and those of dicts within it, but for some keys."""
    for key, entry in batch.items():
        if key in left_out:
            continue
        if isinstance(entry, Mapping):
            for name, value in entry.items():
                yield (key, name), value
        else:
            yield (key,), entry


def nested(entries: Mapping[Path, Tensor]) -> dict[str, Any]:
    """A batch from what `flat` gave."""
    batch: dict[str, Any] = {}
    for (key, *name), tensor in entries.items():
        if name:
            batch.setdefault(key, {})[name[0]] = tensor
        else:
            batch[key] = tensor
    return batch
