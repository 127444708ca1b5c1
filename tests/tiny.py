"""A tiny two-tower model and its data, and a LightningModule of somebody else, for the tests of callbacks."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hybrid_lightning import HybridClassifier, named_param_groups
from hybrid_lightning.data.in_memory import DictDataset, as_batch


class Tower(nn.Module):
    """Three blocks with batch statistics and dropout."""

    def __init__(self, in_features: int, width: int = 6, dropout: float = 0.5) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(in_features, width), nn.BatchNorm1d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width, affine=False), nn.Dropout(dropout))
        self.third = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


class Layers(nn.Module):
    """Two single layers, a stage each, with dropout between them."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(in_features, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.dropout(self.first(x).relu(), 0.2, self.training)
        return self.second(hidden)


def batches(samples: int = 40, batch_size: int = 8, shuffle: bool = False) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 4, generator=generator) * 3 + 1
    entries = {"old": x, "new": x.flip(1), "target": (x.sum(1) > 4).long()}
    return DataLoader(DictDataset(entries), batch_size, shuffle=shuffle, collate_fn=as_batch)


def hybrid(unfreeze: Any = "never", dropout: float = 0.5, **options: Any) -> HybridClassifier:
    torch.manual_seed(0)
    parts = {
        "old": {"module": Tower, "args": {"dropout": dropout}, "unfreeze": unfreeze, "lr_scale": 0.1},
        "new": {"module": "MLP", "args": {"hidden": [5]}},
    }
    fusion = {"args": {"standardize": "features"}}  # without batch statistics, so that ranks can be compared
    return HybridClassifier(num_classes=2, parts=parts, **{"lr": 0.01, "fusion": fusion, **options})


class Foreign(pl.LightningModule):
    """Somebody else's module: knows nothing of ours but `named_param_groups`."""

    def __init__(self, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Tower(4, dropout=0.0)
        self.head = nn.Linear(6, 2)
        self.optimizer_class = optimizer

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch["old"])), batch["target"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        stages = {"backbone": ["backbone.first", "backbone.second", "backbone.third"]}
        parts = {"backbone": "backbone", "head": "head"}
        return self.optimizer_class(named_param_groups(self, parts, lr=0.01, stages=stages))


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults = {**quiet, "enable_checkpointing": False, "accelerator": "cpu", "max_epochs": 4}
    return pl.Trainer(**{**defaults, **options})
