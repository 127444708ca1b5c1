"""Trains models that are part pretrained and part new; see `HybridClassifier` and ``python -m hybrid_lightning``."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_lightning.callbacks import GradientNormMonitor, GradualUnfreezing
    from hybrid_lightning.data import DigitsDataModule, InMemoryDataModule, PlaidDataModule
    from hybrid_lightning.durations import Duration, FitLength
    from hybrid_lightning.errors import ConfigError
    from hybrid_lightning.network.parts import Part
    from hybrid_lightning.network.registry import register
    from hybrid_lightning.param_groups import named_param_groups
    from hybrid_lightning.rates import GroupRates
    from hybrid_lightning.schedules import UnfreezingSchedule
    from hybrid_lightning.sharding import shard
    from hybrid_lightning.strategies import FSDP2Strategy
    from hybrid_lightning.tasks import HybridClassifier, HybridRegressor, HybridTask

__version__ = "0.1.0.dev0"

_HOMES = {
    "ConfigError": "errors",
    "DigitsDataModule": "data",
    "Duration": "durations",
    "FSDP2Strategy": "strategies",
    "FitLength": "durations",
    "GradientNormMonitor": "callbacks",
    "GradualUnfreezing": "callbacks",
    "GroupRates": "rates",
    "HybridClassifier": "tasks",
    "HybridRegressor": "tasks",
    "HybridTask": "tasks",
    "InMemoryDataModule": "data",
    "Part": "network.parts",
    "PlaidDataModule": "data",
    "UnfreezingSchedule": "schedules",
    "named_param_groups": "param_groups",
    "register": "network.registry",
    "shard": "sharding",
}

__all__ = [
    "ConfigError",
    "DigitsDataModule",
    "Duration",
    "FSDP2Strategy",
    "FitLength",
    "GradientNormMonitor",
    "GradualUnfreezing",
    "GroupRates",
    "HybridClassifier",
    "HybridRegressor",
    "HybridTask",
    "InMemoryDataModule",
    "Part",
    "PlaidDataModule",
    "UnfreezingSchedule",
    "named_param_groups",
    "register",
    "shard",
]


def __getattr__(name: str) -> Any:
    """Imports on first use, so that the plain-torch layer needs no Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
