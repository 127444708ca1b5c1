"""DataModules: batches are dicts with an entry per input key and a ``target``."""

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule
from hybrid_lightning.data.manifest import ManifestDataModule
from hybrid_lightning.demo.digits import DigitsDataModule
from hybrid_lightning.demo.elpv import ElpvDataModule
from hybrid_lightning.demo.plaid import PlaidDataModule

__all__ = [
    "DictDataset",
    "DigitsDataModule",
    "ElpvDataModule",
    "InMemoryDataModule",
    "ManifestDataModule",
    "PlaidDataModule",
]
