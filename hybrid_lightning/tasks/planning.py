"""What a task prints before it trains: reports of weights, and the plan."""

from typing import Any

import lightning.pytorch as pl

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.tasks.changed_config import all_settings
from hybrid_lightning.tasks.default_callbacks import schedules_of, with_parameters
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing
from hybrid_lightning.unfreezing.plan import plan_rows, plan_table, with_sharing
from hybrid_lightning.unfreezing.promises import check_moments, refuse_unwatched
from hybrid_lightning.unfreezing.timeline import training_at_start

_DOUBT = (
    "{}: its live module counts as untrained, with the rate and the schedule of such parts. If it is trained already, "
    "write 'origin: pretrained' on the part; if not, 'origin: untrained', and this line goes."
)


def plan_of(task: Any, groups: list[dict[str, Any]], trainer: pl.Trainer, length: FitLength) -> str:
    """The plan of a `HybridTask` with these groups; `ConfigError` if its moments do not fit into the fit."""
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
    origins = {name: str(part.origin) for name, part in options.items()}
    rows = plan_rows(groups, schedules, origins, length, decided)
    shares = {name: part.share for name, part in options.items() if part.share is not None}
    return "\n".join([*lines, plan_table(with_sharing(rows, shares), length)])


def log_settings(task: Any) -> None:
    """Gives the task's settings and the options of its parts to each logger, by which runs are compared."""
    settings = all_settings(task.saved_task())
    for logger in task.loggers:
        logger.log_hyperparams(settings)


def refuse_without_validation(trainer: pl.Trainer, scheduler: Any) -> None:
    """Raises `ConfigError` if a scheduler of the rates waits for a metric, and nothing is validated."""
    if getattr(scheduler, "by_metric", False) and not trainer.enable_validation:
        raise ConfigError("ReduceLROnPlateau needs a validation split, and there is none.", "model.scheduler")
