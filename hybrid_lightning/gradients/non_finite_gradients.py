"""What happens when gradients are not finite: an error that says where, or a step that is not made."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.errors import ConfigError, check_choice, check_number, listing
from hybrid_lightning.gradients.norms import GradientPass
from hybrid_lightning.gradients.skipping import LaterOnHost, MeasuredStep, SkippingCallback, worst_of_ranks
from hybrid_lightning.gradients.step import has_scaler

POLICIES = ("error", "skip", "ignore")
_KEPT_BATCHES = 4
_SHOWN_SAMPLES = 12
_REMEDIES = (
    "What helps: a look at these samples, a lower lr, trainer.gradient_clip_val, precision bf16-mixed instead of 16.\n"
    "In trainer.callbacks, NonFiniteGradients with policy 'skip' goes on without such steps, 'ignore' with them."
)


@dataclass
class _Step(MeasuredStep):
    """The norm of a step's gradients, and what a message needs if it is not finite."""

    place: tuple[int, int, int]  # step, epoch and batch
    parts: Sequence[str]
    each: Tensor  # all norms of which that is one
    norms: Callable[[], Tensor]  # norm of each part's gradients, and further rows; computed only for a message
    batches: list[Any]
    ids: list[Any]


class NonFiniteGradients(SkippingCallback):
    """Stops, or skips the step, when a gradient is nan or infinite.

    Under a gradient scaler (precision 16-mixed) the scaler skips such steps by itself; they are counted here, and so
    many in a row that no scale can be to blame are an error. Works in any LightningModule whose one optimizer has
    groups from `named_param_groups`.

    | key | meaning |
    |---|---|
    | ``skipped_steps/non_finite`` | steps of the run that were not made so far; with ``skip`` or a gradient scaler |

    Args:
        policy: ``error`` ends the run and names the parts, the step, the samples and the precision. It is raised one
            step later, or before a validation or a checkpoint, so that nothing waits for the device; until then the
            step's batches (the last four) stay in memory. ``skip`` makes no step, which leaves weights, optimizer state
            and running statistics as they are; it waits for the device once per step, and all ranks decide together.
            ``ignore`` does nothing.
        max_in_a_row: Number of steps in a row that may be skipped, by us or by a gradient scaler; one more is an error.

    Raises:
        ConfigError: On another policy or a number below 1.
    """

    state_form: ClassVar[dict[Any, Any]] = {**SkippingCallback.state_form, "in_a_row": int}

    def __init__(self, policy: str = "error", max_in_a_row: int = 20) -> None:
        check_choice(policy, "NonFiniteGradients.policy", POLICIES, "policy")
        check_number(max_in_a_row, "NonFiniteGradients.max_in_a_row", low=1)
        self.policy = policy
        self.max_in_a_row = max_in_a_row
        super().__init__(skips=policy == "skip")

    def forget(self) -> None:
        """Forgets the counts and the samples of earlier steps."""
        super().forget()
        self.in_a_row = 0
        self._machine = ""
        self._batches: deque[Any] = deque(maxlen=_KEPT_BATCHES)
        self._ids: list[Any] = []  # of all batches since the last step; they take little memory

    def state_dict(self) -> dict[str, Any]:
        """How many steps have been skipped, also in a row. Judges the last one first: no spoilt weights are saved."""
        return {**super().state_dict(), "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the counts of an earlier run."""
        super().load_state_dict(state_dict)
        self.in_a_row = state_dict["in_a_row"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what a message says of this process."""
        super().on_fit_start(trainer, pl_module)
        self._machine = f"precision {trainer.precision}, rank {trainer.global_rank}"

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remembers the batches whose gradients are summed, and their samples."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        if self.policy == "ignore":
            return
        self._batches.append(batch)
        if isinstance(batch, Mapping) and "id" in batch:
            self._ids.append(batch["id"])

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Checks the gradients, unless they are ignored."""
        if self.policy != "ignore":
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def measure(self, trainer: Trainer, gradients: GradientPass) -> MeasuredStep:
        """Sends the norm of all gradients to the host: one number, because this is done at every step."""
        rows = gradients.rows
        total, each = gradients.total_before, gradients.before
        norms = partial(rows.combine, each)
        if self.skips:
            each = worst_of_ranks(trainer, norms())
            total = each.sum()
            norms = partial(Tensor.clone, each)
        scaled = has_scaler(trainer)
        place = trainer.global_step, trainer.current_epoch, trainer.fit_loop.batch_idx
        on_host = LaterOnHost(total.view(1))
        step = _Step(on_host, scaled, place, rows.parts, each, norms, list(self._batches), self._ids)
        self._batches.clear()
        self._ids = []
        return step

    def judge(self, step: _Step) -> bool:
        """Raises, or counts the step as skipped, if its gradients were not finite."""
        [total] = step.values.read()
        # the norm of finite gradients is infinite if their squares are
        if math.isfinite(total) or bool(step.each.isfinite().all()):
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        message = _message(step, self._machine)
        if self.policy == "error" and not step.scaled:
            raise ConfigError(f"{message}\n{_REMEDIES}")
        if self.in_a_row > self.max_in_a_row:
            raise ConfigError(f"{message}\nSteps without finite gradients in a row: {self.in_a_row}.\n{_REMEDIES}")
        if not step.scaled and self.in_a_row == 1:
            rank_zero_warn(f"{message}\nThe step was not made.")
        return self.skips and not step.scaled

    def logged(self, trainer: Trainer) -> dict[str, float]:
        """The count, where steps can be skipped."""
        return {"skipped_steps/non_finite": self.skipped} if self.skips or has_scaler(trainer) else {}


def _message(step: _Step, machine: str) -> str:
    """Where the gradients were not finite, the samples of the step, and which inputs were to blame."""
    norms = step.norms().tolist()
    bad = [part for part, norm in zip(step.parts, norms, strict=False) if not math.isfinite(norm)]
    number, epoch, batch = step.place
    place = f"step {number} (epoch {epoch}, batch {batch}), {machine}"
    lines = [f"gradients: {place}: not finite in {listing(bad, 6)}."]
    ids: list[Any] = []
    for of_batch in step.ids:
        ids += of_batch.tolist() if isinstance(of_batch, Tensor) else of_batch
    if ids:
        more = " ..." if len(ids) > _SHOWN_SAMPLES else ""
        lines.append(f"Samples of the step: {', '.join(map(str, ids[:_SHOWN_SAMPLES]))}{more}.")
    inputs: list[str] = []
    for batch in step.batches:
        if isinstance(batch, Mapping):
            inputs += _bad_inputs(batch, batch.get("id"))
    return "\n".join(lines + inputs[:4])


def _bad_inputs(batch: Mapping[str, Any], ids: Any) -> list[str]:
    """A line for each entry of a batch that holds values that are not finite; `ids` name the samples, if given."""
    lines = []
    for key, value in batch.items():
        if isinstance(value, Mapping):
            lines += _bad_inputs(value, ids)
        elif isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
            samples = (~value.isfinite()).unsqueeze(1).flatten(1).any(1)  # (B,), also of an entry (B,)
            bad = samples.nonzero().flatten().tolist()
            if bad:
                named = [f"position {i}" if ids is None else f"id {ids[i]}" for i in bad[:6]]
                lines.append(
                    f"Input {key!r} is not finite in {len(bad)} of {len(samples)} samples: {', '.join(named)}."
                )
    return lines
