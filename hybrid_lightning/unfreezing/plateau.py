"""The plateau of a metric: the validation at which it has stopped getting better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybrid_lightning.direction import checked_mode
from hybrid_lightning.duration import Duration
from hybrid_lightning.errors import ConfigError, check_keys, check_number

EXAMPLE = "{plateau: val/loss, patience: 2 validations}"


@dataclass(frozen=True)
class Plateau:
    """A moment that a metric decides: the validation at which it has stopped getting better."""

    metric: str  # name of a logged metric
    patience: int  # validations in a row without a better value; counted from the moment on which this one follows
    mode: str  # ``min`` if lower is better, ``max`` if higher is
    min_delta: float = 0.0  # by how much a value has to be better to count, 0 or more

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> "Plateau":
        """Reads ``{plateau: val/loss, patience: 2 validations, mode: min, min_delta: 0}``."""
        # mode and min_delta may be left out; the mode then follows from the last word of the metric's name
        check_keys(value, ("plateau", "patience", "mode", "min_delta"))
        metric = value["plateau"]
        if not isinstance(metric, str) or not metric:
            raise ConfigError(f"{metric!r} is not the name of a metric, such as val/loss.", "plateau")
        if "patience" not in value:
            raise ConfigError(f"'patience' is missing. Write {EXAMPLE}.")
        patience = Duration.parse(value["patience"], "patience")
        # a metric is only known after a validation, so no other unit has a meaning
        if patience.unit != "validations" or patience.value < 1 or patience.value % 1:
            raise ConfigError(f"'{patience}' is not a whole number of validations, 1 or more.", "patience")
        min_delta = value.get("min_delta", 0.0)
        check_number(min_delta, "min_delta", low=0)
        mode = checked_mode(metric, value.get("mode"))
        return cls(metric, int(patience.value), mode, float(min_delta))

    def is_better(self, value: float, best: float) -> bool:
        """Whether a value counts as better than the best one so far; nan never does."""
        return value < best - self.min_delta if self.mode == "min" else value > best + self.min_delta

    @property
    def worst(self) -> float:
        """Any value is better than this one."""
        return float("inf") if self.mode == "min" else float("-inf")

    def __str__(self) -> str:
        return f"{self.metric} no better for {Duration(self.patience, 'validations')}"


WATCH_FORM = {"metric": str, "mode": str, "best": float, "validations": int, str: ()}
"""What a checkpoint holds of a `PlateauWatch`, and nothing else."""


@dataclass
class PlateauWatch:
    """What one stage that waits for a plateau has seen so far."""

    metric: str
    mode: str
    best: float
    validations: int = 0  # validations in a row without a better value

    def observe(self, plateau: Plateau, value: float) -> bool:
        """Takes the value of one validation; returns whether the patience is over."""
        if plateau.is_better(value, self.best):
            self.best, self.validations = value, 0
        else:
            self.validations += 1
        return self.validations >= plateau.patience
