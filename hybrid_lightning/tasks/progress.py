"""What the progress bar of a run shows beside Lightning's own numbers."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from hybrid_lightning.trainer import FitCallback, fit_length
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing
from hybrid_lightning.unfreezing.phase import phase

_SECONDS = 0.5  # for which a text stays, because a bar asks at every step


def on_terminal() -> bool:
    """Whether somebody may watch a bar; a file would keep each of its texts."""
    return sys.stdout.isatty()


class FitProgress(FitCallback):
    """Shows the training loss and, on a terminal, what unfreezes next and the time that the whole run still takes.

    It extends the bar of the Trainer, whichever that is. The loss is read once for each log step, so no other step
    waits for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()

    def forget(self) -> None:
        """Forgets what an earlier run has shown."""
        self._began, self._first_step = time.monotonic(), 0
        self._total_steps: int | None = None
        self._steps_per_epoch: int | None = None
        self._loss: dict[str, float] = {}
        self._loss_row = 0
        self._texts: dict[str, str] = {}
        self._written_at = -_SECONDS

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes where the run begins, and extends the bar."""
        length = fit_length(trainer)
        self._began, self._first_step = time.monotonic(), trainer.global_step
        self._total_steps, self._steps_per_epoch = length.total_steps, length.steps_per_epoch
        bar = trainer.progress_bar_callback
        if bar is None:
            return
        own = bar.get_metrics

        def extended(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
            items = own(trainer, pl_module)
            items.pop("v_num", None)  # the folder is printed at the end
            return {**self._last_loss(trainer), **items, **self._moment(trainer)}

        vars(bar)["get_metrics"] = extended  # on the object, so that any bar will do

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves the bar as it was."""
        if trainer.progress_bar_callback is not None:
            vars(trainer.progress_bar_callback).pop("get_metrics", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted fit ends like any other."""
        self.teardown(trainer, pl_module, "fit")

    def _last_loss(self, trainer: Trainer) -> dict[str, float]:
        """The training loss of the last log step; empty before the first."""
        every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
        row = trainer.global_step // every if every > 0 else 0
        if row != self._loss_row:
            self._loss_row = row
            value = trainer.callback_metrics.get("train/loss")
            self._loss = {} if value is None else {"train/loss": float(value)}
        return self._loss

    def _moment(self, trainer: Trainer) -> dict[str, str]:
        """What unfreezes next and the time left; empty where nobody watches a terminal."""
        if not on_terminal():
            return {}
        now = time.monotonic()
        if now - self._written_at >= _SECONDS:
            self._written_at = now
            self._texts = {**self._phase(trainer), **self._left(trainer, now - self._began)}
        return self._texts

    def _phase(self, trainer: Trainer) -> dict[str, str]:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradualUnfreezing) and callback.spans:
                groups = callback.groups(trainer)
                stages = callback.waiting(trainer)
                waiting = dict.fromkeys(stage.split(".")[0] for stage in stages)
                text = phase(groups, callback.spans, trainer.global_step, self._steps_per_epoch, waiting)
                return {"phase": text}
        return {}

    def _left(self, trainer: Trainer, seconds: float) -> dict[str, str]:
        done = trainer.global_step - self._first_step
        if self._total_steps is None or done <= 0:
            return {}
        left = round(seconds / done * max(self._total_steps - trainer.global_step, 0))
        return {"left": f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02}"}
