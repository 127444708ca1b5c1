"""Gradient norms per part, before and after clipping, how often parts are clipped, and how far steps go."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.distributed.sharding import own_shares
from hybrid_lightning.gradients.norms import GradientPass, NormTable, gradient_norms, tensor_norms
from hybrid_lightning.gradients.step import has_scaler, made_pass, shared_pass
from hybrid_lightning.trainer import FitCallback, is_log_step, log_values

_KEPT_STEPS = 256  # steps between two comparisons, if the log interval is longer: bounds the memory of their norms


class GradientNormMonitor(FitCallback):
    """Logs the 2-norm of the gradients of each part, before and after clipping, and how far the step goes.

    Norms are of unscaled gradients, of optimizer parameters only, once per optimizer step, and equal on all ranks. The
    pass over the gradients is the one that clips; without clipping there is one on log steps only. Between log steps
    nothing waits for the device. Works in any LightningModule whose one optimizer has groups from `named_param_groups`;
    there it makes passes of its own if the Trainer clips, two per step. Steps that a scaler or a callback skips have no
    norms in the log. On log steps the weights that train are copied for the duration of the optimizer's step, when the
    memory of the activations is free.

    | key | meaning |
    |---|---|
    | ``grad_norm/<part>`` | norm before clipping; 0 for a frozen part |
    | ``grad_norm/total`` | norm over all parts, what ``clip_grad_norm_`` returns |
    | ``grad_norm_clipped/<part>``, ``grad_norm_clipped/total`` | norm that the optimizer saw |
    | ``clip_coef`` | clipped total / total, in (0, 1] |
    | ``clip_rate/<part>``, ``clip_rate/total`` | share of the steps since the last log that clipped it, 0 to 1 |
    | ``update_ratio/<part>``, ``update_ratio/total`` | ‖Δw‖ / ‖w‖ of this step, over the parameters with a gradient |

    Args:
        stages: Whether the norms of each stage are logged too, as ``grad_norm/<part>.<stage>`` and so on.
    """

    gradient_order = 1

    def __init__(self, stages: bool = False) -> None:
        super().__init__()
        self.stages = stages
        self.forget()

    def forget(self) -> None:
        """Forgets the step under way and the steps since the last log."""
        self._step: int | None = None  # only between gradients and the end of their batch
        self._due = False
        self._negated: list[Tensor] = []  # the weights before the step, times -1
        self._clips = _ClipCount()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measures before clipping, where this step is logged or the Trainer clips."""
        self._step = trainer.global_step
        self._due = is_log_step(trainer)
        if not (self._due or trainer.gradient_clip_val):
            return
        gradients = shared_pass(trainer, type(self).__name__)
        if self._due and gradients.parameters:
            with torch.no_grad():
                self._negated = list(torch._foreach_neg(own_shares(gradients.parameters)))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Measures after clipping and logs, if this batch ended in a step that is logged."""
        if self._step is None:
            return
        # also one that only another callback, such as GradientClipping, has made
        measured = made_pass(trainer, self._step)
        self._step = None
        if measured is None:
            return
        if not measured.skipped:
            if trainer.gradient_clip_val and not measured.complete:  # clipped by the Trainer itself
                measured.norms = gradient_norms(measured.parameters)
            self._clips.add(measured)
        if self._due:
            values = self._values(measured)
            overflown = has_scaler(trainer) and not math.isfinite(values["grad_norm/total"])
            if not (measured.skipped or overflown):
                log_values(trainer, values)
            self._due = False
            self._negated = []

    def _values(self, measured: GradientPass) -> dict[str, float]:
        """All values of a log step, which leave the device in one copy."""
        combine = measured.rows.combine
        before = combine(measured.before)
        series = {
            "grad_norm": before,
            "grad_norm_clipped": combine(measured.norms),
            "clip_rate": self._clips.shares(before),
        }
        if self._negated:
            weights = tensor_norms(measured.parameters, self._negated)
            with torch.no_grad():
                torch._foreach_add_(self._negated, own_shares(measured.parameters))
            moved = tensor_norms(measured.parameters, self._negated)
            series["update_ratio"] = (combine(moved) / combine(weights)).to(before)  # weights may be float64
        table = torch.stack(list(series.values())).tolist()
        values = {}
        for key, row in zip(series, table, strict=True):
            for name, value in zip(measured.rows.names, row, strict=True):
                hidden = name in measured.rows.stages and not self.stages
                # a part without gradients has no weights that were updated: 0 / 0
                if not hidden and not (key == "update_ratio" and math.isnan(value)):
                    values[f"{key}/{name}"] = value
        total = values["grad_norm/total"]
        values["clip_coef"] = values["grad_norm_clipped/total"] / total if total else 1.0
        return values


class _ClipCount:
    """In how many of the steps since the last log each row's norm became smaller.

    A step is only remembered; the comparison is made for many steps at once, because in a small net the time of its
    operations would be noticed.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._rows: NormTable | None = None
        self._counted = 0
        self._clipped: Tensor | None = None

    def add(self, measured: GradientPass) -> None:
        """Remembers a step."""
        if measured.rows is not self._rows or len(self._steps) >= _KEPT_STEPS:
            self._compare()
        self._rows = measured.rows
        self._counted += 1
        if measured.norms is not measured.before:  # else nothing was clipped
            self._steps.append((measured.before, measured.norms))

    def shares(self, like: Tensor) -> Tensor:
        """Share of the steps since the last call that clipped each row, `(rows,)`, 0 to 1."""
        self._compare()
        clipped = self._clipped
        counted = self._counted
        self._clipped = None
        self._counted = 0
        return torch.zeros_like(like) if clipped is None else clipped.to(like) / counted

    def _compare(self) -> None:
        if not self._steps or self._rows is None:
            return
        before = torch.stack([norms for norms, _ in self._steps])
        after = torch.stack([norms for _, norms in self._steps])
        smaller = (self._rows.combine(after) < self._rows.combine(before)).sum(0)
        self._clipped = smaller if self._clipped is None else self._clipped + smaller
        self._steps = []
