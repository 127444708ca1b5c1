"""The callbacks that a task brings along, made from the facts of its parts."""

from collections.abc import Iterable, Mapping
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
from hybrid_lightning.gradients.clipping_rule import ClippingRule
from hybrid_lightning.network.part import Part
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule


def default_callbacks(facts: Iterable[Part], unfreezing: Mapping[str, Any]) -> list[pl.Callback]:
    """Those that the facts need, in the order in which they have to see the gradients.

    Args:
        facts: Of all parts, and of the fusion.
        unfreezing: Arguments of `GradualUnfreezing`.
    """
    facts = list(facts)
    callbacks: list[pl.Callback] = [L2SP(strength={})] if any(part.l2sp for part in facts) else []
    callbacks += [GradualUnfreezing({}, **unfreezing), NonFiniteGradients()]
    callbacks += [GradientClipping({})] if any(part.clip for part in facts) else []
    callbacks += [GradientNormMonitor(), ExactResume()]
    return [*callbacks, *([ReestimateStatistics()] if any(part.batch_norm == "recalibrate" for part in facts) else [])]


def follow_facts(callbacks: Iterable[pl.Callback], facts: Mapping[str, Part]) -> None:
    """Tells callbacks of `default_callbacks` what the facts say, now that it is known which parts have parameters."""
    batch_norm = {name: part.batch_norm for name, part in facts.items() if part.batch_norm}
    for callback in callbacks:
        if isinstance(callback, GradualUnfreezing):
            callback.configure(schedules_of(facts), batch_norm)
        if isinstance(callback, GradientClipping):
            callback.configure({n: ClippingRule.parse(part.clip) for n, part in facts.items() if part.clip})
        if isinstance(callback, L2SP):
            callback.configure({name: part.l2sp for name, part in facts.items() if part.l2sp})
        if isinstance(callback, ReestimateStatistics):
            callback.configure([name for name, mode in batch_norm.items() if mode == "recalibrate"])


def schedules_of(facts: Mapping[str, Part]) -> dict[str, UnfreezingSchedule]:
    """Part → when it unfreezes, for the parts that do not train from the start."""
    always = UnfreezingSchedule.parse("always")
    return {name: part.unfreeze for name, part in facts.items() if part.unfreeze != always}


def take_places(callbacks: list[pl.Callback], own: list[pl.Callback]) -> list[pl.Callback]:
    """Which of a task's own callbacks Lightning has to add to the Trainer's.

    Args:
        callbacks: The Trainer's. `L2SP` is put before them, because its gradient belongs to what they measure and
            change; those of another task, which this Trainer trained before, are removed.
        own: The task's; the user's callback of the same type takes the place of one.
    """
    for callback in own:
        callback.made_by_task = True  # type: ignore[attr-defined]
    others = [c for c in callbacks if not getattr(c, "made_by_task", False)]
    added = [mine for mine in own if not any(isinstance(other, type(mine)) for other in others)]
    callbacks[:] = [*(mine for mine in added if isinstance(mine, L2SP)), *others]
    return [mine for mine in added if not isinstance(mine, L2SP)]
