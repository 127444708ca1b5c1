"""DataModules: batches are dicts with an entry per input key and a ``target``."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule
    from hybrid_lightning.data.manifest import ManifestDataModule

_HOMES = {"DictDataset": "in_memory", "InMemoryDataModule": "in_memory", "ManifestDataModule": "manifest"}

__all__ = ["DictDataset", "InMemoryDataModule", "ManifestDataModule"]


def __getattr__(name: str) -> Any:
    """Imports on first use, so that what looks at a table needs no Lightning."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
