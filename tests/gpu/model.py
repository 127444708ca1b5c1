"""The model, the generated data and the Trainer of the checks, the same on every device."""

import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hybrid_lightning import HybridClassifier
from hybrid_lightning.data.in_memory import DictDataset, as_batch

BATCH, BATCHES, EPOCHS = 16, 6, 3
SIDE, COLUMNS, CLASSES = 16, 8, 3
STAGES = ("first", "second", "third")
SCHEDULE = {"start": "3 steps", "every": "4 steps"}
UNFROZEN_AT = {0, 3, 7, 11}
"""What trains from the start, and the three stages of the tower from its top to its bottom."""


class Skipped(Exception):  # noqa: N818
    """A check makes no sense on this device; the text is the reason."""


class Tower(nn.Module):
    """Three stages of convolutions with batch statistics and dropout; no operation of it is without a fixed order."""

    def __init__(self, width: int = 16, dropout: float = 0.3) -> None:
        super().__init__()
        self.first = stage(3, width, dropout)
        self.second = stage(width, 2 * width, dropout)
        self.third = stage(2 * width, 2 * width, dropout)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.third(self.second(self.first(images)))
        return maps.mean(dim=(2, 3))


def stage(inputs: int, outputs: int, dropout: float) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(dropout))


def task(unfreeze: Any = SCHEDULE, tower: dict[str, Any] | None = None, **options: Any) -> HybridClassifier:
    """A tower as a pretrained one, which unfreezes by stage, beside an untrained MLP on a table."""
    torch.manual_seed(0)
    image = {"module": Tower, "unfreeze": unfreeze, "lr_scale": 0.1, **(tower or {})}
    parts = {"image": image, "table": {"module": "MLP", "args": {"hidden": [16]}}}
    return HybridClassifier(num_classes=CLASSES, parts=parts, **{"lr": 0.01, "cache": False, **options})


def entries(samples: int, side: int = SIDE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, 3, side, side, generator=generator)
    table = torch.randn(samples, COLUMNS, generator=generator)
    images[:, 0] += table[:, :1, None]
    return {"image": images, "table": table, "target": table[:, :CLASSES].argmax(1)}


def loader(samples: int = BATCH * BATCHES, shuffle: bool = True, batch: int = BATCH, side: int = SIDE) -> Any:
    return DataLoader(DictDataset(entries(samples, side)), batch, shuffle=shuffle, collate_fn=as_batch)


def trainer(device: str, **options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "log_every_n_steps": 1}
    own = {"accelerator": "gpu" if device == "cuda" else device, "devices": 1, "enable_checkpointing": False}
    return pl.Trainer(**{**quiet, **own, "max_epochs": EPOCHS, "gradient_clip_val": 1.0, **options})


def fit(device: str, model: pl.LightningModule, path: Any = None, data: Any = None, **options: Any) -> pl.Trainer:
    """Trains and validates; the seed of a run that continues differs, because the same one would prove nothing."""
    runner = trainer(device, **options)
    torch.manual_seed(1 if path is None else 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train = loader() if data is None else data
        runner.fit(model, train, loader(2 * BATCH, shuffle=False), ckpt_path=path, weights_only=True)
    return runner


def largest_distance(one: Any, other: Any) -> float:
    """The largest distance between two nested states of tensors and numbers; 0 if they are equal in every bit."""
    if isinstance(one, Tensor):
        equal = torch.equal(one.cpu(), other.cpu())
        return 0.0 if equal else float((one.cpu().double() - other.cpu().double()).abs().max())
    if isinstance(one, dict):
        assert one.keys() == other.keys(), f"other entries: {set(one) ^ set(other)}"
        return max((largest_distance(value, other[key]) for key, value in one.items()), default=0.0)
    if isinstance(one, list | tuple):
        assert len(one) == len(other), "another number of entries"
        return max((largest_distance(*pair) for pair in zip(one, other, strict=True)), default=0.0)
    return 0.0 if one == other else float("inf")
