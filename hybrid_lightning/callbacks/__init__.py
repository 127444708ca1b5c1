"""Callbacks for `HybridTask` and for any LightningModule whose groups come from `named_param_groups`."""

from hybrid_lightning.callbacks.exact_resume import ExactResume
from hybrid_lightning.callbacks.gradient_clipping import GradientClipping
from hybrid_lightning.callbacks.gradient_norm import GradientNormMonitor
from hybrid_lightning.callbacks.last_checkpoint import LastCheckpoint
from hybrid_lightning.callbacks.non_finite import NonFiniteGradients
from hybrid_lightning.callbacks.statistics import ReestimateStatistics
from hybrid_lightning.callbacks.unfreezing import GradualUnfreezing

__all__ = [
    "ExactResume",
    "GradientClipping",
    "GradientNormMonitor",
    "GradualUnfreezing",
    "LastCheckpoint",
    "NonFiniteGradients",
    "ReestimateStatistics",
]
