"""What happens when gradients are not finite: an error that says where, or a step that is not made."""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.gradients.step import LaterOnHost, has_scaler, refuse_unskippable, shared_pass
from hybrid_lightning.trainer import is_log_step, log_values, window_is_open
from hybrid_lightning.unfreezing.freezing import KeptStatistics

POLICIES = ("error", "skip", "ignore")
_KEPT_BATCHES = 4


@dataclass
class _Step:
    """What can be said about a step once it is known that its gradients are not finite."""

    place: tuple[int, int, int]
    """Optimizer step, epoch and batch."""
    scaled: bool
    parts: Sequence[str]
    norms: Callable[[], Tensor]
    """Norm of each part's gradients, and of all."""
    sum: LaterOnHost
    """Not finite if a norm is not; small, because it is looked at after every step."""
    batches: list[Any]
    ids: list[Any]


class NonFiniteGradients(pl.Callback):
    """Stops, or skips the step, when a gradient is nan or infinite.

    Under a gradient scaler (precision 16-mixed) the scaler skips such steps by itself; they are counted here, and so
    many in a row that no scale can be to blame are an error. Works in any LightningModule whose one optimizer has
    groups from `named_param_groups`.

    | key | meaning |
    |---|---|
    | ``skipped_steps/non_finite`` | steps of the fit that were not made so far; with ``skip`` or a gradient scaler |

    Args:
        policy: ``error`` ends the fit and names the parts, the step, the samples and the precision. It is told one
            step later, or before a validation or a checkpoint, so that the device is never waited for; until then the
            step's batches (the last four) stay in memory. ``skip`` makes no step, which leaves weights, optimizer state
            and running statistics as they are; it waits for the device once per step, and all ranks decide together.
            ``ignore`` does nothing.
        max_in_a_row: Number of steps in a row that may be skipped, by us or by a gradient scaler; one more is an error.

    Raises:
        ConfigError: On another policy or a number below 1.
    """

    def __init__(self, policy: str = "error", max_in_a_row: int = 20) -> None:
        super().__init__()
        if policy not in POLICIES:
            raise unknown("NonFiniteGradients.policy", "policy", str(policy), POLICIES)
        if max_in_a_row < 1:
            raise ConfigError(f"NonFiniteGradients.max_in_a_row: {max_in_a_row} is less than 1.")
        self.policy, self.max_in_a_row = policy, max_in_a_row
        self._forget()

    def _forget(self) -> None:
        self.skipped = self.in_a_row = 0
        self._pending: _Step | None = None
        self._batches: deque[Any] = deque(maxlen=_KEPT_BATCHES)
        self._ids: list[Any] = []
        self._due = False
        self._statistics: KeptStatistics | None = None
        self._saved_statistics: list[Tensor] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A fit starts without the memory of an earlier one."""
        if stage == "fit":
            self._forget()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses a Trainer whose clipping would fail."""
        self._machine = f"precision {trainer.precision}, rank {trainer.global_rank}"
        if self.policy == "skip":
            refuse_unskippable(trainer, type(self).__name__)

    def state_dict(self) -> dict[str, Any]:
        """How many steps have been skipped, and within an accumulation window what a skip would restore.

        Nothing is saved that has been spoilt.
        """
        self._settle()
        statistics = None if self._statistics is None else self._statistics.copies
        return {"skipped": self.skipped, "in_a_row": self.in_a_row, "statistics": statistics}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up the counts of an earlier run."""
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self._saved_statistics = state_dict.get("statistics")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Remembers whose gradients are summed, and what they may spoil."""
        if self.policy == "skip" and self._statistics is None:
            self._statistics = KeptStatistics(pl_module, self._saved_statistics)
            self._saved_statistics = None
        if self.policy != "ignore":
            self._batches.append(batch)
            if isinstance(batch, Mapping) and "id" in batch:
                self._ids.append(batch["id"])

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at the gradients; with ``skip`` decides at once, else one step later."""
        self._settle()
        if self.policy == "ignore":
            return
        gradients = shared_pass(trainer, type(self).__name__)
        measure, total = partial(gradients.rows.norms, gradients.before), gradients.before.sum()
        scaled = has_scaler(trainer)
        total = total + gradients.observers().to(total.device) if scaled else total
        decides = self.policy == "skip" and not scaled
        if decides and trainer.world_size > 1:
            worst = _worst_of_all_ranks(measure())
            measure, total = partial(torch.clone, worst), worst.sum()
        place = trainer.global_step, trainer.current_epoch, trainer.fit_loop.batch_idx
        later, batches = LaterOnHost(total.view(1)), list(self._batches)
        self._pending = _Step(place, scaled, gradients.rows.parts, measure, later, batches, self._ids)
        self._batches.clear()
        self._ids = []
        if decides and self._settle():
            gradients.skip()
            assert self._statistics is not None
            self._statistics.restore()
        self._due = is_log_step(trainer) and (self.policy == "skip" or scaled)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the count."""
        if not window_is_open(trainer):
            self._statistics = None
        if self._due:
            self._due = False
            self._settle()
            log_values(trainer, {"skipped_steps/non_finite": float(self.skipped)})

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is validated with weights that have been spoilt."""
        self._settle()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The last step counts, too."""
        self._settle()
        self._batches.clear()

    def _settle(self) -> bool:
        """Acts on the step that has been looked at; True if its gradients were not finite."""
        step, self._pending = self._pending, None
        if step is None:
            return False
        if math.isfinite(*step.sum.read()):
            self.in_a_row = 0
            return False
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        message = _message(step, self._machine)
        if self.policy == "error" and not step.scaled:
            raise ConfigError(f"{message}\n{_REMEDIES}")
        if self.in_a_row > self.max_in_a_row:
            raise ConfigError(f"{message}\nSteps without finite gradients in a row: {self.in_a_row}.\n{_REMEDIES}")
        if not step.scaled and self.in_a_row == 1:
            rank_zero_warn(f"{message}\nThe step was not made.")
        return True


