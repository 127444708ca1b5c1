"""DataModules: batches are dicts with an entry per input key and a ``target``."""

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule
from hybrid_lightning.data.manifest import ManifestDataModule

__all__ = ["DictDataset", "InMemoryDataModule", "ManifestDataModule"]
