"""Short fits within a run, with which Lightning's `Tuner` looks for a rate or a batch size."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.optim.lr_schedules import GroupLR, GroupRates
from hybrid_lightning.tasks.start import StartOfTraining
from hybrid_lightning.trainer import fit_length
from hybrid_lightning.unfreezing.freezing import set_trainable
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule
from hybrid_lightning.unfreezing.timeline import set_flags, training_at_start


def is_trial(trainer: Trainer) -> bool:
    """Whether the running fit is one of Lightning's trials, for which it takes all callbacks away."""
    return not any(isinstance(callback, StartOfTraining) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def start_trial(trainer: Trainer, schedules: Mapping[str, UnfreezingSchedule]) -> None:
    """Prepares a trial, which has no callbacks: of rates with what trains at step 0, of batch sizes with everything."""
    [optimizer] = trainer.optimizers
    free = [group for group in optimizer.param_groups if not group["fixed"]]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    own = [scheduler for scheduler in schedulers if isinstance(scheduler, GroupLR)]
    if not own:
        keep_shares(optimizer)  # Lightning has put in a scheduler that raises one rate
        training = training_at_start(optimizer.param_groups, schedules)
        set_flags(free, schedules, training)
        return
    for scheduler in own:
        scheduler.bind(fit_length(trainer))
    for group in free:
        # what has to fit into memory is the whole model at the end of its schedule
        set_trainable(group["params"], True)


def keep_shares(optimizer: Optimizer) -> None:
    """Turns one rate for all groups into the rate of each group, at the shares of the configuration."""
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_factor"]


def give_rates(trainer: Trainer, groups: Iterable[dict[str, Any]]) -> None:
    """Gives the rates of `groups`, newly made, to the optimizer and the scheduler of a run that is about to start.

    Raises `ConfigError` if the run has a scheduler whose base rate cannot be changed any more.
    """
    rates = [group["lr"] for group in groups]
    for optimizer in trainer.optimizers:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = group["initial_lr"] = rate
    for config in trainer.lr_scheduler_configs:
        if not isinstance(config.scheduler, GroupRates):
            raise ConfigError(
                "a scheduler of your own keeps the rate that it was made with. Search with Tuner(trainer).lr_find("
                "model, ..., update_attr=False), and make the model with the rate that it suggests.",
                "model.scheduler",
            )
        config.scheduler.base_lrs = config.scheduler.watch.written = rates
