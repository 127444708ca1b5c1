"""Callbacks that end a fit early, for configs."""

import os
import signal
from typing import Any

import lightning.pytorch as pl


class SignalAt(pl.Callback):
    """Sends SIGTERM to its own process while a batch is trained, or during a validation.

    Args:
        batch: Number of the batch, counted over all epochs from 0.
        validation: Number of the validation instead, counted from 0; -1 is none.
        rank: The only rank that gets the signal.
    """

    def __init__(self, batch: int = -1, validation: int = -1, rank: int = 0) -> None:
        self.batch, self.validation, self.rank = batch, validation, rank
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
            os.kill(os.getpid(), signal.SIGTERM)


class FailAt(pl.Callback):
    """Raises an error when the batch of this number starts, counted over all epochs from 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, *args: Any) -> None:
        self.batch -= 1
        if self.batch < 0:
            raise RuntimeError("failed")
