"""Rates of named groups: one shape or one torch scheduler for all, and a warm-up from each group's own unfreezing."""

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hybrid_lightning.duration import Duration, FitLength
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

Clock = Literal["step", "epoch", "validation"]
_WITH_OWN_RISE = ("one_cycle", "slanted_triangular")


def rise(clock: int, warm_up: int) -> float:
    """The factor of a warm-up: linear over `warm_up` steps from ``1 / (warm_up + 1)``, then 1."""
    return (clock + 1) / (warm_up + 1) if clock < warm_up else 1.0


def multiplier(shape: str, clock: int, span: int, warm_up: int = 0) -> float:
    """The factor on a group's own rate.

    Args:
        shape: A key of `SHAPES`.
        clock: Steps since the group started to train.
        span: Steps from there to the end of the fit.
        warm_up: Steps of linear rise before the shape begins; the first one takes ``1 / (warm_up + 1)``.
    """
    if clock < warm_up:
        return rise(clock, warm_up)
    progress = (clock - warm_up) / max(span - warm_up, 1)
    return SHAPES[shape](min(progress, 1.0))


class GroupLR(LRScheduler):
    """What all courses of group rates share: each group's own clock and warm-up, and settings that beat checkpoints.

    A group's clock starts at its ``unfrozen_at``; while that is None the group holds the rate that it will start with,
    and one without that key trains from step 0. A restored state says only how far the course has come; rates and
    settings are those given now.

    Args:
        optimizer: Its groups' rates at this moment are their own rates.
        where: Config path named in errors.
        warm_up: Duration of a linear rise after each group's unfreezing.
        length: Length of the fit in steps; may be given later by `bind`.
    """

    def __init__(self, optimizer: Optimizer, where: str, warm_up: str, length: FitLength | None) -> None:
        self._where = where
        self.warm_up = Duration.parse(warm_up, f"{where}.warm_up")
        self.restored_clock: str | None = None
        """What the steps of a restored state count; None before one is restored."""
        self._warm_up_steps = 0
        if length is None and self._needs_no_length():
            length = FitLength(None, None)
        self._bound = length is not None
        if length is not None:
            self._measure(length)
        super().__init__(optimizer)

    @property
    def clock(self) -> Clock:
        """After what `step` has to be called: ``step`` (of the optimizer), ``epoch`` or ``validation``."""
        return "step"

    def _needs_no_length(self) -> bool:
        return self.warm_up.unit == "steps"

    def _measure(self, length: FitLength) -> None:
        """Turns durations into steps."""
        self._warm_up_steps = self.warm_up.steps(length, f"{self._where}.warm_up")

    def bind(self, length: FitLength) -> None:
        """Sets the length of the fit and brings every group's rate up to date."""
        self._measure(length)
        self._bound = True
        self._write()

    def step(self, epoch: int | None = None) -> None:
        """One step; which one is counted here, so `epoch` is not used.

        Raises:
            ConfigError: If the length of the fit matters and was never given.
        """
        if self._step_count and not self._bound:
            raise ConfigError(
                f"{self._where}: the length of the fit is not known. Pass length=FitLength(steps_per_epoch, "
                f"total_steps), or call bind(length) before the first step."
            )
        with warnings.catch_warnings():
            # a gradient scaler may skip the first step, which counts nevertheless
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            super().step()

    def _write(self) -> None:
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _start(self, group: dict[str, Any]) -> int:
        """The step from which a group's clock counts."""
        unfrozen_at = group.get("unfrozen_at", 0)
        return self.last_epoch if unfrozen_at is None else min(unfrozen_at, self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """The step that has been reached, and what it counts; everything else is configuration."""
        return {"last_epoch": self.last_epoch, "clock": self.clock}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the step from `state_dict`; load the optimizer's state first."""
        self.last_epoch = state_dict["last_epoch"]
        self.restored_clock = state_dict.get("clock", self.clock)
        self._step_count = self.last_epoch + 1
        if self._bound and self.restored_clock == self.clock:
            self._write()


class GroupRates(GroupLR):
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
        self._total_steps = 1
        super().__init__(optimizer, "rates", warm_up, length)
        if self.warm_up.value and shape in _WITH_OWN_RISE:
            raise ConfigError(
                f"rates.warm_up: {shape!r} rises by itself; remove warm_up or choose 'linear' or 'cosine'."
            )

    def _measure(self, length: FitLength) -> None:
        super()._measure(length)
        if length.total_steps is None and self.shape != "constant":
            raise ConfigError(
                f"rates.shape: {self.shape!r} needs a fit with an end; set trainer.max_epochs or trainer.max_steps."
            )
        self._total_steps = length.total_steps or 1

    def _needs_no_length(self) -> bool:
        return self.shape == "constant" and super()._needs_no_length()

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Each group's rate at the current step."""
        own = zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        return [float(lr) * self._multiplier(group) for lr, group in own]

    def _multiplier(self, group: dict[str, Any]) -> float:
        start = self._start(group)
        return multiplier(self.shape, self.last_epoch - start, self._total_steps - start, self._warm_up_steps)


class _OneGroup(Optimizer):
    """An optimizer of one group that trains nothing: the place where a torch scheduler writes."""

    def __init__(self, lr: float, like: Optimizer) -> None:
        super().__init__([torch.zeros(())], {**like.defaults, "lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Does nothing."""


class GroupScheduler(GroupLR):
    """Lets any torch scheduler set the rates of all groups, each in its own ratio to the base rate.

    The torch scheduler runs on one group at the base rate, and every real group takes its rate times the group's own
    share of the base rate. So ``max_lr``, ``base_lr``, ``eta_min`` and ``min_lr`` are those of the base rate, and no
    schedule can change the groups' ratios. All groups share the scheduler's clock; only the warm-up counts from each
    group's unfreezing. A momentum (or first beta) that the scheduler cycles reaches every group.

    On a restart the torch scheduler is made anew and replayed, so that its arguments are those given now; only
    `ReduceLROnPlateau` keeps what it has seen.

    In a LightningModule of your own, in ``configure_optimizers``::

        optimizer = AdamW(named_param_groups(self, {"backbone": "backbone", "head": "head"}, lr=1e-3, rates=...))
        scheduler = GroupScheduler(optimizer, lambda one: OneCycleLR(one, max_lr=1e-2, total_steps=1000))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": scheduler.clock}}

    For `ReduceLROnPlateau` the inner dict is ``{"scheduler": ..., "monitor": "val_loss", "reduce_on_plateau": True}``.

    Args:
        optimizer: With groups from `named_param_groups`, or any groups if `base_lr` is given.
        make: Makes the torch scheduler on the optimizer that it is passed; called again on restarts.
        interval: What the torch scheduler counts, ``epoch`` or ``step``. How often `step` has to be called is `clock`.
        warm_up: Duration of a linear rise after each group's unfreezing.
        length: Length of the fit in steps; may be given later by `bind`. A warm-up in steps needs none, unless the
            torch scheduler counts epochs.
        base_lr: The rate that the torch scheduler starts from; None takes that of `named_param_groups`.

    Raises:
        ConfigError: If the base rate is not above 0 or unknown, if a warm-up is asked for with `ReduceLROnPlateau`; as
            soon as the length is known, if the torch scheduler fails before the fit ends.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        make: Callable[[Optimizer], LRScheduler],
        interval: Literal["step", "epoch"] = "step",
        warm_up: str = "0 steps",
        length: FitLength | None = None,
        base_lr: float | None = None,
    ) -> None:
        self._make, self.interval = make, interval
        self.base_lr = _base_lr(optimizer) if base_lr is None else base_lr
        if not self.base_lr > 0:
            raise ConfigError(f"scheduler: the base rate is {self.base_lr}; it has to be above 0.")
        self._calls_per_step = 1
        self.measured_after = -1
        """Number of batches before the last metric: a validation that a restart repeats is not counted twice."""
        self._start_over(optimizer)
        self.by_metric = isinstance(self.scheduler, ReduceLROnPlateau)
        super().__init__(optimizer, "scheduler", warm_up, length)
        if self.by_metric and self.warm_up.value:
            raise ConfigError(
                "scheduler.warm_up: ReduceLROnPlateau waits for a metric and does not count steps, so it cannot have a "
                "warm-up. Remove warm_up, or use rates: {shape: cosine, warm_up: ...} instead of scheduler."
            )

    def _needs_no_length(self) -> bool:
        return (self.interval == "step" or not self.warm_up.value) and super()._needs_no_length()

    @property
    def clock(self) -> Clock:
        """After what `step` has to be called: ``step`` (of the optimizer), ``epoch`` or ``validation``."""
        return "validation" if self.by_metric else "step" if self.warm_up.value else self.interval

    def _start_over(self, optimizer: Optimizer) -> None:
        self._one = _OneGroup(self.base_lr, optimizer)
        self.scheduler, self._steps = self._make(self._one), 0
        self._one.step()  # torch warns of a scheduler whose optimizer has made no step

    def _measure(self, length: FitLength) -> None:
        super()._measure(length)
        if self.clock == "step" and self.interval == "epoch":
            if length.steps_per_epoch is None:
                raise ConfigError(
                    "scheduler.warm_up: the scheduler counts epochs, but the training data have no length. Set "
                    "scheduler.interval to 'step', or remove warm_up."
                )
            self._calls_per_step = length.steps_per_epoch
        self._try_out(length)

    def _try_out(self, length: FitLength) -> None:
        """Runs through the whole course once, so that a scheduler that fails does so at the start."""
        per_step = 1 if self.interval == "step" else length.steps_per_epoch
        if self.by_metric or length.total_steps is None or per_step is None:
            return
        one = _OneGroup(self.base_lr, self._one)
        scheduler, steps = self._make(one), math.ceil(length.total_steps / per_step)
        one.step()
        for step in range(steps):
            self._advance(scheduler, step)

    def _advance(self, scheduler: LRScheduler, done: int) -> None:
        try:
            scheduler.step()
        except (ValueError, ArithmeticError, LookupError) as error:
            name = type(scheduler).__name__
            raise ConfigError(
                f"scheduler: {name} fails after {done} {self.interval}s, before the fit ends: {error}"
            ) from error

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Each group's rate at the current step."""
        self._follow()
        lr = self._one.param_groups[0]["lr"]
        return [
            float(own) / self.base_lr * lr * rise(self.last_epoch - self._start(group), self._warm_up_steps)
            for own, group in zip(self.base_lrs, self.optimizer.param_groups, strict=True)
        ]

    def _follow(self) -> None:
        """Brings the torch scheduler to the step that has been reached, and its momentum to the groups."""
        wanted = self.last_epoch // self._calls_per_step
        if not self.by_metric:
            if wanted < self._steps:
                self._start_over(self.optimizer)
            while self._steps < wanted:
                self._advance(self.scheduler, self._steps)
                self._steps += 1
        one = self._one.param_groups[0]
        for group in self.optimizer.param_groups if "max_momentum" in one else ():
            if "betas" in group:
                group["betas"] = (one["betas"][0], *group["betas"][1:])
            else:
                group["momentum"] = one["momentum"]

    def step(self, metric: Any = None) -> None:
        """One step; `ReduceLROnPlateau` needs the metric.

        Raises:
            ConfigError: If the metric is missing.
        """
        if self.by_metric and self._step_count:
            if metric is None:
                raise ConfigError(
                    "scheduler: ReduceLROnPlateau got no metric. Call step(metric); in a LightningModule return "
                    "{'scheduler': ..., 'monitor': 'val_loss', 'reduce_on_plateau': True}."
                )
            self.scheduler.step(metric)
        super().step()

    def state_dict(self) -> dict[str, Any]:
        """The step that has been reached, and what `ReduceLROnPlateau` has seen."""
        seen = {name: getattr(self.scheduler, name) for name in _SEEN} if self.by_metric else {}
        lr = {"lr": self._one.param_groups[0]["lr"], "base_lr": self.base_lr, "measured_after": self.measured_after}
        return {**super().state_dict(), **({"plateau": {**seen, **lr}} if self.by_metric else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the step from `state_dict`; load the optimizer's state first."""
        saved = state_dict.get("plateau")
        if saved and self.by_metric:
            self._one.param_groups[0]["lr"] = saved["lr"] * (self.base_lr / saved["base_lr"])
            self.measured_after = saved["measured_after"]
            for name in _SEEN if saved["mode"] == getattr(self.scheduler, "mode", None) else ():
                setattr(self.scheduler, name, saved[name])
        super().load_state_dict(state_dict)


_SEEN = ("mode", "best", "num_bad_epochs", "cooldown_counter", "last_epoch")


def _base_lr(optimizer: Optimizer) -> float:
    """The rate that all groups' rates are multiples of."""
    groups = [group for group in optimizer.param_groups if group.get("lr_factor")]
    if not groups:
        raise ConfigError(
            "scheduler: the base rate is unknown. Make the groups with named_param_groups, at least one of them with "
            "an lr_scale above 0, or pass base_lr."
        )
    group = max(groups, key=lambda group: float(group["lr_factor"]))
    return float(group["lr"] / group["lr_factor"])
