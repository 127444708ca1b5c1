"""L2-SP: a penalty on the distance from the weights that a part started from."""

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.distributed.sharding import own_share
from hybrid_lightning.drift.start_weights import ReferenceCallback, over_ranks, reference_of, sum_of_squares
from hybrid_lightning.errors import ConfigError, check_number, listing
from hybrid_lightning.gradients.gradient_clipping import GradientClipping
from hybrid_lightning.gradients.gradient_norm_monitor import GradientNormMonitor
from hybrid_lightning.gradients.non_finite_gradients import NonFiniteGradients
from hybrid_lightning.gradients.spike_guard import SpikeGuard
from hybrid_lightning.trainer import is_log_step, log_values, named_groups

_AFTER: tuple[type[pl.Callback], ...] = (GradientClipping, GradientNormMonitor, NonFiniteGradients, SpikeGuard)
"""Callbacks that measure or change gradients, and have to see those of the penalty."""


class L2SP(ReferenceCallback):
    """Pulls the trainable weights w of parts towards their start w0: adds strength / 2 · ‖w - w0‖² to the loss.

    From Xuhong et al. (arXiv 1802.01483), whose α the strength is. The gradient, strength · (w - w0), is added once per
    optimizer step, before gradients are measured and clipped; accumulation and loss scaling do not change it. A
    parameter without a gradient stands still, as ever. A fit that continues from a checkpoint keeps the w0 of its first
    start. Works in any LightningModule whose one optimizer has groups from `named_param_groups`; in a
    `HybridTask` the fact ``l2sp`` of a part, or of ``pretrained``, is enough.

    Weight decay of these parts still pulls to zero: set ``weight_decay: 0`` for them.

    | key | meaning |
    |---|---|
    | ``l2sp/<part>`` | the penalty, strength / 2 · ‖w - w0‖² of what trains, on each log step, before the step |

    The copy of the starting weights takes as many bytes as the parts' weights, on their device (each rank its share,
    under fsdp2), and the same again in each checkpoint; `PretrainedDrift` shares it.

    Args:
        parts: Names of the parts; null takes the pretrained ones, which only `HybridTask` knows, or those that
            `strength` names.
        strength: Strength of the pull, 0 or more; or a dict part → strength.
        on_cpu: Whether w0 is kept on the CPU, to spare memory of the device, and is copied to it at each step.

    Raises:
        ConfigError: If a strength is no number of at least 0; at the start of a fit, if a part is unknown, null is
            given and no part is known to be pretrained, a callback that measures gradients stands before this one, or
            the optimizer itself removes the loss scale.
    """

    def __init__(
        self, parts: list[str] | None = None, strength: float | dict[str, float] = 0.01, on_cpu: bool = False
    ) -> None:
        super().__init__(parts, on_device=not on_cpu)
        self.strength = strength
        for name, value in strength.items() if isinstance(strength, Mapping) else [("", strength)]:
            check_number(value, f"L2SP.strength{'.' if name else ''}{name}", low=0)
        if isinstance(strength, Mapping) and parts is not None:
            raise ConfigError("L2SP.parts: leave it out; the parts are those that 'strength' names.")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copies the weights, and checks that what follows sees the gradient of the penalty."""
        if isinstance(self.strength, Mapping):
            self.parts = list(self.strength)
        super().on_fit_start(trainer, pl_module)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        early = [type(c).__name__ for c in callbacks[: callbacks.index(self)] if isinstance(c, _AFTER)]
        if early:
            raise ConfigError(
                f"trainer.callbacks: {listing(early)} stands before L2SP and would not see the gradient of its "
                f"penalty. List L2SP first."
            )
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        if scaled and getattr(trainer.optimizers[0], "_step_supports_amp_scaling", False):
            raise ConfigError(
                "L2SP: a fused optimizer removes the loss scale of 16-mixed itself, after the penalty was added. "
                "Make the optimizer with fused=False, or use bf16-mixed."
            )

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Adds the gradient of the penalty; logs the penalty on log steps."""
        reference, logged = reference_of(trainer), is_log_step(trainer)
        penalties: dict[str, Tensor] = {}
        for group in named_groups(trainer, type(self).__name__):
            part = group["part"]
            if part not in self.watched:
                continue
            trained = [p for p in group["params"] if p.grad is not None]
            moved = reference.moved(trained)
            if moved:
                gradients = [own_share(p.grad) for p in trained]
                torch._foreach_add_(gradients, moved, alpha=self._strength(part))
            if logged:
                penalty = self._strength(part) / 2 * sum_of_squares(moved).to(pl_module.device)
                penalties[part] = penalties.get(part, torch.zeros_like(penalty)) + penalty
        if penalties:
            groups = named_groups(trainer, type(self).__name__)
            everything = [p for group in groups if group["part"] in self.watched for p in group["params"]]
            values = over_ranks(torch.stack(list(penalties.values())), everything)
            log_values(trainer, {f"l2sp/{part}": value for part, value in zip(penalties, values, strict=True)})

    def _strength(self, part: str) -> float:
        return self.strength[part] if isinstance(self.strength, Mapping) else self.strength
