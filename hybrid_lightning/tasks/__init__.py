"""LightningModules that train a hybrid network."""

from hybrid_lightning.tasks.base import HybridTask
from hybrid_lightning.tasks.classifier import HybridClassifier
from hybrid_lightning.tasks.regressor import HybridRegressor

__all__ = ["HybridClassifier", "HybridRegressor", "HybridTask"]
