"""Gradient norms per part, before and after clipping."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.callbacks.logging import is_log_step, named_groups
from hybrid_lightning.gradients import gradient_norms, norms_by_part, optimizer_parameters


class GradientNormMonitor(pl.Callback):
    """Logs the 2-norm of the gradients of each part, before and after clipping.

    Norms are of unscaled gradients, of optimizer parameters only, and equal on all ranks. Between log steps nothing is
    computed here and nothing waits for the device. A module that measures its gradients itself (`HybridTask`) is not
    measured again. Works in any LightningModule whose one optimizer has groups from `named_param_groups`.

    | key | meaning |
    |---|---|
    | ``grad_norm/<part>`` | norm before clipping; 0 for a frozen part |
    | ``grad_norm/total`` | norm over all parts, what ``clip_grad_norm_`` returns |
    | ``grad_norm_clipped/<part>``, ``grad_norm_clipped/total`` | norm that the optimizer saw |
    | ``clip_coef`` | clipped total / total, in (0, 1] |
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[str, Tensor] = {}
        self._due = False

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measures before clipping, on log steps."""
        if is_log_step(trainer):
            named_groups(trainer, type(self).__name__)
            self._before = {} if _measures_itself(pl_module) else _norms(optimizer)
            self._due = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures after clipping and logs, if this batch ended in a step that is logged."""
        if not self._due:
            return
        self._due = False
        if _measures_itself(pl_module):
            if pl_module.measured_norms is None:
                return
            before, after = pl_module.measured_norms  # type: ignore[misc]
        else:
            before, after = self._before, _norms(trainer.optimizers[0])
        total = before["total"]
        values = {f"grad_norm/{part}": norm for part, norm in before.items()}
        values |= {f"grad_norm_clipped/{part}": norm for part, norm in after.items()}
        values["clip_coef"] = torch.where(total > 0, after["total"] / total, torch.ones_like(total))
        pl_module.log_dict(values)


def _measures_itself(pl_module: pl.LightningModule) -> bool:
    return hasattr(pl_module, "measured_norms")


def _norms(optimizer: Optimizer) -> dict[str, Tensor]:
    groups = optimizer.param_groups
    return norms_by_part(groups, gradient_norms(optimizer_parameters(groups)))
