"""A torch scheduler on an optimizer of one group, whose rate and momentum are then those of the base rate."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hybrid_lightning.errors import ConfigError


class _OneGroup(Optimizer):
    """An optimizer of one group that trains nothing: a torch scheduler writes its rate here."""

    def __init__(self, lr: float, like: Optimizer) -> None:
        super().__init__([torch.zeros(())], {**like.defaults, "lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Does nothing."""


class TorchCourse:
    """A torch scheduler from its beginning, on one group at the base rate.

    It can only go forward, so one that has to go back is made anew.
    """

    def __init__(self, make: Callable[[Optimizer], LRScheduler], lr: float, like: Optimizer) -> None:
        optimizer = _OneGroup(lr, like)
        self.scheduler = make(optimizer)
        self.calls = 0
        self.group = optimizer.param_groups[0]
        optimizer.step()  # torch warns of a scheduler whose optimizer has made no step

    def advance(self, calls: int, unit: str) -> None:
        """Steps the scheduler until it has counted so many calls, one for each `unit` of the run."""
        while self.calls < calls:
            try:
                self.scheduler.step()
            except (ValueError, ArithmeticError, LookupError) as error:
                name = type(self.scheduler).__name__
                raise ConfigError(
                    f"{name} fails after {self.calls} {unit}s, before the run ends: {error}", "scheduler"
                ) from error
            self.calls += 1

    def run(self, calls: int, unit: str) -> None:
        """Runs through a run with so many calls; raises `ConfigError` if it fails, or if every rate of it is 0."""
        trains = False
        for call in range(calls):
            self.advance(call, unit)
            trains = trains or self.group["lr"] != 0
        self.advance(calls, unit)
        if calls and not trains:
            name = type(self.scheduler).__name__
            raise ConfigError(
                f"{name} gives a rate of 0 to each of the {calls} {unit}s of the run, so nothing would train. Change "
                f"its arguments, or leave the scheduler out.",
                "scheduler",
            )
