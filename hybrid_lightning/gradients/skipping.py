"""Judging steps by their gradient norms and dropping them: without waiting where possible, the same on all ranks."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.gradients.norms import GradientPass
from hybrid_lightning.gradients.step import shared_pass
from hybrid_lightning.trainer import FitCallback, is_log_step, log_values, window_is_open
from hybrid_lightning.unfreezing.freezing import KeptStatistics


class LaterOnHost:
    """A small tensor that is copied to the host; nothing waits until it is read. Not to be changed afterwards."""

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self._copied: Any = None
        if not values.is_cpu:
            self._values = values.to("cpu", non_blocking=True)
            self._copied = torch.Event(values.device)
            self._copied.record()

    def read(self) -> list[float]:
        """The values; waits only if the device has not reached the copy yet."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()


@dataclass
class MeasuredStep:
    """A step that is to be judged; subclasses add what their judgment needs."""

    values: LaterOnHost  # norms, or their sum
    scaled: bool  # whether a gradient scaler drops the step by itself if its gradients overflow


class SkippingCallback(FitCallback, ABC):
    """Base of the callbacks that judge each step by the norms of its gradients.

    One that skips judges before the optimizer's step, which waits for one small copy, and takes back what the forward
    passes did to running statistics. Any other judges one step later, when the norms are on the host anyway, or before
    a validation, a checkpoint and the end of the run.
    """

    gradient_order = 1
    state_form: ClassVar[dict[Any, Any]] = {"skipped": int, "statistics": (type(None), list, {str: Tensor})}

    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.skips = skips
        self.forget()

    def forget(self) -> None:
        """Forgets the counts and what a skip would restore."""
        self.skipped = 0  # number of steps that were not made
        self._pending: Any = None
        self._statistics: KeptStatistics | None = None
        self._saved_statistics: dict[str, Tensor] | None = None

    @abstractmethod
    def measure(self, trainer: Trainer, gradients: GradientPass) -> MeasuredStep:
        """Sends what is to be judged to the host."""

    @abstractmethod
    def judge(self, step: Any) -> bool:
        """Counts, warns or raises; whether the step, which `measure` returned, has to be skipped."""

    @abstractmethod
    def logged(self, trainer: Trainer) -> Mapping[str, float]:
        """The counts for the log, of all steps that were judged; empty if nothing is logged."""

    def flush_pending(self) -> bool:
        """Judges the step that was measured and not judged yet; whether it has to be skipped."""
        step = self._pending
        self._pending = None
        return step is not None and self.judge(step)

    def state_dict(self) -> dict[str, Any]:
        """The number of skipped steps, and within an accumulation window what a skip would restore."""
        self.flush_pending()
        statistics = None if self._statistics is None else self._statistics.copies
        return {"skipped": self.skipped, "statistics": statistics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the counts of an earlier run."""
        self.skipped = state_dict["skipped"]
        saved = state_dict.get("statistics")
        # checkpoints of format 3 have them without names, and so do not say whose they are
        self._saved_statistics = saved if isinstance(saved, dict) else None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses torch's clipping by value, which fails on a skipped step; a task that clips by itself has its own."""
        task_clips = type(trainer.lightning_module).configure_gradient_clipping
        by_torch = task_clips is LightningModule.configure_gradient_clipping and trainer.gradient_clip_val
        if self.skips and by_torch and trainer.gradient_clip_algorithm == "value":
            raise ConfigError(
                f"a skipped step has no gradients, and torch's clipping by value fails without any. Use "
                f"GradientClipping({{part: {{'value': {trainer.gradient_clip_val}}}}}) instead.",
                type(self).__name__,
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Keeps what the forward passes of a step change, if the step may be skipped."""
        if self.skips and self._statistics is None:
            # after a restart within an accumulation window those from the window's start, which the checkpoint holds
            self._statistics = KeptStatistics(pl_module, self._saved_statistics)
            self._saved_statistics = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measures; judges and logs, if this step may be skipped or is logged."""
        self.flush_pending()  # the step before, whose norms are on the host by now
        gradients = shared_pass(trainer, type(self).__name__)
        self._pending = self.measure(trainer, gradients)
        logs = bool(self.logged(trainer)) and is_log_step(trainer)
        if (self.skips or logs) and self.flush_pending():
            gradients.skip()
            assert self._statistics is not None  # kept since the first batch of the step
            self._statistics.restore()
        if logs:
            log_values(trainer, self.logged(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """After a step its statistics are not needed any more."""
        if self._statistics is not None and not window_is_open(trainer):
            self._statistics = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation must not use weights that a step has spoilt."""
        self.flush_pending()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last step counts, too."""
        self.flush_pending()


def worst_of_ranks(trainer: Trainer, norms: Tensor) -> Tensor:
    """The largest of each norm over the ranks, inf where one is not finite, so that all ranks decide the same."""
    worst = torch.where(norms.isfinite(), norms, math.inf)
    if trainer.world_size > 1:
        worst = worst.to(trainer.strategy.root_device)
        torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
    return worst
