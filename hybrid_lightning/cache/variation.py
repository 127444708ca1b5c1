"""Which entries of samples are the same each time, so that what depends on them alone can be kept."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch import LightningModule, Trainer

from hybrid_lightning.cache.fingerprints import digest, random_state
from hybrid_lightning.cache.frozen_parts import fixed_parts, startable_parts
from hybrid_lightning.cache.splits import (
    CannotCacheError,
    DrawsError,
    Split,
    View,
    all_random_state,
    as_the_module_gets_it,
)
from hybrid_lightning.drift.reference_batch import own_random_state
from hybrid_lightning.errors import listing
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.resume.exact_resume import ExactResume
from hybrid_lightning.resume.seeded_loaders import loads_batches

_LOOKED_AT = 8  # samples that are read twice


def varying_keys(trainer: Trainer, pl_module: LightningModule, split: Split) -> set[str]:
    """The keys whose entries may differ the next time that the same samples, or versions of them, are read.

    Raises:
        CannotCacheError: If that may be any of them.
    """
    rows = split.spread_rows(_LOOKED_AT)
    with own_random_state(trainer):
        before = random_state()
        first = split.read(rows)
        # a transform that was not applied this time has drawn that, too
        if split.view is None and random_state() != before:
            raise DrawsError("reading a sample draws random numbers, as a random transform does")
        second = split.read(rows)
    if not isinstance(first, Mapping):
        raise CannotCacheError("its batches are not dicts")
    varying = _differing(first, second)
    split.varies = bool(varying)
    if split.view is not None and varying:
        raise CannotCacheError(
            f"views need transforms that draw from torch, numpy or random; {listing(sorted(varying))} changes with a "
            f"generator of the dataset's own"
        )
    with split.stage(trainer):
        return varying | _changed_at_random(trainer, pl_module, first)


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> set[str]:
    keys = set(first) ^ set(second)
    for key in set(first) & set(second):
        before = digest(first[key])
        after = digest(second[key])
        if before != after:
            keys.add(key)
    return keys


def _changed_at_random(trainer: Trainer, pl_module: LightningModule, batch: Mapping[str, Any]) -> set[str]:
    """The keys that hooks of batches, such as an augmentation, may change in another way the next time."""
    device = trainer.strategy.root_device
    converted = trainer.precision_plugin.convert_input(batch)
    moved = move_data_to_device(converted, device)
    raw = {key: digest(entry) for key, entry in moved.items()}
    with own_random_state(trainer):
        before = all_random_state(device)
        once = as_the_module_gets_it(trainer, pl_module, dict(moved))
        after = all_random_state(device)
        twice = as_the_module_gets_it(trainer, pl_module, dict(moved))
    changed = _differing(once, twice)
    if after == before:
        return changed
    for key, entry in once.items():
        # with a small probability of a change, two equal results would prove nothing
        is_passed_on = key in moved and _same_tensors(moved[key], entry)
        if not is_passed_on or digest(entry) != raw[key]:
            changed.add(key)
    return changed


def _same_tensors(one: Any, other: Any) -> bool:
    """Whether two entries are the same objects, in dicts as well."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return one is other
    if one.keys() != other.keys():
        return False
    return all(_same_tensors(one[key], other[key]) for key in one)


class Cacheable(NamedTuple):
    """What of training samples can be kept, and the names of the splits for which the same can."""

    fixed: list[str]  # parts
    started: list[str]  # parts of which the start can
    splits: list[str]
    view: View | None  # the first version of training samples, if several are kept
    varying: list[str]  # names of the splits whose other entries are not the same each time

    def chosen(self, splits: Sequence[Split]) -> list[Split]:
        """The splits for which the same can be kept, with what is said here about them."""
        for split in splits:
            split.varies = split.name in self.varying
            if split.is_training:
                split.view = self.view
        return [split for split in splits if split.name in self.splits]


def cacheable(
    trainer: Trainer,
    pl_module: LightningModule,
    network: HybridNetwork,
    frozen: Sequence[str],
    partly: Sequence[str],
    splits: Sequence[Split],
    views: int | None = None,
) -> Cacheable:
    """Which of the frozen and partly frozen parts read what is the same each time; `views` may be kept of samples."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    view = None
    for split in splits:
        try:
            if split.is_training:
                varying, view = _varying_or_views(trainer, pl_module, split, views)
            else:
                varying = varying_keys(trainer, pl_module, split)
            fixed = fixed_parts(network, frozen, varying)
            found[split.name] = fixed, startable_parts(network, partly, fixed, varying)
        except CannotCacheError:
            if split.is_training:
                raise
            found[split.name] = [], []
    fixed, started = found["train"]
    if not fixed and not started:
        by = ", with whole batches or by a generator of the dataset's own, which views cannot repeat" if views else ""
        raise CannotCacheError(f"what it reads changes at random from epoch to epoch{by}")
    same = [name for name, of_split in found.items() if of_split == found["train"]]
    return Cacheable(fixed, started, same, view, [split.name for split in splits if split.varies])


def _varying_or_views(
    trainer: Trainer, pl_module: LightningModule, split: Split, views: int | None
) -> tuple[set[str], View | None]:
    """See `varying_keys`; of versions of the training samples, where reading them draws random numbers."""
    try:
        return varying_keys(trainer, pl_module, split), None
    except DrawsError:
        if views is None:
            raise
    first = View(seed_of(trainer), 0, views)
    if loads_batches(split.given):
        raise CannotCacheError("views need a dataset that reads sample by sample; this one reads whole batches")
    return varying_keys(trainer, pl_module, dataclasses.replace(split, view=first)), first


def seed_of(trainer: Trainer) -> int:
    """The seed of the run, from which its loaders' random numbers follow."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ExactResume) and callback.seed is not None:
            return callback.seed
    raise CannotCacheError("views are drawn from the seed of ExactResume, which is off")
