"""Callbacks for `HybridTask` and for any LightningModule whose groups come from `named_param_groups`."""

from hybrid_lightning.averaging.average_weights import AverageWeights
from hybrid_lightning.cache.frozen_feature_cache import FrozenFeatureCache
from hybrid_lightning.drift.l2sp import L2SP
from hybrid_lightning.drift.pretrained_drift import PretrainedDrift
from hybrid_lightning.gradients.gradient_clipping import GradientClipping
from hybrid_lightning.gradients.gradient_norm_monitor import GradientNormMonitor
from hybrid_lightning.gradients.non_finite_gradients import NonFiniteGradients
from hybrid_lightning.gradients.spike_guard import SpikeGuard
from hybrid_lightning.resume.exact_resume import ExactResume
from hybrid_lightning.resume.last_checkpoint import LastCheckpoint
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing
from hybrid_lightning.unfreezing.reestimate_statistics import ReestimateStatistics

__all__ = [
    "L2SP",
    "AverageWeights",
    "ExactResume",
    "FrozenFeatureCache",
    "GradientClipping",
    "GradientNormMonitor",
    "GradualUnfreezing",
    "LastCheckpoint",
    "NonFiniteGradients",
    "PretrainedDrift",
    "ReestimateStatistics",
    "SpikeGuard",
]
