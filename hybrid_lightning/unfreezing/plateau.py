"""The plateau of a metric: the validation at which it has stopped to get better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybrid_lightning.duration import Duration
from hybrid_lightning.errors import ConfigError, unknown

_LOWER_IS_BETTER = ("loss", "error", "mae", "mse", "rmse", "perplexity")
_HIGHER_IS_BETTER = ("accuracy", "acc", "f1", "auroc", "auc", "r2", "precision", "recall", "iou", "map")
EXAMPLE = "{plateau: val/loss, patience: 2 validations}"


@dataclass(frozen=True)
class Plateau:
    """A moment that a metric decides: the validation at which it has stopped to get better.

    Args:
        metric: Name of a logged metric.
        patience: Validations in a row without a better value; counted from the moment on which this one follows.
        mode: ``min`` if lower is better, ``max`` if higher is.
        min_delta: By how much a value has to be better to count, 0 or more.
    """

    metric: str
    patience: int
    mode: str
    min_delta: float = 0.0

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> "Plateau":
        """Reads ``{plateau: val/loss, patience: 2 validations, mode: min, min_delta: 0}``.

        Mode and min_delta may be left out; the mode then follows from the last word of the metric's name.

        Raises:
            ConfigError: If a value is impossible, or the mode does not follow from the name.
        """
        for key in value:
            if key not in ("plateau", "patience", "mode", "min_delta"):
                raise unknown(where, "key", str(key), ("plateau", "patience", "mode", "min_delta"))
        metric, delta = value["plateau"], value.get("min_delta", 0.0)
        if not isinstance(metric, str) or not metric:
            raise ConfigError(f"{where}.plateau: {metric!r} is not the name of a metric, such as val/loss.")
        if "patience" not in value:
            raise ConfigError(f"{where}: 'patience' is missing. Write {EXAMPLE}.")
        patience = Duration.parse(value["patience"], f"{where}.patience")
        if patience.unit != "validations" or patience.value < 1 or patience.value % 1:
            raise ConfigError(f"{where}.patience: '{patience}' is not a whole number of validations, 1 or more.")
        if isinstance(delta, bool) or not isinstance(delta, int | float) or not 0 <= delta < float("inf"):
            raise ConfigError(f"{where}.min_delta: {delta!r} is not a number of at least 0.")
        mode = value.get("mode", _mode_of(metric))
        if mode not in ("min", "max"):
            given = f"{mode!r} is given" if mode else f"whether {metric!r} is better when low or high is not known"
            raise ConfigError(f"{where}.mode: {given}. Write 'mode: min' (lower is better) or 'mode: max'.")
        return cls(metric, int(patience.value), mode, float(delta))

    def is_better(self, value: float, best: float) -> bool:
        """Whether a value counts as better than the best one so far; nan never does."""
        return value < best - self.min_delta if self.mode == "min" else value > best + self.min_delta

    @property
    def worst(self) -> float:
        """What any value is better than."""
        return float("inf") if self.mode == "min" else float("-inf")

    def __str__(self) -> str:
        return f"{self.metric} no better for {Duration(self.patience, 'validations')}"


def _mode_of(metric: str) -> str | None:
    word = metric.replace("_", "/").rsplit("/", 1)[-1].lower()
    return "min" if word in _LOWER_IS_BETTER else "max" if word in _HIGHER_IS_BETTER else None
