"""Callbacks for `HybridTask` and for any LightningModule whose groups come from `named_param_groups`."""

from hybrid_lightning.callbacks.gradient_norm import GradientNormMonitor
from hybrid_lightning.callbacks.last_checkpoint import LastCheckpoint
from hybrid_lightning.callbacks.unfreezing import GradualUnfreezing

__all__ = ["GradientNormMonitor", "GradualUnfreezing", "LastCheckpoint"]
