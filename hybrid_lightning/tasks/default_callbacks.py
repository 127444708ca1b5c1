"""The callbacks that a task brings along, made from the options of its parts."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from hybrid_lightning.cache.options import CacheOptions
from hybrid_lightning.callbacks import (
    L2SP,
    AverageWeights,
    ExactResume,
    FrozenFeatureCache,
    GradientClipping,
    GradientNormMonitor,
    GradualUnfreezing,
    NonFiniteGradients,
    ReestimateStatistics,
)
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.part import Part
from hybrid_lightning.tasks.calibrate_output import CalibrateOutput
from hybrid_lightning.tasks.progress import FitProgress
from hybrid_lightning.tasks.selection import SelectOutput
from hybrid_lightning.tasks.settings import check_average, has_own_steps
from hybrid_lightning.tasks.soup import GreedySoup
from hybrid_lightning.tasks.start import StartOfTraining
from hybrid_lightning.trainer import FitCallback
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule


def default_callbacks(
    parts: Collection[Part], unfreezing: Mapping[str, Any], cache: CacheOptions, average: Any = None
) -> list[FitCallback]:
    """Those that the options of the parts need, in the order in which they have to see the gradients."""
    callbacks: list[FitCallback] = [StartOfTraining()]
    kind, value = check_average(average)
    if kind == "ema":
        callbacks.append(AverageWeights(value))
    if any(part.l2sp for part in parts):
        callbacks.append(L2SP(strength={}))
    callbacks += [GradualUnfreezing({}, **unfreezing), NonFiniteGradients()]
    if any(part.clip for part in parts):
        callbacks.append(GradientClipping({}))
    callbacks.append(GradientNormMonitor())
    if cache.mode is not False:
        # before the loaders are seeded, and after what unfreezes
        callbacks.append(FrozenFeatureCache(cache.mode, views=cache.views))
    callbacks.append(ExactResume())
    if any(part.batch_norm == "recalibrate" for part in parts):
        callbacks.append(ReestimateStatistics())
    if kind == "soup":
        callbacks.append(GreedySoup(value))
    callbacks += [SelectOutput(), CalibrateOutput(), FitProgress()]
    return callbacks


def require_callbacks(task: type, own: Collection[FitCallback]) -> None:
    """Raises `ConfigError` if a task's own `configure_callbacks` has left these out, so that nothing would freeze."""
    if not own:
        raise ConfigError(
            "it leaves out the callbacks that freeze, unfreeze and resume. Return [*super().configure_callbacks(), "
            "...].",
            f"{task.__name__}.configure_callbacks",
        )


def cache_options(task: type, given: Any) -> CacheOptions:
    """The task's option `cache`; ``auto`` is False for steps of a user's own, which may read the raw entries."""
    options = CacheOptions.parse(given)
    if options.mode != "auto" or not has_own_steps(task):
        return options
    if options.views is not None:
        rank_zero_info(
            f"cache: off, as the steps of {task.__name__} are your own and may read raw entries. Write "
            f"{{views: {options.views}, mode: true}} if they do not."
        )
    return CacheOptions(False)


def give_options(callbacks: Iterable[pl.Callback], options: Mapping[str, Part], groups: list[dict[str, Any]]) -> None:
    """Gives callbacks of `default_callbacks` the options of the parts that turned out to have parameters."""
    parts = with_parameters(options, groups)
    batch_norm = _given(parts, "batch_norm")
    for callback in callbacks:
        if isinstance(callback, GradualUnfreezing):
            callback.configure(schedules_of(parts), batch_norm)
        if isinstance(callback, GradientClipping):
            callback.configure(_given(parts, "clip"))
        if isinstance(callback, L2SP):
            callback.configure(_given(parts, "l2sp"))
        if isinstance(callback, ReestimateStatistics):
            callback.configure([name for name, mode in batch_norm.items() if mode == "recalibrate"])


def _given(parts: Mapping[str, Part], option: str) -> dict[str, Any]:
    """Part → its value of an option, for the parts that have one."""
    values = {}
    for name, part in parts.items():
        value = getattr(part, option)
        if value:
            values[name] = value
    return values


def with_parameters(options: Mapping[str, Part], groups: list[dict[str, Any]]) -> dict[str, Part]:
    """The parts that have parameters in an optimizer's groups."""
    names = {group["part"] for group in groups}
    return {name: part for name, part in options.items() if name in names}


def schedules_of(parts: Mapping[str, Part]) -> dict[str, UnfreezingSchedule]:
    """Part → when it unfreezes, for the parts that do not train from the start."""
    always = UnfreezingSchedule.parse("always")
    return {name: part.unfreeze for name, part in parts.items() if part.unfreeze != always}


def merge_callbacks(callbacks: list[pl.Callback], own: list[FitCallback]) -> list[FitCallback]:
    """The task's `own` callbacks without those that the user has replaced by type, for Lightning to add.

    Those of another task, which this Trainer trained before, are removed from the Trainer's `callbacks`.
    """
    for callback in own:
        callback.made_by_task = True
    users = [callback for callback in callbacks if not (isinstance(callback, FitCallback) and callback.made_by_task)]
    added = [callback for callback in own if not any(isinstance(other, type(callback)) for other in users)]
    # the first of ours come before the user's, which measure, change and save what these set and add
    first = [callback for callback in added if isinstance(callback, StartOfTraining | AverageWeights | L2SP)]
    callbacks[:] = first + users
    return added[len(first) :]
