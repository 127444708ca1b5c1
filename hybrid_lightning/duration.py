"""Durations: times of a run with their unit written, such as ``3 epochs`` or ``10%``."""

import re
from dataclasses import dataclass
from math import ceil

from hybrid_lightning.errors import ConfigError

_PATTERN = re.compile(r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>%|epochs?|steps?|validations?)")


@dataclass(frozen=True)
class FitLength:
    """How long a run is, in optimizer steps.

    Args:
        steps_per_epoch: Optimizer steps in one epoch; None if the data have no length.
        total_steps: Optimizer steps in the whole run; None if it has no end.
    """

    steps_per_epoch: int | None
    total_steps: int | None


@dataclass(frozen=True)
class Duration:
    """A time with its unit: ``3 epochs``, ``500 steps``, ``10%`` (of the run), ``2 validations``.

    Args:
        value: The number, 0 or more; at most 100 for ``%``.
        unit: ``epochs``, ``steps``, ``%`` or ``validations``.
    """

    value: float
    unit: str

    @classmethod
    def parse(cls, text: object, place: str = "") -> "Duration":
        """Reads a duration.

        Args:
            text: For example ``"3 epochs"``. A bare number is refused, because its unit would be a guess.
            place: Path of the setting, within the places that `at` adds.

        Raises:
            ConfigError: If `text` is not a number with a unit, or is more than 100%.
        """
        match = _PATTERN.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ConfigError(
                f"{text!r} is not a duration. Write a number and its unit, such as '3 epochs', '500 steps', '10%' (of "
                f"the run) or '2 validations'.",
                place,
            )
        value, unit = float(match["value"]), match["unit"]
        if unit == "%" and value > 100:
            raise ConfigError(f"{text!r} is more than the whole run; give at most '100%'.", place)
        return cls(value, unit if unit == "%" or unit.endswith("s") else unit + "s")

    def steps(self, length: FitLength, place: str = "") -> int:
        """The duration in optimizer steps, rounded up; a `ConfigError` if the length of the run is not known."""
        if self.unit == "steps":
            return ceil(self.value)
        if self.unit == "epochs" and length.steps_per_epoch is not None:
            # 1.1 * 50 is above 55 in floating point, and would become 56 steps
            return ceil(round(self.value * length.steps_per_epoch, 6))
        if self.unit == "%" and length.total_steps is not None:
            return ceil(round(self.value * length.total_steps / 100, 6))
        reason = {
            "epochs": "the training data have no length",
            "%": "the run has no end (set trainer.max_epochs or trainer.max_steps)",
        }.get(self.unit, "validations can only be counted where a metric is waited for")
        raise ConfigError(f"'{self}' cannot be turned into steps: {reason}. Write it in 'steps'.", place)

    def __str__(self) -> str:
        if self.unit == "%":
            return f"{self.value:.12g}%"
        return f"{self.value:.12g} {self.unit if self.value != 1 else self.unit[:-1]}"
