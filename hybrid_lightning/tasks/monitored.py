"""The metrics that callbacks, schedules and the checkpoint follow: whether they are logged, and which way is better."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from hybrid_lightning.direction import MAIN, Directions, checked_mode
from hybrid_lightning.errors import at, unknown
from hybrid_lightning.network.part import place_of
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule

_WHOSE_LOGS_ARE_KNOWN = ("hybrid_lightning", "lightning", "pytorch_lightning")


def directions_of(task: Any) -> dict[str, str | None]:
    """The metrics that a task's steps log in a run, each with its own direction."""
    own: dict[str, str | None] = {"loss": "min"}
    metrics = task.evaluator.metrics_of("val")
    for name in metrics.logged:
        higher = getattr(metrics.metrics[name], "higher_is_better", None)
        own[name] = None if higher is None else ("max" if higher else "min")
    found = {f"val/{name}": direction for name, direction in own.items()}
    return {**found, "train/loss": "min"}


def check_monitors(task: Any, callbacks: Iterable[pl.Callback]) -> None:
    """Raises `ConfigError` if a task's schedules or callbacks follow a metric that nobody logs, or the wrong way."""
    directions = directions_of(task)
    callbacks = list(callbacks)
    schedules = {f"{place_of(name)}.unfreeze": part.unfreeze for name, part in task.all_options.items()}
    # anybody else may log what is not known here
    homes = {kind.__module__.partition(".")[0] for kind in (type(task), *map(type, callbacks))}
    is_closed = homes <= set(_WHOSE_LOGS_ARE_KNOWN)
    for callback in callbacks:
        name = "checkpoint" if isinstance(callback, ModelCheckpoint) else type(callback).__name__
        if isinstance(callback, GradualUnfreezing):
            schedules |= {f"{name}.{part}": schedule for part, schedule in callback.schedules.items()}
        monitor, mode = getattr(callback, "monitor", None), getattr(callback, "mode", None)
        if isinstance(monitor, str) and mode in ("min", "max") and monitor != MAIN:  # others mean something else by it
            _check(f"{name}.monitor", monitor, mode, directions, is_closed)
    for place, schedule in schedules.items():
        if isinstance(schedule, UnfreezingSchedule):
            for plateau in schedule.plateaus:
                _check(place, plateau.metric, plateau.mode, directions, is_closed)
    scheduler = task.settings.scheduler
    if isinstance(scheduler, Mapping) and "monitor" in scheduler and is_closed:
        refuse_unlogged("model.scheduler.monitor", str(scheduler["monitor"]), directions)


def _check(place: str, monitor: str, mode: str, directions: Directions, is_closed: bool) -> None:
    if is_closed:
        refuse_unlogged(place, monitor, directions)
    with at(place.removesuffix(".monitor")):
        checked_mode(monitor, mode, directions)


def refuse_unlogged(place: str, monitor: str, directions: Directions) -> None:
    """Raises `ConfigError` for a name of a metric that is none of those that the steps of a run log.

    What callbacks log beside these, such as ``lr/<group>``, is not known here.
    """
    is_of_steps = monitor.startswith(("val", "train/", "train_", "test")) or f"val/{monitor}" in directions
    if monitor not in directions and (is_of_steps or get_close_matches(monitor, directions, cutoff=0.8)):
        begun = [name for name in directions if name.startswith(monitor)]  # val/accuracy, of val/acc
        raise unknown(place, "metric", monitor, begun or directions)
