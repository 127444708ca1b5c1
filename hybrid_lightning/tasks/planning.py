"""What a task prints before it trains: reports of weights, and the plan."""

import re
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, reason
from hybrid_lightning.tasks.changed_config import all_settings
from hybrid_lightning.tasks.default_callbacks import schedules_of, with_parameters
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing
from hybrid_lightning.unfreezing.plan import plan_rows, plan_table, with_sharing
from hybrid_lightning.unfreezing.promises import check_moments, refuse_unwatched
from hybrid_lightning.unfreezing.timeline import training_at_start

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
_DOUBT = (
    "{}: its live module counts as untrained, with the rate and the schedule of such parts. If it is trained already, "
    "write 'origin: pretrained' on the part; if not, 'origin: untrained', and this line goes."
)
_CHAINED = (
    "{reader}: reads the part {name!r}, not {name!r} of the batch, which only that part reads; if both are to read the "
    "batch, name the part otherwise and give it 'input: {name}'."
)


def plan_of(task: Any, groups: list[dict[str, Any]], trainer: pl.Trainer, length: FitLength) -> str:
    """The plan of a `HybridTask` with these groups; `ConfigError` if its moments do not fit into the run."""
    options = task.all_options
    schedules = schedules_of(with_parameters(options, groups))
    decided: dict[str, int] | None = None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradualUnfreezing):  # perhaps the user's own, of other schedules
            schedules, decided = callback.schedules, callback.decided_steps
    training_at_start(groups, schedules)
    refuse_unwatched(trainer, schedules)
    check_moments(trainer, groups, schedules, length)
    lines = []
    for name, report in task.built().weight_reports.items():
        lines.append(report if name == "init_from" else f"{name}: {report}")
    lines += [_DOUBT.format(name) for name, part in options.items() if part.is_doubtful]
    lines += [_CHAINED.format(reader=reader, name=name) for reader, name in task.built().wiring.chained_by_name()]
    origins = {name: str(part.origin) for name, part in options.items()}
    rows = plan_rows(groups, schedules, origins, length, decided)
    shares = {name: part.share for name, part in options.items() if part.share is not None}
    return "\n".join([*lines, plan_table(with_sharing(rows, shares), length)])


def log_settings(task: Any) -> None:
    """Gives the settings by which runs are compared to each logger: the task's, its parts', and those of its run."""
    settings = flat({**all_settings(task.saved_task()), **task.run_settings})
    for logger in task.loggers:
        try:
            logger.log_hyperparams(settings)
        except Exception as error:  # such as of MLflow, if a continued run has changed one
            rank_zero_info(f"{type(logger).__name__} has not taken all settings: {reason(error)}")


def flat(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Dotted name → number, truth value or text, of what is set; names without what loggers refuse in them."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{path}.{_NOT_IN_NAMES.sub('_', str(key))}".removeprefix(".")
        if isinstance(value, Mapping):
            found |= flat(value, name)
        elif isinstance(value, bool | int | float | str):
            found[name] = value
        elif value is not None:
            found[name] = str(value)
    return found


def refuse_without_validation(trainer: pl.Trainer, scheduler: Any) -> None:
    """Raises `ConfigError` if a scheduler of the rates waits for a metric, and nothing is validated."""
    if getattr(scheduler, "by_metric", False) and not trainer.enable_validation:
        raise ConfigError("ReduceLROnPlateau needs a validation split, and there is none.", "model.scheduler")
