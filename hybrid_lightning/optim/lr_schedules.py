"""Rates of named groups: one shape or one torch scheduler for all, and a warm-up from each group's own unfreezing."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hybrid_lightning.duration import Duration, FitLength
from hybrid_lightning.errors import ConfigError, check_choice
from hybrid_lightning.optim.rate_watch import RateWatch
from hybrid_lightning.optim.shapes import SHAPES, multiplier, rise
from hybrid_lightning.optim.torch_schedulers import TorchCourse

Clock = Literal["step", "epoch", "validation"]
_SEEN = ("mode", "best", "num_bad_epochs", "cooldown_counter", "last_epoch")
"""What `ReduceLROnPlateau` has seen."""
_PLATEAU_FORM: dict[Any, Any] = {
    "mode": frozenset({"min", "max"}),
    "best": float,
    **dict.fromkeys(("num_bad_epochs", "cooldown_counter", "last_epoch"), int),
    **dict.fromkeys(("lr", "base_lr"), float),
    "measured_after": range(-1, 2**63),
    str: (),
}
_WITH_OWN_RISE = ("one_cycle", "slanted_triangular")


class GroupLR(LRScheduler):
    """Sets the rate of each group by its own clock; what the rate is comes from a shape or from a torch scheduler.

    A group's clock starts at its ``unfrozen_at``; while that is None the group holds the rate that it will start with,
    and one without that key trains from step 0. A restored state holds only how far the schedule has come; rates and
    settings are those given now.
    """

    place: ClassVar[str]  # config path named in errors
    state_form: ClassVar[dict[Any, Any]] = {
        "last_epoch": int,
        "clock": (type(None), frozenset({"step", "epoch", "validation"})),  # older checkpoints have none
        "plateau": (type(None), _PLATEAU_FORM),
        str: (),
    }
    """What a checkpoint has to hold of it, see `FitCallback.state_form`."""

    def __init__(self, optimizer: Optimizer, warm_up: str, length: FitLength | None) -> None:
        self.optimizer = optimizer  # torch's constructor, which sets it too, already computes rates
        self.warm_up = Duration.parse(warm_up, f"{self.place}.warm_up")
        self.restored_clock: str | None = None  # what the steps of a restored state count; None before one is restored
        self._warm_up_steps = 0
        self.watch = RateWatch()
        self._bound = False
        try:
            # without a length only what does not depend on it passes, such as a warm-up in steps
            self._measure(length or FitLength(None, None))
            self._bound = True
        except ConfigError:
            if length is not None:
                raise
        super().__init__(optimizer)

    @property
    def clock(self) -> Clock:
        """After what `step` has to be called: ``step`` (of the optimizer), ``epoch`` or ``validation``."""
        return "step"

    def _measure(self, length: FitLength) -> None:
        """Turns durations into steps; raises `ConfigError` if the length does not allow it."""
        self._warm_up_steps = self.warm_up.steps(length, f"{self.place}.warm_up")

    def _factor(self, start: int) -> float:
        """The factor now on the rates of all groups whose clocks count from the step `start`."""
        raise NotImplementedError

    def _rate(self, own: float, factor: float) -> float:
        """The rate now of a group whose configured rate is `own`."""
        return own * factor

    def bind(self, length: FitLength) -> None:
        """Sets the length of the run and brings every group's rate up to date."""
        self._measure(length)
        self._bound = True
        self._write()

    def refuse_moved(self, length: FitLength) -> None:
        """Raises `ConfigError` if the run has become of another length, which moves the end of a warm-up."""
        starts = [group.get("unfrozen_at", 0) for group in self.optimizer.param_groups]
        is_rising = any(start is not None and self.last_epoch - start < self._warm_up_steps for start in starts)
        steps = self.warm_up.steps(length, f"{self.place}.warm_up")
        if is_rising and steps != self._warm_up_steps:
            raise ConfigError(
                f"this epoch has {length.steps_per_epoch} steps and the run {length.total_steps}, other numbers than "
                f"at the start, so that '{self.warm_up}' would not end where it was said. Write it in steps, or give "
                f"each epoch as many batches.",
                f"{self.place}.warm_up",
            )

    def step(self, epoch: int | None = None) -> None:
        """One step; which one is counted here, so `epoch` is not used."""
        if self._step_count and not self._bound:
            raise ConfigError(
                "the length of the run is not known. Pass length=FitLength(steps_per_epoch, total_steps), or call "
                "bind(length) before the first step.",
                self.place,
            )
        self.watch.tell_others(self.optimizer.param_groups)
        # not torch's, which warns if a gradient scaler skips the first step, which counts nevertheless
        self._step_count += 1
        self.last_epoch += 1
        self._write()

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Each group's rate at the current step."""
        starts = [group.get("unfrozen_at", 0) for group in self.optimizer.param_groups]
        pairs = list(zip(self.base_lrs, starts, strict=True))
        rates = {}
        # many groups have the same rate and clock
        for own, start in set(pairs):
            # a frozen group's clock stands at 0; a record from a longer fit must not make it negative
            is_ahead = start is None or start > self.last_epoch
            factor = self._factor(self.last_epoch if is_ahead else start)
            rates[own, start] = self._rate(float(own), factor)
        return [rates[pair] for pair in pairs]

    def _write(self) -> None:
        rates = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        self.watch.written = rates
        self._last_lr = [*rates]

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
        length: Length of the run in steps; may be given later by `bind`.

    Raises:
        ConfigError: If the shape is unknown, or has a rise of its own and `warm_up` is given.
    """

    place = "rates"

    def __init__(
        self, optimizer: Optimizer, shape: str = "constant", warm_up: str = "0 steps", length: FitLength | None = None
    ) -> None:
        self.shape = check_choice(shape, "rates.shape", [*SHAPES], "shape")
        self._total_steps = 1
        super().__init__(optimizer, warm_up, length)
        if self.warm_up.value and shape in _WITH_OWN_RISE:
            raise ConfigError(
                f"{shape!r} rises by itself; remove warm_up or choose 'linear' or 'cosine'.", "rates.warm_up"
            )

    def _measure(self, length: FitLength) -> None:
        if length.total_steps is None and self.shape != "constant":
            raise ConfigError(
                f"{self.shape!r} needs a run with an end; set trainer.max_epochs or trainer.max_steps.", "rates.shape"
            )
        self._total_steps = length.total_steps or 1
        super()._measure(length)

    def _factor(self, start: int) -> float:
        return multiplier(self.shape, self.last_epoch - start, self._total_steps - start, self._warm_up_steps)


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
        length: Length of the run in steps; may be given later by `bind`. A warm-up in steps needs none, unless the
            torch scheduler counts epochs.
        base_lr: The rate that the torch scheduler starts from; None takes that of `named_param_groups`.

    Raises:
        ConfigError: If the base rate is not above 0 or unknown, if a warm-up is asked for with `ReduceLROnPlateau`; as
            soon as the length is known, if the torch scheduler fails before the run ends.
    """

    place = "scheduler"

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
            raise ConfigError(f"the base rate is {self.base_lr}; it has to be above 0.", "scheduler")
        self._steps_per_call = 1
        self.measured_after = -1
        """Number of batches before the last metric: a validation that a restart repeats is not counted twice."""
        self._course = TorchCourse(make, self.base_lr, optimizer)
        self.by_metric = isinstance(self.scheduler, ReduceLROnPlateau)
        super().__init__(optimizer, warm_up, length)
        if self.by_metric and self.warm_up.value:
            raise ConfigError(
                "ReduceLROnPlateau waits for a metric and does not count steps, so it cannot have a warm-up. Remove "
                "warm_up, or use rates: {shape: cosine, warm_up: ...} instead of scheduler.",
                "scheduler.warm_up",
            )

    @property
    def clock(self) -> Clock:
        """After what `step` has to be called: ``step`` (of the optimizer), ``epoch`` or ``validation``."""
        if self.by_metric:
            return "validation"
        return "step" if self.warm_up.value else self.interval

    @property
    def scheduler(self) -> LRScheduler:
        """The torch scheduler."""
        return self._course.scheduler

    def _measure(self, length: FitLength) -> None:
        if self.clock == "step" and self.interval == "epoch":
            if length.steps_per_epoch is None:
                raise ConfigError(
                    "the scheduler counts epochs, but the training data have no length. Set scheduler.interval to "
                    "'step', or remove warm_up.",
                    "scheduler.warm_up",
                )
            self._steps_per_call = length.steps_per_epoch
        super()._measure(length)
        steps_per_call = 1 if self.interval == "step" else length.steps_per_epoch
        if self.by_metric or length.total_steps is None or steps_per_call is None:
            return
        # runs through the whole schedule once, so that a scheduler that fails does so at the start
        trial = TorchCourse(self._make, self.base_lr, self.optimizer)
        trial.run(math.ceil(length.total_steps / steps_per_call), self.interval)

    def get_lr(self) -> list[float]:  # type: ignore[override]
        """Each group's rate at the current step."""
        if not self.by_metric:
            calls = self.last_epoch // self._steps_per_call
            if calls < self._course.calls:
                self._course = TorchCourse(self._make, self.base_lr, self.optimizer)
            self._course.advance(calls, self.interval)
        self._write_momentum()
        return super().get_lr()

    def _factor(self, start: int) -> float:
        return rise(self.last_epoch - start, self._warm_up_steps)

    def _rate(self, own: float, factor: float) -> float:
        lr: float = self._course.group["lr"]
        return own / self.base_lr * lr * factor

    def _write_momentum(self) -> None:
        """Copies a momentum (or first beta) that the torch scheduler cycles to every group."""
        one = self._course.group
        if "max_momentum" not in one:
            return
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (one["betas"][0], *group["betas"][1:])
            else:
                group["momentum"] = one["momentum"]

    def step(self, metric: Any = None) -> None:
        """One step; `ReduceLROnPlateau` needs the metric."""
        if self.by_metric and self._step_count:
            if metric is None:
                raise ConfigError(
                    "ReduceLROnPlateau got no metric. Call step(metric); in a LightningModule return {'scheduler': "
                    "..., 'monitor': 'val_loss', 'reduce_on_plateau': True}.",
                    "scheduler",
                )
            self.scheduler.step(metric)
        super().step()

    def state_dict(self) -> dict[str, Any]:
        """The step that has been reached, and what `ReduceLROnPlateau` has seen."""
        state = super().state_dict()
        if self.by_metric:
            seen = {name: getattr(self.scheduler, name) for name in _SEEN}
            lr = self._course.group["lr"]
            state["plateau"] = {**seen, "lr": lr, "base_lr": self.base_lr, "measured_after": self.measured_after}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the step from `state_dict`; load the optimizer's state first."""
        saved = state_dict.get("plateau")
        if saved and self.by_metric:
            self._course.group["lr"] = saved["lr"] * (self.base_lr / saved["base_lr"])
            self.measured_after = saved["measured_after"]
            if saved["mode"] == getattr(self.scheduler, "mode", None):  # a best value of the other mode is none
                for name in _SEEN:
                    setattr(self.scheduler, name, saved[name])
        super().load_state_dict(state_dict)


def _base_lr(optimizer: Optimizer) -> float:
    """The rate that all groups' rates are multiples of."""
    groups = [group for group in optimizer.param_groups if group.get("lr_factor")]
    if not groups:
        raise ConfigError(
            "the base rate is unknown. Make the groups with named_param_groups, at least one of them with an lr_scale "
            "above 0, or pass base_lr.",
            "scheduler",
        )
    # the largest share loses the fewest digits
    group = max(groups, key=lambda group: float(group["lr_factor"]))
    return float(group["lr"] / group["lr_factor"])
