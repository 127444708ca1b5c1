"""The one pass over the gradients of a step, which all callbacks and the task share."""

from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.gradients.norms import GradientPass
from hybrid_lightning.trainer import named_groups

_LAST: WeakKeyDictionary[Optimizer, tuple[int, GradientPass]] = WeakKeyDictionary()


def shared_pass(trainer: pl.Trainer, asks: str) -> GradientPass:
    """The pass of the optimizer step under way, made when it is first asked for.

    To be asked for from ``on_before_optimizer_step`` on, where gradients are unscaled and not yet clipped.

    Args:
        trainer: Its one optimizer has groups from `named_param_groups`.
        asks: Name of what asks, for errors.

    Raises:
        ConfigError: If there are several optimizers, groups without names, or gradients that stay scaled.
    """
    optimizer = trainer.optimizers[0]
    step, last = _LAST.get(optimizer, (-1, None))
    if last is None or step != trainer.global_step:
        groups = named_groups(trainer, asks)
        if has_scaler(trainer) and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ConfigError(
                f"{asks}: {type(optimizer).__name__}(fused=True) unscales gradients within its step, so under "
                f"precision 16-mixed nobody can see or clip them before. Use fused=False, or precision bf16-mixed."
            )
        last = GradientPass(groups)
        _LAST[optimizer] = trainer.global_step, last
    return last


def has_scaler(trainer: pl.Trainer) -> bool:
    """Whether a gradient scaler skips the steps whose gradients overflow (precision 16-mixed)."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.is_enabled()


def refuse_unskippable(trainer: pl.Trainer, asks: str) -> None:
    """Raises `ConfigError` if torch's clipping by value would be called for a skipped step, where it fails."""
    own = type(trainer.lightning_module).configure_gradient_clipping is pl.LightningModule.configure_gradient_clipping
    if own and trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        raise ConfigError(
            f"{asks}: a skipped step has no gradients, and torch's clipping by value fails without any. Use "
            f"GradientClipping({{part: {{'value': {trainer.gradient_clip_val}}}}}) instead."
        )


class LaterOnHost:
    """A small tensor on its way to the host; nobody waits for it until it is read.

    Args:
        values: What to copy; not to be changed afterwards.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)
        self._copied: Any = None
        if values.device.type != "cpu":
            self._copied = torch.Event(values.device)
            self._copied.record()

    def read(self) -> list[float]:
        """The values; waits only if the device has not come so far yet."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._values.tolist()
