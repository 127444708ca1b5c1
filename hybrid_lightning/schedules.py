"""Unfreezing schedules: when each stage of a part starts to train, as a function without memory."""

from collections.abc import Mapping
from dataclasses import dataclass

from hybrid_lightning.durations import Duration, FitLength
from hybrid_lightning.errors import ConfigError, unknown


@dataclass(frozen=True)
class UnfreezingSchedule:
    """When the stages of one part start to train.

    Args:
        start: When the stage nearest to the output starts; None is never.
        every: Time from one stage to the next one towards the input; None unfreezes all stages together.
    """

    start: Duration | None
    every: Duration | None = None

    @classmethod
    def parse(cls, value: object, where: str = "unfreeze") -> "UnfreezingSchedule":
        """Reads ``always``, ``never``, a duration, or ``{start: 10%, every: 1 epochs}`` (top-down by stage).

        Raises:
            ConfigError: If `value` is none of these.
        """
        if isinstance(value, UnfreezingSchedule):
            return value
        if value == "always":
            return cls(Duration(0, "steps"))
        if value == "never":
            return cls(None)
        if not isinstance(value, Mapping):
            try:
                return cls(Duration.parse(value, where))
            except ConfigError as error:
                raise ConfigError(f"{error} Or: always, never, {{start: 10%, every: 1 epochs}}.") from None
        for key in value:
            if key not in ("start", "every"):
                raise unknown(where, "key", str(key), ("start", "every"))
        if "every" not in value:
            raise ConfigError(f"{where}: 'every' is missing. Write {{start: 10%, every: 1 epochs}} or only a duration.")
        start = Duration.parse(value.get("start", "0 steps"), f"{where}.start")
        return cls(start, Duration.parse(value["every"], f"{where}.every"))

    def trains_at_start(self, stages_above: int = 0) -> bool:
        """Whether a stage trains from step 0; needs no length of the fit."""
        if self.start is None or self.start.value > 0:
            return False
        return stages_above == 0 or self.every is None or self.every.value == 0

    def step(self, stages_above: int, length: FitLength, where: str = "unfreeze") -> int | None:
        """The optimizer step from which a stage trains.

        Args:
            stages_above: Number of stages of the part between this one and the output.
            length: Length of the fit, which turns epochs and percentages into steps.
            where: Config path named in the error.

        Returns:
            The 0-based step, or None if the stage never trains.

        Raises:
            ConfigError: If a unit cannot be turned into steps.
        """
        if self.start is None:
            return None
        every = self.every.steps(length, where) if self.every is not None and stages_above else 0
        return self.start.steps(length, where) + stages_above * every

    def describe(self, stages_above: int) -> str:
        """How the moment was written: ``10% + 2 × 1 epoch``."""
        if self.start is None:
            return "never"
        start = "start" if self.start.value == 0 else str(self.start)
        return start if self.every is None or not stages_above else f"{start} + {stages_above} × {self.every}"
