"""Gradient norms per part, before and after clipping, how often parts are clipped, and how far steps go."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.distributed.sharding import own_shares
from hybrid_lightning.gradients.gradient_clipping import GradientClipping
from hybrid_lightning.gradients.norms import GradientPass, Rows, gradient_norms, tensor_norms
from hybrid_lightning.gradients.step import has_scaler, shared_pass
from hybrid_lightning.trainer import is_log_step, log_values

_KEPT_STEPS = 256


class GradientNormMonitor(pl.Callback):
    """Logs the 2-norm of the gradients of each part, before and after clipping, and what becomes of them.

    Norms are of unscaled gradients, of optimizer parameters only, once per optimizer step, and equal on all ranks. The
    pass over the gradients is the one that clips; without clipping there is one on log steps only. Between log steps
    nothing waits for the device. Works in any LightningModule whose one optimizer has groups from `named_param_groups`;
    there it makes passes of its own if the Trainer clips, two per step. Steps that a scaler or a callback skips have no
    norms in the log.

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
        update_ratio: Whether ``update_ratio`` is logged. On log steps it takes a copy of the weights that train for the
            duration of the optimizer's step, when the memory of the activations is free.
    """

    def __init__(self, stages: bool = False, update_ratio: bool = True) -> None:
        super().__init__()
        self.stages, self.update_ratio = stages, update_ratio
        self._pass: GradientPass | None = None
        self._due = False
        self._negated: list[Tensor] = []  # the weights before the step, times -1
        self._clips = _ClipCount()
        self._clips_something = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A fit starts without the memory of an earlier one."""
        self._pass, self._due, self._negated, self._clips = None, False, [], _ClipCount()
        per_part = any(isinstance(callback, GradientClipping) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        self._clips_something = per_part or bool(trainer.gradient_clip_val)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures before clipping."""
        self._due = is_log_step(trainer)
        self._pass = None
        if self._due or self._clips_something:
            self._pass = shared_pass(trainer, type(self).__name__)
        if self._due and self.update_ratio and self._pass and self._pass.parameters:
            with torch.no_grad():
                self._negated = list(torch._foreach_neg(own_shares(self._pass.parameters)))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures after clipping and logs, if this batch ended in a step that is logged."""
        if self._pass is None:
            return
        measured, self._pass = self._pass, None
        if not measured.skipped and trainer.gradient_clip_val and not measured.complete:
            measured.norms = gradient_norms(measured.parameters)
        if not measured.skipped:
            self._clips.add(measured)
        if self._due:
            values = self._values(measured)
            if not (measured.skipped or (has_scaler(trainer) and not math.isfinite(values["grad_norm/total"]))):
                log_values(trainer, values)
            self._due, self._negated = False, []

    def _values(self, measured: GradientPass) -> dict[str, float]:
        """All values of a log step, which leave the device in one copy."""
        norms = {"grad_norm": measured.before, "grad_norm_clipped": measured.norms}
        if self._negated:
            norms["weights"] = tensor_norms(measured.parameters, self._negated)
            with torch.no_grad():
                torch._foreach_add_(self._negated, own_shares(measured.parameters))
            norms["moved"] = tensor_norms(measured.parameters, self._negated)
        combined = measured.rows.norms(torch.stack([row.to(measured.before) for row in norms.values()]))
        series = dict(zip(norms, combined, strict=True))
        series["clip_rate"] = self._clips.shares(combined[0])
        if self._negated:
            series["update_ratio"] = series.pop("moved") / series.pop("weights")
        table = torch.stack(list(series.values())).tolist()
        shown = [i for i, name in enumerate(measured.rows.names) if self.stages or name not in measured.rows.stages]
        values = {
            f"{key}/{measured.rows.names[index]}": row[index]
            for key, row in zip(series, table, strict=True)
            for index in shown
            # a part without gradients has no weights that were updated
            if key != "update_ratio" or not math.isnan(row[index])
        }
        total = values["grad_norm/total"]
        return {**values, "clip_coef": values["grad_norm_clipped/total"] / total if total else 1.0}


class _ClipCount:
    """In how many of the steps since the last log each row's norm became smaller.

    A step is only remembered; the comparison is made for many steps at once, because a small net would notice it.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[Tensor, Tensor]] = []
        self._rows: Rows | None = None
        self._counted = 0
        self._clipped: Tensor | None = None

    def add(self, measured: GradientPass) -> None:
        """Remembers a step."""
        if measured.rows is not self._rows or len(self._steps) >= _KEPT_STEPS:
            self._compare()
        self._rows = measured.rows
        self._steps.append((measured.before, measured.norms))

    def shares(self, like: Tensor) -> Tensor:
        """Share of the steps since the last call, `(rows,)`, each 0 to 1."""
        self._compare()
        clipped, counted = self._clipped, self._counted
        self._clipped, self._counted = None, 0
        return torch.zeros_like(like) if clipped is None else clipped.to(like) / counted

    def _compare(self) -> None:
        if not self._steps or self._rows is None:
            return
        before, after = (torch.stack(norms) for norms in zip(*self._steps, strict=True))
        smaller = (self._rows.norms(after) < self._rows.norms(before)).sum(0)
        self._clipped = smaller if self._clipped is None else self._clipped + smaller
        self._counted += len(self._steps)
        self._steps = []
