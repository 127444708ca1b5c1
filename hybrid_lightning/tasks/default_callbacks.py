"""The callbacks that a task brings along, made from the options of its parts."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import lightning.pytorch as pl

from hybrid_lightning.callbacks import (
    L2SP,
    ExactResume,
    GradientClipping,
    GradientNormMonitor,
    GradualUnfreezing,
    NonFiniteGradients,
    ReestimateStatistics,
)
from hybrid_lightning.network.part import Part
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule


def default_callbacks(parts: Collection[Part], unfreezing: Mapping[str, Any]) -> list[pl.Callback]:
    """Those that the options of the parts need, in the order in which they have to see the gradients.

    Args:
        parts: All parts, and the fusion.
        unfreezing: Arguments of `GradualUnfreezing`.
    """
    callbacks: list[pl.Callback] = []
    if any(part.l2sp for part in parts):
        callbacks.append(L2SP(strength={}))
    callbacks += [GradualUnfreezing({}, **unfreezing), NonFiniteGradients()]
    if any(part.clip for part in parts):
        callbacks.append(GradientClipping({}))
    callbacks += [GradientNormMonitor(), ExactResume()]
    if any(part.batch_norm == "recalibrate" for part in parts):
        callbacks.append(ReestimateStatistics())
    return callbacks


def configure_callbacks(callbacks: Iterable[pl.Callback], parts: Mapping[str, Part]) -> None:
    """Gives callbacks of `default_callbacks` the options of the parts that turned out to have parameters."""
    batch_norm = {name: part.batch_norm for name, part in parts.items() if part.batch_norm}
    for callback in callbacks:
        if isinstance(callback, GradualUnfreezing):
            callback.configure(schedules_of(parts), batch_norm)
        if isinstance(callback, GradientClipping):
            callback.configure({name: part.clip for name, part in parts.items() if part.clip})
        if isinstance(callback, L2SP):
            callback.configure({name: part.l2sp for name, part in parts.items() if part.l2sp})
        if isinstance(callback, ReestimateStatistics):
            callback.configure([name for name, mode in batch_norm.items() if mode == "recalibrate"])


def schedules_of(parts: Mapping[str, Part]) -> dict[str, UnfreezingSchedule]:
    """Part → when it unfreezes, for the parts that do not train from the start."""
    always = UnfreezingSchedule.parse("always")
    return {name: part.unfreeze for name, part in parts.items() if part.unfreeze != always}


def merge_callbacks(callbacks: list[pl.Callback], own: list[pl.Callback]) -> list[pl.Callback]:
    """The default callbacks that the user has not replaced, for Lightning to add to the Trainer's.

    Args:
        callbacks: The Trainer's, changed in place. `L2SP` is put before them, because its gradient belongs to what they
            measure and change; those of another task, which this Trainer trained before, are removed.
        own: The task's; the user's callback of the same type takes the place of one.
    """
    for callback in own:
        callback.made_by_task = True  # type: ignore[attr-defined]
    others = [callback for callback in callbacks if not getattr(callback, "made_by_task", False)]
    first: list[pl.Callback] = []
    added: list[pl.Callback] = []
    for callback in own:
        if any(isinstance(other, type(callback)) for other in others):
            continue
        (first if isinstance(callback, L2SP) else added).append(callback)
    callbacks[:] = [*first, *others]
    return added
