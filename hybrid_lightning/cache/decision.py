"""Whether serving features pays: from counts and a first timing."""

import math
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from hybrid_lightning.cache.frozen_parts import unread_keys
from hybrid_lightning.cache.served import dataset_without, read
from hybrid_lightning.cache.splits import Split, computing, outputs_of
from hybrid_lightning.errors import counted
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.resume.seeded_loaders import loads_batches
from hybrid_lightning.trainer import fit_length
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing

FEWEST_READS = 1000
"""Samples that a process has to read while the parts are frozen; a shorter fit is not worth a timing."""
FEWEST_SPARED = 300
"""Samples that need not be computed, if those of the training were before; fewer are not worth it either."""
_LEAST_SAVING = 1.0  # second
_ENDLESS = 100.0  # epochs, where a run has no end
_DISK_SPEED = 5e8  # bytes per second, of a plain SSD
_DISK_SHARE = 0.25  # of what is free


class Outlook(NamedTuple):
    """How much is read, by this process, while the parts stay frozen."""

    epochs: float
    reads: float  # samples of training and validation


class Seconds(NamedTuple):
    """What a sample costs."""

    live: float  # reading it, and running what could be cached
    served: float  # reading what is left of it, and what was kept


def unfreezing_of(trainer: Trainer) -> GradualUnfreezing | None:
    """The callback that unfreezes, if there is one."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradualUnfreezing):
            return callback
    return None


def training_parameters(trainer: Trainer) -> set[nn.Parameter]:
    """What trains in this step, also what is unfrozen with its first batch."""
    unfreezing = unfreezing_of(trainer)
    spans = {} if unfreezing is None else unfreezing.spans
    step = trainer.global_step
    found: set[nn.Parameter] = set()
    for group in trainer.optimizers[0].param_groups:
        span = spans.get(group["name"])
        is_due = span is not None and span.trains(step)
        if is_due or any(parameter.requires_grad for parameter in group["params"]):
            found.update(group["params"])
    return found


def outlook(trainer: Trainer, tensors: Collection[Tensor], splits: Sequence[Split]) -> Outlook:
    """What is read until one of these tensors trains, or until the run ends."""
    length, step = fit_length(trainer), trainer.global_step
    per_epoch = length.steps_per_epoch or 1
    left = _ENDLESS * per_epoch if length.total_steps is None else length.total_steps - step
    left = min(left, _steps_frozen(trainer, tensors, left))
    epochs = left / per_epoch
    reads = 0.0
    for split in splits:
        reads += epochs * _rows_per_epoch(trainer, split)
    return Outlook(epochs, reads)


def _steps_frozen(trainer: Trainer, tensors: Collection[Tensor], left: float) -> float:
    """Steps until one of them trains; half of what is left of the run if a metric decides that."""
    unfreezing = unfreezing_of(trainer)
    if unfreezing is None:
        return left
    found = left
    own = set(tensors)
    for group in trainer.optimizers[0].param_groups:
        span = unfreezing.spans.get(group["name"])
        if span is None or own.isdisjoint(group["params"]):
            continue
        schedule = unfreezing.schedules.get(group["part"])
        if span.start is None and schedule is not None and schedule.metrics and not group["fixed"]:
            found = min(found, left / 2)
        elif span.start is not None and span.start > trainer.global_step:
            found = min(found, float(span.start - trainer.global_step))
    return found


def _rows_per_epoch(trainer: Trainer, split: Split) -> float:
    """Samples of a split that this process reads in an epoch."""
    batch = getattr(split.loader.batch_sampler, "batch_size", None) or split.size
    batches = float(trainer.num_training_batches)
    if split.is_training:
        return min(batches * batch, float(split.rows))
    every = float(trainer.val_check_batch or math.inf)
    often = max(1.0, batches / every) if math.isfinite(every) else 1.0
    often /= trainer.check_val_every_n_epoch or 1
    return often * min(len(split.loader) * batch, split.rows)


def measure(
    trainer: Trainer,
    pl_module: LightningModule,
    network: HybridNetwork,
    split: Split,
    places: Sequence[str],
    beside: Sequence[str] = (),
) -> Seconds:
    """Times a batch, the second of two; what is read for `places` and `beside` alone would not be read."""
    smaller = dataset_without(split.dataset, unread_keys(network, [*places, *beside]))
    workers = max(1, split.loader.num_workers)
    rows = split.spread_rows(split.size)
    with computing(trainer, network, split):
        for _ in range(2):
            start = time.perf_counter()
            batch = split.read(rows)
            after_reading = time.perf_counter()
            outputs = outputs_of(trainer, pl_module, network, batch, places)
            after_computing = time.perf_counter()
            for tensor in outputs.values():
                tensor[list(range(len(tensor)))]
            if smaller is not None:
                read(smaller[0], rows, smaller[1] or split.collate)
            end = time.perf_counter()
    reading = (after_reading - start) / workers
    served = end - after_computing
    if smaller is None and loads_batches(split.dataset):
        served += reading
    live = reading + after_computing - after_reading
    return Seconds(live / len(rows), served / len(rows))


def saving(
    ahead: Outlook,
    seconds: Seconds,
    rows: float,
    disk: float = 0.0,
) -> float:
    """Seconds that a process saves, less those of the fill of `rows`; `disk` are a sample's bytes that go to files."""
    served = seconds.served + disk / _DISK_SPEED
    per_read = seconds.live - served
    # to be written takes about as long as to be read
    return ahead.reads * per_read - rows * (seconds.live + disk / _DISK_SPEED)


def may_be_kept(size: float, memory: float, folder: Path, copies: int) -> bool:
    """Whether features of so many bytes fit into memory, or into a fair share of the free disk."""
    if size <= memory:
        return True
    there = folder
    while not there.exists():
        there = there.parent
    return size * copies <= shutil.disk_usage(there).free * _DISK_SHARE


def pays(saved: float) -> bool:
    """Whether so many seconds are worth it."""
    return saved >= _LEAST_SAVING


def described(
    parts: Sequence[str],
    splits: Sequence[Split],
    size: int,
    ahead: Outlook,
    saved: float | None,
) -> str:
    """A line on what is served: features of `size` bytes, which save so many seconds if that was measured."""
    counts = [f"{split.rows:,}" if split.view is None else f"{split.rows:,} × {split.copies}" for split in splits]
    rows = " + ".join(counts)
    if splits[0].view is not None:
        views = counted(splits[0].copies, "view")
        rows = f"{views} of training samples, {rows}"
    gain = "" if saved is None else f", saves about {saved:.0f} s"
    # in a single epoch something else has computed them before
    instead = f", instead of {ahead.epochs:.0f} times" if ahead.epochs >= 1.5 else ""
    return f"{', '.join(parts)}, {rows} rows, {size / 1e6:.1f} MB: computed once{instead}{gain}"
