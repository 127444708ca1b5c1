"""Trains models that are part pretrained and part new; see `HybridClassifier` and ``python -m hybrid_lightning``."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_lightning.callbacks import (
        L2SP,
        AverageWeights,
        ExactResume,
        FrozenFeatureCache,
        GradientClipping,
        GradientNormMonitor,
        GradualUnfreezing,
        LastCheckpoint,
        NonFiniteGradients,
        PretrainedDrift,
        ReestimateStatistics,
        SpikeGuard,
    )
    from hybrid_lightning.cli.from_config import from_config
    from hybrid_lightning.data import InMemoryDataModule, ManifestDataModule
    from hybrid_lightning.demo.digits import DigitsDataModule
    from hybrid_lightning.demo.elpv import ElpvDataModule
    from hybrid_lightning.demo.mnist import MnistDataModule
    from hybrid_lightning.demo.plaid import PlaidDataModule
    from hybrid_lightning.demo.series import SeriesDataModule
    from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
    from hybrid_lightning.distributed.sharding import shard
    from hybrid_lightning.duration import Duration, FitLength
    from hybrid_lightning.errors import ConfigError
    from hybrid_lightning.init.suggest import suggest
    from hybrid_lightning.network.part import Part
    from hybrid_lightning.network.registry import register
    from hybrid_lightning.optim.groups import named_param_groups
    from hybrid_lightning.optim.lr_schedules import GroupRates, GroupScheduler
    from hybrid_lightning.resume.atomic_checkpoint_io import AtomicCheckpointIO
    from hybrid_lightning.tasks import HybridClassifier, HybridRegressor, HybridTask
    from hybrid_lightning.tasks.losses import FocalLoss
    from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule

__version__ = "0.1.0.dev0"

_HOMES = {
    "L2SP": "callbacks",
    "AtomicCheckpointIO": "resume.atomic_checkpoint_io",
    "AverageWeights": "callbacks",
    "ConfigError": "errors",
    "DigitsDataModule": "demo.digits",
    "Duration": "duration",
    "ElpvDataModule": "demo.elpv",
    "ExactResume": "callbacks",
    "FSDP2Strategy": "distributed.fsdp2",
    "FitLength": "duration",
    "FocalLoss": "tasks.losses",
    "FrozenFeatureCache": "callbacks",
    "GradientClipping": "callbacks",
    "GradientNormMonitor": "callbacks",
    "GradualUnfreezing": "callbacks",
    "GroupRates": "optim.lr_schedules",
    "GroupScheduler": "optim.lr_schedules",
    "HybridClassifier": "tasks",
    "HybridRegressor": "tasks",
    "HybridTask": "tasks",
    "InMemoryDataModule": "data",
    "LastCheckpoint": "callbacks",
    "ManifestDataModule": "data",
    "MnistDataModule": "demo.mnist",
    "NonFiniteGradients": "callbacks",
    "Part": "network.part",
    "PlaidDataModule": "demo.plaid",
    "PretrainedDrift": "callbacks",
    "ReestimateStatistics": "callbacks",
    "SeriesDataModule": "demo.series",
    "SpikeGuard": "callbacks",
    "UnfreezingSchedule": "unfreezing.schedule",
    "from_config": "cli.from_config",
    "named_param_groups": "optim.groups",
    "register": "network.registry",
    "shard": "distributed.sharding",
    "suggest": "init.suggest",
}

__all__ = [
    "L2SP",
    "AtomicCheckpointIO",
    "AverageWeights",
    "ConfigError",
    "DigitsDataModule",
    "Duration",
    "ElpvDataModule",
    "ExactResume",
    "FSDP2Strategy",
    "FitLength",
    "FocalLoss",
    "FrozenFeatureCache",
    "GradientClipping",
    "GradientNormMonitor",
    "GradualUnfreezing",
    "GroupRates",
    "GroupScheduler",
    "HybridClassifier",
    "HybridRegressor",
    "HybridTask",
    "InMemoryDataModule",
    "LastCheckpoint",
    "ManifestDataModule",
    "MnistDataModule",
    "NonFiniteGradients",
    "Part",
    "PlaidDataModule",
    "PretrainedDrift",
    "ReestimateStatistics",
    "SeriesDataModule",
    "SpikeGuard",
    "UnfreezingSchedule",
    "from_config",
    "named_param_groups",
    "register",
    "shard",
    "suggest",
]


def __getattr__(name: str) -> Any:
    """Imports on first use, so that the plain-torch layer needs no Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
