"""Modules of several stages, and fits that unfreeze them from the head down, for the tests of boundaries in parts."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from hybrid_lightning import HybridClassifier
from hybrid_lightning.data.in_memory import DictDataset, as_batch

SAMPLES = 24


class Stage(nn.Sequential):
    """Counts the samples that it runs on."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().forward(x)


class Backbone(nn.Module):
    """Six stages; between them activations and dropout that follow the root's mode."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Stage(3 if index == 0 else 4, 4) for index in range(6)])
        self.pool, self.dropout = nn.AvgPool2d(2), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index == 1:
                x = self.pool(nn.functional.gelu(x))
        return self.dropout(x).mean((2, 3))


class Early(Backbone):
    """Dropout after the first stage, which follows the root's mode."""

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.stages
        x = nn.functional.dropout(first(x), 0.3, self.training)
        for stage in others:
            x = stage(x)
        return x.mean((2, 3))


class Checkpointed(Backbone):
    """In training its activations are computed once more in the backward pass, all together."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]
        return super().forward(x)


class Wide(nn.Sequential):
    """The second of three stages has the largest output."""

    def __init__(self) -> None:
        pool = nn.AdaptiveAvgPool2d(1)
        super().__init__(Stage(3, 2), Stage(2, 16), Stage(16, 4), pool, nn.Flatten())


class Unet(nn.Module):
    """What the first stage gives is read again at the end, through a gate that is closed at first."""

    def __init__(self, gate: float = 1.0) -> None:
        super().__init__()
        self.down, self.middle, self.gate, self.up = Stage(3, 4), Stage(4, 4), Gate(gate), Stage(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down(x)
        return self.up(self.middle(first) + self.gate(first)).mean((2, 3))


class Gate(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 1), value))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.view(1, 1, 1, 1) * x


class Tokens(nn.Module):
    """A transformer of two layers over the 16 patches of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 2, 2)
        layers = [nn.TransformerEncoderLayer(8, 2, 16, 0.1, batch_first=True) for _ in range(3)]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.norm(tokens).mean(1)


def top_down(*stages: str, start: int = 1, every: int = 1, unit: str = "epochs") -> dict[str, Any]:
    """A schedule that unfreezes these stages one after another, and no others."""
    moments: dict[str, Any] = {}
    for index, name in enumerate(stages):
        moments[name] = f"{start + index * every} {unit}"
    return {"stages": {**moments, "*": "never"}}


SIX = tuple(f"stages.{index}" for index in range(5, -1, -1))


def images(samples: int = SAMPLES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(samples, 3, 8, 8, generator=generator)
    table = torch.randn(samples, 4, generator=generator)
    return {"image": image, "table": table, "target": (image.mean((1, 2, 3)) > 0).long()}


def samples(number: int = 30, gaps: bool = False) -> DataLoader[Any]:
    """A loader of training samples; with another number than 30 of validation samples."""
    is_training = number == 30
    own = images(SAMPLES if is_training else number)
    if gaps:
        own["present/image"] = torch.arange(len(own["target"])) % 4 > 0
    return DataLoader(DictDataset(own), 8, shuffle=is_training, collate_fn=as_batch)


def task(
    module: Any = Backbone, unfreeze: Any = None, image: Any = None, before: Any = None, **options: Any
) -> HybridClassifier:
    torch.manual_seed(0)
    down = top_down(*SIX) if unfreeze is None else unfreeze
    parts = {
        **(before or {}),
        "image": {"module": module, "unfreeze": down, **(image or {})},
        "table": {"module": "MLP", "args": {"hidden": [5], "dropout": 0.2}},
    }
    fusion = {"args": {"standardize": "features"}}
    return HybridClassifier(num_classes=2, parts=parts, fusion=fusion, **{"lr": 0.01, **options})
