"""Callbacks that end a run early, for configs."""

import os
import signal
import time
from typing import Any

import lightning.pytorch as pl


class SignalAt(pl.Callback):
    """Sends a signal to its own process while a batch is trained, or during a validation.

    Args:
        batch: Number of the batch, counted over all epochs from 0.
        validation: Number of the validation instead, counted from 0; -1 is none.
        rank: The only rank that gets the signal.
        name: Of the signal.
    """

    def __init__(self, batch: int = -1, validation: int = -1, rank: int = 0, name: str = "SIGTERM") -> None:
        self.batch, self.validation, self.rank, self.name = batch, validation, rank, name
        self.batches = self.validations = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.batches == self.batch:
            self.send(trainer)
        self.batches += 1

    def on_validation_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int, *args: Any) -> None:
        if index == 0 and not trainer.sanity_checking:
            if self.validations == self.validation:
                self.send(trainer)
            self.validations += 1

    def send(self, trainer: pl.Trainer) -> None:
        if trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.Signals[self.name])


class RequeueIn(pl.Callback):
    """Sends SIGUSR1 to its own process in a hook, such as setup or on_test_start."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.send)

    def send(self, *args: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)


class FailAt(pl.Callback):
    """Raises an error when the batch of this number starts, counted over all epochs from 0.

    Args:
        batch: Number of the batch.
        rank: The only rank that fails; None: each.
    """

    def __init__(self, batch: int, rank: int | None = None) -> None:
        self.batch, self.rank = batch, rank

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self.batch -= 1
        if self.batch < 0 and self.rank in (None, trainer.global_rank):
            raise RuntimeError("failed")


class SlowBatches(pl.Callback):
    """Makes each batch take some seconds more; on one rank alone, if it is given."""

    def __init__(self, seconds: float, rank: int | None = None) -> None:
        self.seconds, self.rank = seconds, rank

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.rank in (None, trainer.global_rank):
            time.sleep(self.seconds)


class LogOn(pl.Callback):
    """Logs a metric of each validation batch on one rank alone."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_validation_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_rank == self.rank:
            module.log("val/lonely", 1.0, sync_dist=True, on_epoch=True)
