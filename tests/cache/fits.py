"""Fits with and without the cache, for the tests of it and one rank of two."""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hybrid_lightning import ExactResume, FrozenFeatureCache, HybridClassifier
from hybrid_lightning.cache.served import StandInDataset
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.resume.seeded_loaders import hashed, seed_cpu
from tests.tiny import trainer

SAMPLES = 30
BATCH = 8


class Tower(nn.Module):
    """A small function of `old` that counts its samples."""

    seen = 0

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(4, 6), nn.Linear(6, 5), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        Tower.seen += len(x)
        return self.second(self.dropout(torch.tanh(self.first(x))))


def entries(samples: int = SAMPLES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 4, generator=generator)
    return {"old": x, "new": x.flip(1), "target": (x.sum(1) > 0).long()}


class Files(Dataset[dict[str, Tensor]]):
    """Samples that are read one by one; counts how often, in this process."""

    def __init__(self, samples: int = SAMPLES, random: str = "") -> None:
        self.entries, self.random, self.reads = entries(samples), random, 0

    def __len__(self) -> int:
        return len(self.entries["target"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        self.reads += 1
        sample = {key: value[index] for key, value in self.entries.items()}
        if self.random:
            sample[self.random] = sample[self.random] + (torch.rand(()) < 0.01)
        return sample


class Noisy(Files):
    """Training samples with noise on both inputs, drawn one after the other; what is left out draws nothing."""

    def __init__(self, samples: int = SAMPLES) -> None:
        super().__init__(samples)
        self.left_out: set[str] = set()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = super().__getitem__(index)
        for key in ("old", "new"):
            if key in self.left_out:
                del sample[key]
            elif len(self) == SAMPLES:
                sample[key] = sample[key] + torch.randn(4)
        return sample

    def without(self, keys: Collection[str]) -> "Noisy":
        smaller = copy.copy(self)
        smaller.left_out = set(keys)
        return smaller


class Shifted(Files):
    """Training samples whose inputs change together by one random number; nothing can be left out."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = super().__getitem__(index)
        shift = torch.randn(()) if len(self) == SAMPLES else 0
        return {**sample, "old": sample["old"] + shift, "new": sample["new"] + shift}


class Versions(Shifted):
    """Gives live what a cache of two views has to serve, as a `FollowEpochs` tells it."""

    seed, epoch = 0, 0

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        seed_cpu(hashed(self.seed, "view", self.epoch % 2, index))
        return super().__getitem__(index)


class FollowEpochs(pl.Callback):
    """Tells `Versions` the seed of the run and the epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        [resume] = [callback for callback in trainer.callbacks if isinstance(callback, ExactResume)]
        dataset = trainer.train_dataloader.dataset
        dataset.seed, dataset.epoch = resume.seed, trainer.current_epoch


def in_memory(samples: int = SAMPLES, **options: Any) -> DataLoader[Any]:
    options = {"batch_size": BATCH, "shuffle": samples == SAMPLES, **options}
    return DataLoader(DictDataset(entries(samples)), collate_fn=as_batch, **options)


def files(samples: int = SAMPLES, **options: Any) -> DataLoader[Any]:
    random = options.pop("random", "")
    options = {"batch_size": BATCH, "shuffle": samples == SAMPLES, **options}
    return DataLoader(Files(samples, random), **options)


def workers(samples: int = SAMPLES, **options: Any) -> DataLoader[Any]:
    return files(samples, num_workers=1, persistent_workers=True, **options)


def noisy(samples: int = SAMPLES, **options: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(samples), BATCH, shuffle=samples == SAMPLES, **options)


def shifted(samples: int = SAMPLES) -> DataLoader[Any]:
    return DataLoader(Shifted(samples), BATCH, shuffle=samples == SAMPLES)


def versions(samples: int = SAMPLES) -> DataLoader[Any]:
    return DataLoader(Versions(samples), BATCH, shuffle=samples == SAMPLES)


def noisy_workers(samples: int = SAMPLES) -> DataLoader[Any]:
    return noisy(samples, num_workers=1, persistent_workers=True)


LOADERS: dict[str, Callable[..., DataLoader[Any]]] = {"memory": in_memory, "files": files, "workers": workers}
NOISY: dict[str, Callable[..., DataLoader[Any]]] = {"noisy": noisy, "noisy_workers": noisy_workers}
OTHERS: dict[str, Callable[..., DataLoader[Any]]] = {"shifted": shifted, "versions": versions}


def task(unfreeze: Any = "never", parts: Any = None, **options: Any) -> HybridClassifier:
    torch.manual_seed(0)
    own = {
        "old": {"module": Tower, "unfreeze": unfreeze},
        "new": {"module": "MLP", "args": {"hidden": [5], "dropout": 0.2}},
    }
    fusion = {"args": {"standardize": "features"}}  # without batch statistics, so that ranks can be compared
    return HybridClassifier(num_classes=2, parts=parts or own, fusion=fusion, **{"lr": 0.01, **options})


class Recorder(pl.Callback):
    """Losses, and the keys of batches as the module gets them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.keys: list[set[str]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        found = set(batch)
        self.keys.append(found | {f"cached/{name}" for name in batch.get("cached", {})})


@dataclass
class Fit:
    model: Any
    losses: list[float]
    keys: list[set[str]]
    seen: int
    """Samples that the frozen part has run on, in this process."""
    reads: int
    cache: FrozenFeatureCache | None
    trainer: pl.Trainer
    metrics: dict[str, float] = field(default_factory=dict)


def fit(
    model: Any,
    loader: str | Callable[..., DataLoader[Any]] = "memory",
    path: Any = None,
    callbacks: Any = (),
    **options: Any,
) -> Fit:
    """Three epochs of four batches; `loader` makes both splits."""
    make = {**LOADERS, **NOISY, **OTHERS}[loader] if isinstance(loader, str) else loader
    recorder = Recorder()
    runner = trainer(callbacks=[*callbacks, recorder], **{"max_epochs": 3, **options})
    train, val = make(), make(11)
    torch.manual_seed(7 if path is None else 8)
    before, Tower.seen = Tower.seen, 0
    runner.fit(model, train, val, ckpt_path=path, weights_only=True)
    seen, Tower.seen = Tower.seen, before
    found = [callback for callback in runner.callbacks if isinstance(callback, FrozenFeatureCache)]
    metrics = {name: float(value) for name, value in runner.callback_metrics.items() if name.startswith("val/")}
    reads = getattr(train.dataset, "reads", 0)
    assert not isinstance(train.dataset, StandInDataset), "it has to be put back"
    return Fit(model, recorder.losses, recorder.keys, seen, reads, found[0] if found else None, runner, metrics)


def assert_equal_fits(one: Fit, other: Fit, steps: int = 12) -> None:
    assert len(one.losses) == len(other.losses) == steps
    torch.testing.assert_close(torch.tensor(one.losses), torch.tensor(other.losses), rtol=0, atol=1e-6)
    assert one.metrics.keys() == other.metrics.keys()
    for name, value in one.metrics.items():
        if "average_precision" in name:  # it jumps where two scores, which differ by rounding alone, change places
            continue
        assert abs(value - other.metrics[name]) < 1e-4, name
