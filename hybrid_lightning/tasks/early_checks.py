"""What can be found wrong with a task before any data are read."""

from typing import Any

import lightning.pytorch as pl
from torch import nn

from hybrid_lightning.distributed.strategies import refuse_strategy
from hybrid_lightning.errors import ConfigError, at
from hybrid_lightning.importing import check_names
from hybrid_lightning.lightning_private import is_compiled
from hybrid_lightning.network.libraries import refuse_other_ways
from hybrid_lightning.network.making import PartMaker
from hybrid_lightning.network.part import Part, place_of
from hybrid_lightning.optim.groups import named_param_groups
from hybrid_lightning.tasks.monitored import check_monitors
from hybrid_lightning.trainer import refuse_changing_windows
from hybrid_lightning.unfreezing.promises import refuse_breaking_callbacks, refuse_restoring
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule
from hybrid_lightning.weights.loading import WeightSource
from hybrid_lightning.weights.safe_files import located


def check_before_data(task: Any, trainer: pl.Trainer, reads_weights: bool) -> None:
    """Raises `ConfigError` for names, arguments, files and metrics that would be refused once the data are there.

    Args:
        task: A `HybridTask`, whose network has not been built.
        trainer: The one that will train it.
        reads_weights: Whether the task will read the weights of its parts, and not a checkpoint.
    """
    check_trainer(task, trainer)
    start = task.settings.init_from
    if start is not None and reads_weights:
        with at("model.init_from"):
            located(start.path)
    for name, part in task.all_options.items():
        with at(place_of(name)):
            _check_part(part, reads_weights and start is None)
    task.objective.build(None)
    # one parameter stands for all that the network will have
    stand_in = nn.ModuleDict({"head": nn.Linear(1, 1, bias=False)})
    groups = named_param_groups(stand_in, {"head": "head"}, lr=task.settings.lr)
    task.optimization(groups=groups)


def check_trainer(task: Any, trainer: pl.Trainer) -> None:
    """Raises `ConfigError` for a Trainer whose callbacks or limits do not go with a task, or for a compiled task."""
    if is_compiled(task):
        raise ConfigError(
            "torch.compile has wrapped the whole task, with its metrics and checks, which it cannot compile. Give the "
            "Trainer the task itself, and write 'compile: true' on the parts that are worth it.",
            "model",
        )
    refuse_strategy(trainer.strategy)
    check_monitors(task, trainer.callbacks)  # type: ignore[attr-defined]
    refuse_breaking_callbacks(trainer)
    refuse_changing_windows(trainer)
    limit = trainer.gradient_clip_val or 0
    if limit < 0:
        raise ConfigError(f"{limit} is negative; 0 clips nothing.", "trainer.gradient_clip_val")
    schedules = [part.unfreeze for part in task.all_options.values()]
    if any(isinstance(schedule, UnfreezingSchedule) and schedule.restores for schedule in schedules):
        refuse_restoring(trainer)


def _check_part(part: Part, reads_weights: bool) -> None:
    factory = PartMaker().factory_of(part)
    if factory is None:
        return
    refuse_other_ways(part.module)
    with at("args"):
        check_names(factory, part.args)
    if isinstance(part.weights, WeightSource) and reads_weights:
        with at("weights"):
            located(part.weights.path)