_REMEDIES = (
    "What helps: a look at these samples, a lower lr, trainer.gradient_clip_val, precision bf16-mixed instead of 16.\n"
    "In trainer.callbacks, NonFiniteGradients with policy 'skip' goes on without such steps, 'ignore' with them."
)


def _worst_of_all_ranks(norms: Tensor) -> Tensor:
    """Each row's largest norm, infinite where one is not finite."""
    worst = torch.where(norms.isfinite(), norms, float("inf"))
    torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MAX)
    return worst


def _message(step: _Step, machine: str) -> str:
    number, epoch, batch = step.place
    bad = [part for part, norm in zip(step.parts, step.norms().tolist(), strict=False) if not math.isfinite(norm)]
    lines = [f"gradients: step {number} (epoch {epoch}, batch {batch}), {machine}: not finite in {listing(bad, 6)}."]
    ids = [str(value) for entry in step.ids for value in (entry.tolist() if isinstance(entry, Tensor) else entry)]
    if ids:
        lines.append(f"Samples of the step: {', '.join(ids[:12])}{' ...' if len(ids) > 12 else ''}.")
    lines += [line for batch in step.batches for line in _bad_inputs(batch)][:4]
    return "\n".join(lines)


def _bad_inputs(batch: Any) -> list[str]:
    """A line for each entry of a batch that holds values that are not finite."""
    if not isinstance(batch, Mapping):
        return []
    ids = batch.get("id")
    lines = []
    for key, value in batch.items():
        if isinstance(value, Mapping):
            lines += _bad_inputs({**({} if ids is None else {"id": ids}), **value})
        elif isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
            rows = (~value.isfinite()).flatten(1).any(1) if value.ndim > 1 else ~value.isfinite()
            bad = rows.nonzero().flatten().tolist()
            if bad:
                named = [f"id {ids[i]}" if ids is not None else f"position {i}" for i in bad[:6]]
                lines.append(f"Input {key!r} is not finite in {len(bad)} of {len(rows)} samples: {', '.join(named)}.")
    return lines
