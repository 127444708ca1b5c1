"""Spikes of each part's gradients against the part's own history: warns, or skips the step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hybrid_lightning.errors import ConfigError, at, check_choice, check_number, listing
from hybrid_lightning.gradients.norms import GradientPass, NormTable
from hybrid_lightning.gradients.skipping import LaterOnHost, MeasuredStep, SkippingCallback, worst_of_ranks
from hybrid_lightning.gradients.spike_history import HISTORY_FORM, NormHistory, Sensitivity, Spike
from hybrid_lightning.gradients.step import has_scaler

ACTIONS = ("warn", "skip")
_REMOVED = {
    "lower_lr": "Use 'skip', or limit the part's gradients with GradientClipping (the option 'clip' of a part).",
    "postpone": "Use 'skip', or let the part unfreeze later (the option 'unfreeze' of a part).",
}
"""Former actions → what to use instead."""
_SHOWN_WARNINGS = 10
_KEPT_EVENTS = 1000


@dataclass
class _Step(MeasuredStep):
    """The norm of each part at one step."""

    number: int
    trains: Mapping[str, int]  # part → number of its parameters that train


class SpikeGuard(SkippingCallback):
    """Watches the gradient norm of each part for spikes, and acts on them.

    A norm is a spike if it is both `z` standard deviations and `ratio` times above what is typical of this part: its
    logarithm is compared with the exponentially weighted mean and deviation of those before. A part's history starts
    when the part, or one more stage of it, starts to train. A norm that is not finite is a spike from the first step
    on; with a gradient scaler (16-mixed) it is not, because the scaler skips it. Norms are those of unscaled gradients
    before clipping. What is sudden is detected; wrong labels mostly are not.

    Works in any LightningModule whose one optimizer has groups from `named_param_groups`. With ``warn`` alone nothing
    waits for the device between log steps, and a warning may come one step later; ``skip`` has to wait for one small
    copy per step. All ranks decide the same.

    Each spike is kept as an event in the checkpoint: step, part, z, ratio and actions; the newest 1000 of them. A run
    that continues from a checkpoint acts as if it had never stopped.

    | key | meaning |
    |---|---|
    | ``spikes/<part>`` | number of spikes so far |
    | ``skipped_steps/spikes`` | number of steps that were not made so far; with ``skip`` |

    Args:
        actions: One or both of:

            - ``warn``: a warning for each of the first 10 steps with spikes; the rest is counted at the end;
            - ``skip``: the step is not made: weights, the optimizer's state and running statistics stay. After
              `max_skips` in a row the step is made and the part's history starts anew; a run whose gradients stay
              non-finite ends. In our tasks `NonFiniteGradients` ends it at the first such step, unless its policy is
              ``skip``.
        z: Standard deviations of the logarithm of the norm above its mean, above 0.
        ratio: Times the typical norm, above 1.
        warm_up: Steps of a part's history before the first alarm, 2 or more.
        decay: Weight of the past in mean and deviation, above 0 and below 1; 0.95 remembers about 20 steps.
        max_skips: Steps in a row that may be skipped, 1 or more.

    Raises:
        ConfigError: If an action is unknown or a number impossible; if the gradients are not finite for more than
            `max_skips` steps in a row.
    """

    state_form: ClassVar[dict[Any, Any]] = {
        **SkippingCallback.state_form,
        "histories": {str: HISTORY_FORM},
        "counts": {str: int},
        "spiky_steps": int,
        "skips_in_a_row": int,
        "events": [dict],
    }

    def __init__(
        self,
        actions: str | list[str] = "warn",
        z: float = 5.0,
        ratio: float = 2.5,
        warm_up: int = 20,
        decay: float = 0.95,
        max_skips: int = 5,
    ) -> None:
        with at("SpikeGuard"):
            self.actions = _chosen(actions)
            check_number(z, "z", low=0, above_low=True)
            check_number(ratio, "ratio", low=1, above_low=True)
            check_number(decay, "decay", low=0, high=0.9999, above_low=True)
            check_number(warm_up, "warm_up", low=2)
            check_number(max_skips, "max_skips", low=1)
        self.sensitivity = Sensitivity(z, ratio, warm_up, decay)
        self.max_skips = max_skips
        super().__init__(skips="skip" in self.actions)

    def forget(self) -> None:
        """Forgets histories, counts and events."""
        super().forget()
        self.events: list[dict[str, Any]] = []
        """Spikes with ``step``, ``part``, ``z``, ``ratio`` and ``actions``, the newest ones."""
        self.counts: dict[str, int] = {}  # part → number of spikes so far
        self._histories: dict[str, NormHistory] = {}
        self._spiky_steps = 0
        self._skips_in_a_row = 0
        self._rows: NormTable | None = None
        self._trains: dict[str, int] = {}

    def state_dict(self) -> dict[str, Any]:
        """Histories, counts and events; within an accumulation window what a skip would restore."""
        state = super().state_dict()  # judges the last step, which belongs to the rest
        return {
            **state,
            "histories": {part: history.state_dict() for part, history in self._histories.items()},
            "counts": dict(self.counts),
            "spiky_steps": self._spiky_steps,
            "skips_in_a_row": self._skips_in_a_row,
            "events": list(self.events),  # a copy, because the list grows
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the histories of an earlier run."""
        super().load_state_dict(state_dict)
        for part, state in state_dict["histories"].items():
            self._histories[part] = NormHistory(self.sensitivity, **state)
        self.counts = dict(state_dict["counts"])
        self._spiky_steps = state_dict["spiky_steps"]
        self._skips_in_a_row = state_dict["skips_in_a_row"]
        self.events = list(state_dict["events"])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what cannot work, before the first batch."""
        super().on_fit_start(trainer, pl_module)
        self.groups(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judges the last step, and reports how many steps had no warning."""
        super().on_train_end(trainer, pl_module)
        if "warn" in self.actions and self._spiky_steps > _SHOWN_WARNINGS:
            rank_zero_info(f"SpikeGuard: spikes in {self._spiky_steps} steps: {self.counts}.")

    def measure(self, trainer: Trainer, gradients: GradientPass) -> MeasuredStep:
        """Sends the parts' norms to the host."""
        rows = gradients.rows
        if rows is not self._rows:  # another number of parameters has a gradient
            self._rows = rows
            self._trains = dict.fromkeys(rows.parts, 0)
            for group in self.groups(trainer):
                self._trains[group["part"]] += sum(parameter.requires_grad for parameter in group["params"])
        norms = rows.combine(gradients.before)[: len(rows.parts)]
        if self.skips:
            norms = worst_of_ranks(trainer, norms)
        return _Step(LaterOnHost(norms), has_scaler(trainer), trainer.global_step, self._trains)

    def judge(self, step: _Step) -> bool:
        """Compares each part's norm with its history, which then includes it."""
        norms = dict(zip(step.trains, step.values.read(), strict=True))
        if step.scaled and not all(map(math.isfinite, norms.values())):
            return False  # the scaler skips it
        spikes = []
        for part, norm in norms.items():
            history = self._history(part, step.trains[part])
            spike = history.compare(part, norm)
            history.add(norm)
            if spike is not None:
                spikes.append(spike)
        if spikes:
            self._decide(step, spikes)
        else:
            self._skips_in_a_row = 0
        return self._skips_in_a_row > 0

    def logged(self, trainer: Trainer) -> dict[str, float]:
        """The counts."""
        values: dict[str, float] = {f"spikes/{part}": self.counts.get(part, 0) for part in self._trains}
        if self.skips:
            values["skipped_steps/spikes"] = self.skipped
        return values

    def _history(self, part: str, trains: int) -> NormHistory:
        """The part's history; a new one if another number of its parameters trains now."""
        if part not in self._histories or self._histories[part].trains != trains:
            self._histories[part] = NormHistory(self.sensitivity, trains)
        return self._histories[part]

    def _decide(self, step: _Step, spikes: Sequence[Spike]) -> None:
        """Records spikes and what is done about them."""
        self._spiky_steps += 1
        actions = list(self.actions)
        if self.skips and self._skips_in_a_row < self.max_skips:
            self._skips_in_a_row += 1
            self.skipped += 1
        elif self.skips:
            self._skips_in_a_row = 0  # so that this step is made
            actions[-1] = "accept"
            self._accept(step, spikes)
        for spike in spikes:
            self.counts[spike.part] = self.counts.get(spike.part, 0) + 1
            event = {"step": step.number, "part": spike.part, "z": spike.z, "ratio": spike.ratio, "actions": actions}
            self.events.append(event)
        del self.events[:-_KEPT_EVENTS]
        if "warn" in actions and self._spiky_steps <= _SHOWN_WARNINGS:
            done = f" ({actions[-1]})" if self.skips else ""
            rank_zero_warn(f"SpikeGuard: step {step.number}: gradient norm of {'; '.join(map(str, spikes))}{done}")

    def _accept(self, step: _Step, spikes: Sequence[Spike]) -> None:
        """After too many skipped steps the parts' histories start anew with what they have now."""
        names = listing(spike.part for spike in spikes)
        if not all(spike.finite for spike in spikes):
            raise ConfigError(
                f"at step {step.number} the gradients of {names} are not finite, and {self.max_skips} steps in a row "
                f"were skipped before. Look for nan in the data or in the weights, lower the rate, or use precision "
                f"32-true or bf16-mixed.",
                "SpikeGuard.actions",
            )
        for spike in spikes:
            del self._histories[spike.part]
            self._history(spike.part, step.trains[spike.part]).add(spike.norm)
        rank_zero_warn(
            f"SpikeGuard: step {step.number}: {self.max_skips} steps in a row were skipped, so the gradient norms "
            f"of {names} are accepted: their histories start anew."
        )


def _chosen(actions: str | Sequence[str]) -> list[str]:
    """The actions in the order of `ACTIONS`, each once."""
    given = [actions] if isinstance(actions, str) else actions
    if not given:
        raise ConfigError(f"none is given. Possible: {listing(ACTIONS)}.", "actions")
    for action in given:
        if action in _REMOVED:
            raise ConfigError(f"{action!r} was removed. {_REMOVED[action]}", "actions")
        check_choice(action, "actions", ACTIONS, "action")
    return [action for action in ACTIONS if action in given]
