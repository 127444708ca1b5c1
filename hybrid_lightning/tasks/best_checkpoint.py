"""Keeps the best checkpoint by the task's main metric, and tells which one it is."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from hybrid_lightning.direction import MAIN, Directions, checked_mode
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import exists
from hybrid_lightning.lightning_private import RankingCheckpoint
from hybrid_lightning.tasks.evaluation import write_tables
from hybrid_lightning.tasks.formats import CHECKPOINT_KEY
from hybrid_lightning.tasks.monitored import directions_of
from hybrid_lightning.weights.safe_files import peek

_LOSS = "val/loss"


class BestCheckpoint(RankingCheckpoint):
    """Lightning's `ModelCheckpoint`, which can follow the task's main metric, and lets the loss decide between equals.

    With ``monitor: main`` that is the accuracy of classes, or their average precision if the rarer of two has less
    than 10 % of the training rows; the mean average precision of labels; R² of numbers; and ``val/loss`` in a task of
    your own, unless its objective names another. It is chosen once, at the start of a run; a run that is continued
    keeps it.

    What differs from the highest value so far by less than its standard error, see `SplitMetrics.error`, counts as
    equal to it, and of equals the lower ``val/loss`` is the best: on few samples the highest value is often chance. Of
    a metric that you name, only the very same values are equal. Where these samples leave the metric undefined, the
    loss decides alone. This is for ``save_top_k: 1``; of several checkpoints each is kept by its value.

    The tables of the validation that was best, such as the confusion matrix, are written beside the logs. For the
    arguments see Lightning.
    """

    best_loss: float | None = None
    """``val/loss`` of the best checkpoint; None if it is not known."""
    top: float | None = None
    """The highest value so far, with its sign turned around if lower is better."""
    _loss: Tensor | None = None
    _is_main: bool = False  # whether it follows the main metric
    _measured: Collection[str] = ()  # what the task measures in validations

    @property
    def state_key(self) -> str:
        """That of `ModelCheckpoint`, which kept the best checkpoint of older runs."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def follow(self, metric: str, directions: Directions) -> None:
        """Takes this metric as the main one of the task, which measures those of `directions`."""
        self._measured = directions
        if self.monitor == MAIN:
            self._is_main = True
            self.monitor = metric
            self.mode = checked_mode(metric, None, directions)
            self.kth_value = torch.tensor(math.inf if self.mode == "min" else -math.inf)

    def keep_metric(self, trainer: Trainer, states: Any, directions: Directions) -> str | None:
        """Goes on with the metric that stands in the states of a checkpoint's callbacks, if it is of the same run.

        Gives that metric if it is not the main one of today. Collective: call it on every rank.
        """
        if not self._is_main and self.monitor != MAIN:
            return None
        saved: str | None = trainer.strategy.broadcast(self._followed(states, trainer.state.fn == "fit"))
        if saved is None or saved not in directions or saved == self.monitor:
            return None
        self.monitor = MAIN
        self.follow(saved, directions)
        return saved

    def _followed(self, states: Any, is_fit: bool) -> str | None:
        """The metric of the best checkpoint in the states of callbacks; a run looks for that file in its folder."""
        for key, state in states.items() if isinstance(states, Mapping) else ():
            if str(key).startswith("ModelCheckpoint{") and isinstance(state, Mapping):
                monitor, path = state.get("monitor"), str(state.get("best_model_path"))
                file = Path(path).name
                is_own = file.startswith(str(self.filename))
                # in a new folder there is no score to compare with
                if isinstance(monitor, str) and is_own and (not is_fit or exists(Path(self.dirpath or "") / file)):
                    return monitor
        return None

    def candidates(self, trainer: Trainer, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keeps the loss; a metric that these samples leave undefined is nan, which is worse than any number."""
        loss = values.get(_LOSS)
        self._loss = None if loss is None else loss.nan_to_num(nan=math.inf, posinf=math.inf)
        if loss is not None and self.monitor is not None and self.monitor in self._measured:
            values.setdefault(self.monitor, torch.tensor(math.nan))
        return values

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:
        """Whether a value is among the best so far, and of these the one with the lowest loss."""
        has_best = self.best_model_score is not None and self.best_loss is not None
        if self.save_top_k != 1 or current is None or self._loss is None or not has_best:
            is_better = super().check_monitor_top_k(trainer, current)
        else:
            is_better = trainer.strategy.reduce_boolean_decision(self._is_better(trainer, current))
        if current is not None:
            self.top = max(self._height(current), -math.inf if self.top is None else self.top)
        if is_better:
            self.best_loss = None if self._loss is None else float(self._loss)
        return is_better

    def _is_better(self, trainer: Trainer, current: Tensor) -> bool:
        assert self.best_model_score is not None
        assert self.best_loss is not None
        assert self._loss is not None
        value, best = self._height(current), self._height(self.best_model_score)
        top = max(value, best, -math.inf if self.top is None else self.top)
        floor = top - self._error(trainer, top)
        if value < floor:
            return False
        return best < floor or float(self._loss) < self.best_loss

    def prefers(self, trainer: Trainer, value: Tensor, loss: Tensor) -> bool:
        """Whether weights with this value and ``val/loss`` would take the place of the best checkpoint."""
        self._loss = loss
        return trainer.strategy.reduce_boolean_decision(self._is_better(trainer, value))

    def _height(self, value: Tensor) -> float:
        """A value as a number that is better when higher, nan being the worst."""
        number = float(value.float())  # as the values at step 0 and later ones differ in precision
        if math.isnan(number):
            return -math.inf
        return number if self.mode == "max" else -number

    def _error(self, trainer: Trainer, top: float) -> float:
        """The standard error of the highest value; 0 of a metric that somebody has named."""
        if not self._is_main or not math.isfinite(top):
            return 0.0
        task: Any = trainer.lightning_module
        return float(task.evaluator.metrics_of("val").error(str(self.monitor).removeprefix("val/"), abs(top)))

    def on_better(self, trainer: Trainer) -> None:
        """Writes the tables of the validation."""
        write_tables(trainer, trainer.lightning_module, "val")

    def state_dict(self) -> dict[str, Any]:
        """Also the loss of the best checkpoint, and the highest value."""
        return {**super().state_dict(), "best_loss": self.best_loss, "top": self.top}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes these as well; they are of use only with the score that they came with."""
        super().load_state_dict(state_dict)
        found = []
        for name in ("best_loss", "top"):
            value = state_dict.get(name)
            is_known = isinstance(value, float) and not math.isnan(value) and self.best_model_score is not None
            found.append(value if is_known else None)
        self.best_loss, self.top = found

    def described(self) -> str:
        """The best checkpoint with its epoch, as in metrics.csv, its step and its value; empty if there is none."""
        if not self.best_model_path or not exists(self.best_model_path):
            return ""
        saved = peek(self.best_model_path, "best")
        value = ""
        if self.monitor is not None and self.best_model_score is not None:
            value = f": {self.monitor} {float(self.best_model_score):.4g}"
            if self.best_loss is not None and self.monitor != _LOSS:
                value += f", {_LOSS} {self.best_loss:.4g}"
            if saved.get(CHECKPOINT_KEY, {}).get("network", {}).get("selection"):
                value += " of the joint network"  # which the file does not serve
            if self.top is not None and self.top > self._height(self.best_model_score):
                value += f"; the highest was {abs(self.top):.4g}, and within its standard error the loss decides"
        return f"epoch {saved.get('epoch')}, step {saved.get('global_step')}{value}"


def follow_main_metric(trainer: Trainer, task: Any) -> None:
    """Lets the best checkpoint of a run follow the main metric of its task, now that the training data are known."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint):
            callback.follow(f"val/{task.objective.main_metric}", directions_of(task))
            others = [other for other in trainer.checkpoint_callbacks if other is not callback]
            if callback.state_key in [other.state_key for other in others]:
                raise ConfigError(
                    f"another ModelCheckpoint follows {callback.monitor!r}, too, and a checkpoint could not tell them "
                    f"apart. Leave it out, or give checkpoint.monitor another metric.",
                    "trainer.callbacks",
                )


def keep_followed_metric(trainer: Trainer, task: Any, checkpoint: Mapping[str, Any]) -> list[str]:
    """Lets the best checkpoint of a run go on with the metric that it has followed so far; lines to print."""
    lines = []
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint):
            metric = callback.keep_metric(trainer, checkpoint.get("callbacks"), directions_of(task))
            if metric and trainer.state.fn == "fit":
                lines.append(f"checkpoint: the best goes on following {metric}, as this run began")
    return lines
