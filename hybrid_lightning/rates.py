"""Learning-rate multipliers: one shape for all groups, each on the clock of its own unfreezing."""

import math
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hybrid_lightning.durations import Duration, FitLength
from hybrid_lightning.errors import ConfigError, unknown


def _one_cycle(progress: float) -> float:
    """1/25 up to 1 over the first 30 %, down to 1/250000, both along a cosine (Smith, arXiv 1708.07120)."""
    low, rise = (1 / 25, 1 - progress / 0.3) if progress < 0.3 else (1 / 250_000, (progress - 0.3) / 0.7)
    return low + (1 - low) * (1 + math.cos(math.pi * rise)) / 2


def _slanted_triangular(progress: float) -> float:
    """Up over the first 10 %, down over the rest, from and to 1/32 (ULMFiT, arXiv 1801.06146, section 3.2)."""
    height = progress / 0.1 if progress < 0.1 else 1 - (progress - 0.1) / 0.9
    return (1 + height * 31) / 32


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "one_cycle": _one_cycle,
    "slanted_triangular": _slanted_triangular,
}
"""Shape name → multiplier in [0, 1] as a function of progress in [0, 1]."""

_WITH_OWN_RISE = ("one_cycle", "slanted_triangular")


def multiplier(shape: str, clock: int, span: int, warm_up: int = 0) -> float:
    """The factor on a group's own rate.

    Args:
        shape: A key of `SHAPES`.
        clock: Steps since the group started to train.
        span: Steps from there to the end of the fit.
        warm_up: Steps of linear rise before the shape begins; the first one takes ``1 / (warm_up + 1)``.
    """
    if clock < warm_up:
        return (clock + 1) / (warm_up + 1)
    progress = (clock - warm_up) / max(span - warm_up, 1)
    return SHAPES[shape](min(progress, 1.0))


class GroupRates(LRScheduler):
    """Multiplies each group's own rate, counted from the step at which that group was unfrozen.

    A group whose ``unfrozen_at`` is None holds the rate that it will start with; one without that key trains from
    step 0. Ratios between groups that started together stay as they were configured, whatever the shape.

    Args:
        optimizer: Its groups' rates at this moment are the ones to multiply.
        shape: ``constant``, ``linear``, ``cosine``, ``one_cycle`` or ``slanted_triangular``.
        warm_up: Duration of a linear rise after each group's unfreezing.
        length: Length of the fit in steps; may be given later by `bind`.

    Raises:
        ConfigError: If the shape is unknown, or has a rise of its own and `warm_up` is given.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        shape: str = "constant",
        warm_up: str = "0 steps",
        length: FitLength | None = None,
    ) -> None:
        if shape not in SHAPES:
            raise unknown("rates.shape", "shape", str(shape), SHAPES)
        self.shape = shape
        self.warm_up = Duration.parse(warm_up, "rates.warm_up")
        if self.warm_up.value and shape in _WITH_OWN_RISE:
            raise ConfigError(
                f"rates.warm_up: {shape!r} rises by itself; remove warm_up or choose 'linear' or 'cosine'."
            )
        self._total_steps = 1
        self._warm_up_steps = 0
        if length is not None:
            self._measure(length)
        super().__init__(optimizer)

    def _measure(self, length: FitLength) -> None:
        if length.total_steps is None and self.shape != "constant":
            raise ConfigError(
                f"rates.shape: {self.shape!r} needs a fit with an end; set trainer.max_epochs or trainer.max_steps."
            )
        self._total_steps = length.total_steps or 1
        self._warm_up_steps = self.warm_up.steps(length, "rates.warm_up")

    def bind(self, length: FitLength) -> None:
        """Sets the length of the fit and brings every group's rate up to date."""
        self._measure(length)
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Each group's rate at the current step."""
        return [group["initial_lr"] * self._multiplier(group) for group in self.optimizer.param_groups]

    def _multiplier(self, group: dict[str, Any]) -> float:
        unfrozen_at = group.get("unfrozen_at", 0)
        start = self.last_epoch if unfrozen_at is None else min(unfrozen_at, self.last_epoch)
        return multiplier(self.shape, self.last_epoch - start, self._total_steps - start, self._warm_up_steps)

    def state_dict(self) -> dict[str, Any]:
        """The step that has been reached; everything else is configuration."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the step from `state_dict`."""
        self.last_epoch = state_dict["last_epoch"]
        self._step_count = self.last_epoch + 1
