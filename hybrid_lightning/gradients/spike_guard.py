"""Spikes of each part's gradients: warns, skips the step, lowers the part's rate, postpones what is to be unfrozen."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.errors import ConfigError, check_number, listing, unknown
from hybrid_lightning.gradients.norms import GradientPass, Rows
from hybrid_lightning.gradients.spike_history import NormHistory, Sensitivity, Spike
from hybrid_lightning.gradients.step import LaterOnHost, has_scaler, refuse_unskippable, shared_pass
from hybrid_lightning.trainer import is_log_step, log_values, named_groups, window_is_open
from hybrid_lightning.unfreezing.freezing import KeptStatistics
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing

ACTIONS = ("warn", "skip", "lower_lr", "postpone")
_SHOWN_WARNINGS = 10
_KEPT_EVENTS = 1000


class SpikeGuard(pl.Callback):
    """Watches the gradient norm of each part for spikes, and acts on them.

    A norm is a spike if it is both `z` standard deviations and `ratio` times above what is typical of this part: its
    logarithm is compared with the exponentially weighted mean and deviation of those before. A part's history starts
    when the part, or one more stage of it, starts to train. A norm that is not finite is a spike from the first step
    on, for ``warn`` and ``skip`` alone; with a gradient scaler (16-mixed) it is none, because the scaler skips it.
    Norms are those of unscaled gradients before clipping. What is sudden is seen; wrong labels mostly are not.

    Works in any LightningModule whose one optimizer has groups from `named_param_groups`. With ``warn`` alone nothing
    waits for the device between log steps, and a warning may come one step later; the other actions have to wait for
    one small copy per step. All ranks decide the same.

    Each spike is kept as an event in the checkpoint: step, part, z, ratio and actions; the newest 1000 of them. A fit
    that continues from a checkpoint acts as if it had never stopped.

    | key | meaning |
    |---|---|
    | ``spikes/<part>`` | number of spikes so far |
    | ``skipped_steps/spikes`` | number of steps that were not made so far; with ``skip`` |
    | ``lr_lowered/<part>`` | factor on the part's rates at this step, 1 is none; with ``lower_lr`` |

    Args:
        actions: One or several of:

            - ``warn``: a warning for each of the first 10 steps with spikes; the rest is counted at the end;
            - ``skip``: the step is not made: weights, the optimizer's state and running statistics stay. After
              `max_skips` in a row the step is made and the part's history starts anew; a fit whose gradients stay
              non-finite ends. In our tasks `NonFiniteGradients` ends it at the first such step, unless told to skip;
            - ``lower_lr``: the part's rates are multiplied by `lr_factor` for this step and the next ones, `steps` in
              all. Schedulers and checkpoints never see that; ``lr/<group>`` logs it;
            - ``postpone``: nothing is unfrozen for `steps` steps. Needs a `GradualUnfreezing` in the Trainer.
        z: Standard deviations of the logarithm of the norm above its mean, above 0.
        ratio: Times the typical norm, above 1.
        warm_up: Steps of a part's history before the first alarm, 2 or more.
        decay: Weight of the past in mean and deviation, above 0 and below 1; 0.95 remembers about 20 steps.
        max_skips: Steps in a row that may be skipped, 1 or more.
        lr_factor: Factor on the rates, 0 or more and below 1.
        steps: Optimizer steps for which rates are lowered or unfreezings postponed, 1 or more.

    Raises:
        ConfigError: If an action is unknown or a number impossible; at the start of a fit, if ``postpone`` has nothing
            to postpone; if the gradients are not finite for more than `max_skips` steps in a row.
    """

    def __init__(
        self,
        actions: str | list[str] = "warn",
        z: float = 5.0,
        ratio: float = 2.5,
        warm_up: int = 20,
        decay: float = 0.95,
        max_skips: int = 5,
        lr_factor: float = 0.1,
        steps: int = 100,
    ) -> None:
        super().__init__()
        given = [actions] if isinstance(actions, str) else list(actions)
        for action in given:
            if action not in ACTIONS:
                raise unknown("SpikeGuard.actions", "action", str(action), ACTIONS)
        if not given:
            raise ConfigError(f"SpikeGuard.actions: none is given. Possible: {listing(ACTIONS)}.")
        check_number(z, "SpikeGuard.z", low=0, above_low=True)
        check_number(ratio, "SpikeGuard.ratio", low=1, above_low=True)
        check_number(decay, "SpikeGuard.decay", low=0, high=0.9999, above_low=True)
        check_number(lr_factor, "SpikeGuard.lr_factor", low=0, high=0.9999)
        for key, value, low in (("warm_up", warm_up, 2), ("max_skips", max_skips, 1), ("steps", steps, 1)):
            check_number(value, f"SpikeGuard.{key}", low=low)
            if value % 1:
                raise ConfigError(f"SpikeGuard.{key}: {value!r} is not a whole number.")
        self.actions = [action for action in ACTIONS if action in given]
        self.sensitivity = Sensitivity(z, ratio, int(warm_up), decay)
        self.max_skips, self.lr_factor, self.steps = max_skips, lr_factor, steps
        self._hook: Any = None
        self._rates: list[tuple[dict[str, Any], Any]] = []
        self._forget()

    def _forget(self) -> None:
        self.events: list[dict[str, Any]] = []
        """Spikes with ``step``, ``part``, ``z``, ``ratio`` and ``actions``, the newest ones."""
        self.counts: dict[str, int] = {}
        """Part → number of spikes so far."""
        self.skipped = 0
        """Number of steps that were not made."""
        self._histories: dict[str, NormHistory] = {}
        self._spiky_steps = 0
        self._skips_in_a_row = 0
        self._lowered: dict[str, int] = {}
        self._scaler_skips = False
        self._statistics: KeptStatistics | None = None
        self._saved_statistics: list[Tensor] | None = None
        self._rows: Rows | None = None
        self._trains: dict[str, int] = {}
        self._pending: _Measured | None = None

    # State

    def state_dict(self) -> dict[str, Any]:
        """Histories, counts, what is in force, the events; within an accumulation window what a skip would restore."""
        self._judge()
        return {
            "histories": {part: history.state_dict() for part, history in self._histories.items()},
            "counts": dict(self.counts),
            "skipped": self.skipped,
            "spiky_steps": self._spiky_steps,
            "skips_in_a_row": self._skips_in_a_row,
            "lowered": dict(self._lowered),
            "events": [dict(event) for event in self.events],
            "statistics": None if self._statistics is None else self._statistics.copies,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the histories of an earlier run."""
        self._histories = {
            part: NormHistory(self.sensitivity, **state) for part, state in state_dict["histories"].items()
        }
        self.counts, self._lowered = dict(state_dict["counts"]), dict(state_dict["lowered"])
        self.skipped, self._spiky_steps = state_dict["skipped"], state_dict["spiky_steps"]
        self._skips_in_a_row = state_dict["skips_in_a_row"]
        self.events = [dict(event) for event in state_dict["events"]]
        self._saved_statistics = state_dict["statistics"]

    # The fit

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A fit starts without the memory of an earlier one; a checkpoint is read after this."""
        if stage == "fit":
            self._forget()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses what cannot work, before the first batch."""
        named_groups(trainer, type(self).__name__)
        if "skip" in self.actions:
            refuse_unskippable(trainer, type(self).__name__)
        if "postpone" in self.actions and unfreezing_of(trainer) is None:
            raise ConfigError(
                "SpikeGuard.actions: 'postpone' has nothing to postpone, because no GradualUnfreezing is among the "
                "callbacks. Add one, or leave out 'postpone'."
            )
        if "lower_lr" in self.actions:
            self._hook = trainer.optimizers[0].register_step_post_hook(lambda *_: self._restore_rates())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps what the forward passes of a step change, if the step may be skipped."""
        if "skip" in self.actions and self._statistics is None:
            self._statistics = KeptStatistics(pl_module, self._saved_statistics)
            self._saved_statistics = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures, decides, acts and logs."""
        self._judge()  # the step before, whose norms are on the host by now
        gradients = shared_pass(trainer, type(self).__name__)
        self._measure(trainer, gradients)
        logs = is_log_step(trainer)
        if self._acts:
            self._act(trainer, gradients, self._judge())
        elif logs:
            self._judge()
        if logs:
            log_values(trainer, self._values(trainer.global_step))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Restores the rates, if the optimizer's step did not."""
        self._restore_rates()
        if not window_is_open(trainer):
            self._statistics = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reads what is left, and says how many steps had no warning."""
        self._judge()
        if "warn" in self.actions and self._spiky_steps > _SHOWN_WARNINGS:
            rank_zero_info(f"SpikeGuard: spikes in {self._spiky_steps} steps: {self.counts}.")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leaves the optimizer as it was."""
        self._release()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """An interrupted fit ends like any other."""
        self._release()

    def _release(self) -> None:
        self._restore_rates()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    # Deciding

    @property
    def _acts(self) -> bool:
        """Whether the step under way has to wait for the decision."""
        return self.actions != ["warn"]

    def _measure(self, trainer: pl.Trainer, gradients: GradientPass) -> None:
        """Sends the parts' norms to the host; the same ones on all ranks."""
        rows = gradients.rows
        if rows is not self._rows:
            measured = [g for g in named_groups(trainer, type(self).__name__) if not g.get("observer")]
            self._rows, self._trains = rows, training_parameters(measured)
        norms = rows.norms(gradients.before)[: len(rows.parts)]
        norms = torch.where(norms.isfinite(), norms, math.inf)
        if self._acts and trainer.world_size > 1:
            norms = norms.to(trainer.strategy.root_device)
            torch.distributed.all_reduce(norms, torch.distributed.ReduceOp.MAX)
        self._pending = _Measured(trainer.global_step, self._trains, has_scaler(trainer), LaterOnHost(norms))

    def _judge(self) -> list[Spike]:
        """The spikes of the step that was measured and not judged yet; the histories learn its norms."""
        if self._pending is None:
            return []
        measured, self._pending = self._pending, None
        norms = dict(zip(measured.trains, measured.norms.read(), strict=True))
        self._scaler_skips = measured.scaled and not all(map(math.isfinite, norms.values()))
        if self._scaler_skips:
            return []
        spikes = []
        for part, norm in norms.items():
            history = self._history(part, measured.trains[part])
            spike = history.compare(part, norm)
            history.add(norm)
            if spike is not None:
                spikes.append(spike)
        if spikes:
            self._decide(measured, spikes)
        else:
            self._skips_in_a_row = 0
        return spikes

    def _history(self, part: str, trains: int) -> NormHistory:
        """The part's history; a new one if another number of its parameters trains now."""
        if part not in self._histories or self._histories[part].trains != trains:
            self._histories[part] = NormHistory(self.sensitivity, trains)
        return self._histories[part]

    def _decide(self, measured: "_Measured", spikes: Sequence[Spike]) -> None:
        """Records spikes and what is done about them."""
        self._spiky_steps += 1
        actions = list(self.actions)
        if "skip" in actions:
            self._skips_in_a_row = (self._skips_in_a_row + 1) % (self.max_skips + 1)
            if self._skips_in_a_row:
                self.skipped += 1
            else:
                actions[actions.index("skip")] = "accept"
                self._accept(measured, spikes)
        for spike in spikes:
            self.counts[spike.part] = self.counts.get(spike.part, 0) + 1
            taken = [a for a in actions if spike.finite or a not in ("lower_lr", "postpone")]
            event = {"step": measured.step, "part": spike.part, "z": spike.z, "ratio": spike.ratio, "actions": taken}
            self.events = [*self.events, event][-_KEPT_EVENTS:]
            if "lower_lr" in taken:
                self._lowered[spike.part] = measured.step + self.steps
        if "warn" in actions and self._spiky_steps <= _SHOWN_WARNINGS:
            done = f" ({', '.join(a for a in actions if a != 'warn')})" if self._acts else ""
            rank_zero_warn(f"SpikeGuard: step {measured.step}: gradient norm of {'; '.join(map(str, spikes))}{done}")

    def _accept(self, measured: "_Measured", spikes: Sequence[Spike]) -> None:
        """After too many skipped steps the parts' histories start anew with what they have now."""
        names = listing(spike.part for spike in spikes)
        if not all(spike.finite for spike in spikes):
            raise ConfigError(
                f"SpikeGuard.actions: at step {measured.step} the gradients of {names} are not finite, and "
                f"{self.max_skips} steps in a row were skipped before. Look for nan in the data or in the weights, "
                f"lower the rate, or use precision 32-true or bf16-mixed."
            )
        for spike in spikes:
            self._histories[spike.part] = NormHistory(self.sensitivity, measured.trains[spike.part])
            self._histories[spike.part].add(spike.norm)
        rank_zero_warn(
            f"SpikeGuard: step {measured.step}: {self.max_skips} steps in a row were skipped, so the gradient norms "
            f"of {names} are accepted: their histories start anew."
        )

    # Acting

    def _act(self, trainer: pl.Trainer, gradients: GradientPass, spikes: Sequence[Spike]) -> None:
        step = trainer.global_step
        if "skip" in self.actions and self._skips_in_a_row:
            gradients.skip()
            assert self._statistics is not None
            self._statistics.restore()
        unfreezing = unfreezing_of(trainer)
        if "postpone" in self.actions and unfreezing is not None and any(spike.finite for spike in spikes):
            moved = unfreezing.postpone(trainer, step + self.steps)
            if moved:
                rank_zero_info(f"SpikeGuard: step {step}: to be unfrozen later: {listing(moved)}.")
        if not self._scaler_skips:  # else no hook would restore the rates before the scheduler's next step
            self._lower_rates(trainer, step)

    def _factor(self, part: str, step: int) -> float:
        """What the part's rates are multiplied by at this step."""
        return self.lr_factor if step < self._lowered.get(part, 0) else 1.0

    def _lower_rates(self, trainer: pl.Trainer, step: int) -> None:
        """Lowers rates for the optimizer's step under way, after which `_restore_rates` is called."""
        for group in named_groups(trainer, type(self).__name__):
            factor = self._factor(group["part"], step)
            if factor != 1:
                self._rates.append((group, group["lr"]))
                group["lr"] = group["lr"] * factor

    def _restore_rates(self) -> None:
        for group, rate in self._rates:
            group["lr"] = rate
        self._rates = []

    def _values(self, step: int) -> dict[str, float]:
        values: dict[str, float] = {f"spikes/{part}": self.counts.get(part, 0) for part in self._trains}
        if "skip" in self.actions:
            values["skipped_steps/spikes"] = self.skipped
        if "lower_lr" in self.actions:
            values |= {f"lr_lowered/{part}": self._factor(part, step) for part in self._trains}
        return values


class _Measured(NamedTuple):
    """The norms of one step, on their way to the host."""

    step: int
    trains: Mapping[str, int]
    """Part → number of its parameters that train."""
    scaled: bool
    norms: LaterOnHost
    """One per part, inf if not finite."""


def training_parameters(groups: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Part → number of its parameters that train, in the order of the groups."""
    numbers: dict[str, int] = {}
    for group in groups:
        numbers[group["part"]] = numbers.get(group["part"], 0) + sum(p.requires_grad for p in group["params"])
    return numbers


def unfreezing_of(trainer: pl.Trainer) -> GradualUnfreezing | None:
    """The callback that unfreezes, if there is one."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, GradualUnfreezing)), None)
