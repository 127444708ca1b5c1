"""A run that is saved at every step, the same run continued from each of these files, and how they compare."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler, get_worker_info

from hybrid_lightning import ExactResume, GradualUnfreezing, named_param_groups
from hybrid_lightning.distributed.sharding import whole
from tests.tiny import Tower, batches, hybrid, trainer

SAMPLES = 28  # 7 batches of 4
BATCH = 4


class Augmented(Dataset[dict[str, Tensor]]):
    """Samples with noise from all three sources of random numbers, loaded one by one."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self.entries = batches(samples).dataset.entries  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.entries["target"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = {key: value[index] for key, value in self.entries.items()}
        noise = float(torch.rand(())) + float(np.random.rand()) + random.random()
        return {**sample, "old": sample["old"] + noise}


class Whole(Augmented):
    """The same, loaded in whole batches."""

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        return [self[index] for index in indices]


class Stream(IterableDataset[dict[str, Tensor]]):
    """The same as a stream in random order, shared among the workers."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = Augmented(samples)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        worker = get_worker_info()
        order = torch.randperm(len(self.samples)).tolist()
        return (self.samples[i] for i in (order[worker.id :: worker.num_workers] if worker else order))


class Lazy(torch.utils.data.Sampler[int]):
    """Draws one index at a time from the global random state, and has no length."""

    def __iter__(self) -> Iterator[int]:
        return (random.randrange(SAMPLES) for _ in range(SAMPLES))


def weighted() -> WeightedRandomSampler:
    return WeightedRandomSampler([1.0 + index % 3 for index in range(SAMPLES)], SAMPLES)


def bulk() -> DataLoader[Any]:
    """The sampler draws whole batches, the loader makes none."""
    sampler = torch.utils.data.BatchSampler(RandomSampler(range(SAMPLES)), BATCH, drop_last=False)
    return DataLoader(Gathered(), sampler=sampler, batch_size=None)


class Gathered(Augmented):
    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        return super().__getitem__(torch.as_tensor(index))


def plain(dataset: Any = None, **options: Any) -> DataLoader[Any]:
    options = {"batch_size": BATCH, "shuffle": options.get("sampler") is None, **options}
    return DataLoader(dataset or Augmented(), **options)


def stream(**options: Any) -> DataLoader[Any]:
    return DataLoader(Stream(), BATCH, **options)


def own_generator() -> DataLoader[Any]:
    return plain(generator=torch.Generator().manual_seed(5), num_workers=2, persistent_workers=True)


class Custom:
    """A loader of somebody's own, without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(plain())


def several(mode: Any) -> CombinedLoader:
    return CombinedLoader({"a": plain(), "b": plain(Augmented(12))}, mode)


WORKERS = {"num_workers": 2}
PERSISTENT = {**WORKERS, "persistent_workers": True}
LOADERS: dict[str, Callable[[], Any]] = {
    "samples": plain,
    "batches": lambda: batches(SAMPLES, BATCH, shuffle=True),
    "whole": lambda: plain(Whole()),
    "workers": lambda: plain(**WORKERS),
    "persistent": lambda: plain(**PERSISTENT),
    "spawned": lambda: plain(multiprocessing_context="spawn", **PERSISTENT),
    "from_server": lambda: plain(multiprocessing_context="forkserver", **PERSISTENT),
    "weighted": lambda: plain(sampler=weighted()),
    "weighted_workers": lambda: plain(sampler=weighted(), **WORKERS),
    "lazy": lambda: plain(sampler=Lazy(), **WORKERS),
    "generator": own_generator,
    "subset": lambda: plain(torch.utils.data.Subset(Augmented(40), range(5, 5 + SAMPLES))),
    "bulk": bulk,
    "stream": stream,
    "stream_workers": lambda: stream(**WORKERS),
    "stream_persistent": lambda: stream(**PERSISTENT),
    "custom": lambda: Custom(),
    "cycled": lambda: several("max_size_cycle"),
    "shortest": lambda: several("min_size"),
    "longest": lambda: several("max_size"),
    "stream_beside": lambda: {"a": plain(), "b": stream()},
}


class Dropping(pl.LightningModule):
    """Somebody else's module, with dropout, batch statistics and validation; draws at random wherever it can."""

    def __init__(self, scheduler: str = "step", reads_length: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Tower(4, dropout=0.5)
        self.head = nn.Linear(6, 2)
        self.scheduler, self.reads_length = scheduler, reads_length
        self.strength = 0.0

    def on_train_epoch_start(self) -> None:
        self.strength = 1 + self.current_epoch + float(torch.rand(()))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer.training and "old" in batch:
            return {**batch, "old": batch["old"] + torch.randn_like(batch["old"])}
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        several = [each for each in (batch.values() if "a" in batch else [batch]) if each is not None]
        losses = [nn.functional.cross_entropy(self.head(self.backbone(b["old"])), b["target"]) for b in several]
        loss = torch.stack(losses).sum() * self.strength * (1 + random.random())
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self.head(self.backbone(batch["old"])), batch["target"])
        self.log("val/loss", loss * (1 + torch.rand(())), sync_dist=True, batch_size=len(batch["target"]))

    def configure_optimizers(self) -> Any:
        length = self.trainer.estimated_stepping_batches if self.reads_length else 40
        stages = {"backbone": ["backbone.first", "backbone.second", "backbone.third"]}
        optimizer = torch.optim.AdamW(
            named_param_groups(self, {"backbone": "backbone", "head": "head"}, lr=0.01, stages=stages)
        )
        kinds = torch.optim.lr_scheduler
        if self.scheduler == "plateau":
            scheduler: Any = kinds.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss"}}
        scheduler = (
            kinds.ExponentialLR(optimizer, 0.9)
            if self.scheduler == "epoch"
            else kinds.CosineAnnealingLR(optimizer, int(length))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.scheduler}}


class Recorder(pl.Callback):
    """Everything that happens, in order; each checkpoint says how much of it came before."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        groups = trainer.optimizers[0].param_groups
        self.events.append(["batch", trainer.current_epoch, batch_idx, trainer.global_step, sums(batch)])
        self.events.append(["rates", *(float(group["lr"]) for group in groups)])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.events.append(["loss", float(outputs["loss"])])

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}
            self.events.append(["validated", trainer.current_epoch, trainer.global_step, values])

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.events.append(["epoch ends", trainer.current_epoch])

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["events"] = len(self.events)


def sums(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: sums(value) for key, value in batch.items()}
    return batch.double().sum().item() if isinstance(batch, Tensor) else batch


class Rows(DummyLogger):
    """What is logged, by step, except for the losses of training steps."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        if any(name.startswith("val") for name in metrics):
            self.rows.append([step, metrics])


class Run:
    """One run, from the start or from a file.

    Args:
        make: Makes the model.
        loader: Name among `LOADERS`.
        exact: Whether `ExactResume` takes part.
        every: Of the batches, saves after each so many-th.
        options: Of the Trainer.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        loader: str | Callable[[], Any],
        path: Path | None = None,
        folder: Path | None = None,
        exact: bool = True,
        every: int = 1,
        **options: Any,
    ) -> None:
        self.model, self.recorder, self.logger = make(), Recorder(), Rows()
        callbacks: list[pl.Callback] = [ExactResume(enabled=exact), self.recorder]
        if isinstance(self.model, Dropping):
            callbacks.insert(0, GradualUnfreezing({"backbone": {"start": "3 steps", "every": "2 steps"}}))
        callbacks += options.pop("callbacks", [])
        validation = LOADERS[options.pop("validation")]() if "validation" in options else batches(12)
        if folder:
            callbacks += checkpoints(folder, every)
        defaults = {"max_epochs": 3, "enable_checkpointing": bool(folder), "log_every_n_steps": 1}
        if "strategy" in options:  # each Trainer needs one of its own
            options["strategy"] = options["strategy"]()
        self.trainer = trainer(callbacks=callbacks, **{**defaults, "logger": self.logger, **options})
        torch.manual_seed(11 if path is None else 22)  # the same seed by chance would prove nothing
        np.random.seed(11 if path is None else 22)
        random.seed(11 if path is None else 22)
        loaders = LOADERS[loader]() if isinstance(loader, str) else loader()
        self.trainer.fit(self.model, loaders, validation, ckpt_path=path, weights_only=True)

    def state(self) -> dict[str, Any]:
        optimizer = self.trainer.optimizers[0].state_dict()
        schedulers = [config.scheduler.state_dict() for config in self.trainer.lr_scheduler_configs]
        metrics = {k: v for k, v in self.trainer.callback_metrics.items() if k.startswith("val")}
        steps = (
            self.trainer.global_step,
            self.trainer.current_epoch,
            self.trainer.fit_loop.epoch_loop._batches_that_stepped,
        )
        state = {
            "model": self.model.state_dict(),
            "optimizer": optimizer,
            "schedulers": schedulers,
            "metrics": metrics,
            "steps": steps,
        }
        return tree_map(whole, state)  # type: ignore[no-any-return]


class AtValidation(ModelCheckpoint):
    """Another type, because the Trainer takes one of a kind."""


class AtBatch(Checkpoint):
    """Saves after the first batch and every so many-th from there, within accumulation windows too."""

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.batches = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1
        if (self.batches - 1) % self.every == 0:
            trainer.save_checkpoint(self.folder / f"batch-{trainer.current_epoch}-{batch_idx}.ckpt")


def checkpoints(folder: Path, every_batch: int = 1) -> list[pl.Callback]:
    """Files after every batch or each so many-th, after every validation and at every epoch's end, and the last one."""
    every: dict[str, Any] = {"save_top_k": -1, "enable_version_counter": False, "every_n_epochs": 1}
    return [
        AtBatch(folder, every_batch),
        AtValidation(folder, "validation-{step:03d}", save_on_train_epoch_end=False, **every),
        ModelCheckpoint(folder, "end-{step:03d}", save_on_train_epoch_end=True, save_last=True, **every),
    ]


def differences(
    make: Callable[[], Any], loader: Any, folder: Path, every: int = 1, **options: Any
) -> tuple[int, dict[str, str]]:
    """Continues a run from each of its checkpoints.

    Args:
        every: Takes each so many-th file, counted alone among those after batches and among the others.

    Returns:
        Number of checkpoints, and file name → first difference, for the files where there is one.
    """
    whole = Run(make, loader, folder=folder, every=every, **options)
    after_batches = sorted(folder.glob("batch-*.ckpt"))
    others = sorted(set(folder.glob("*.ckpt")).difference(after_batches), reverse=True)
    paths = [*after_batches, *others[::every]]
    found = {}
    for path in paths:
        events = torch.load(path, weights_only=True)["events"]
        again = Run(make, loader, path, **options)
        rest = len(again.recorder.events)
        problem = first_difference(whole.recorder.events[events:], again.recorder.events, "events")
        problem = problem or first_difference(whole.state(), again.state(), "state")
        rows = again.logger.rows
        problem = problem or first_difference(whole.logger.rows[len(whole.logger.rows) - len(rows) :], rows, "rows")
        if problem:
            found[path.name] = f"{problem} (of {rest} events)"
    return len(paths), found


def first_difference(one: Any, other: Any, where: str) -> str | None:
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return f"{where}: {set(one) ^ set(other)}"
        pairs = [(key, one[key], other[key]) for key in one]
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        pairs = [(index, *pair) for index, pair in enumerate(zip(one, other, strict=False))]
        if len(one) != len(other):
            pairs.append(("length", len(one), len(other)))
    else:
        equal = torch.equal(one, other) if isinstance(one, Tensor) else one == other
        return None if equal else f"{where}: {one} / {other}"
    return next((d for key, a, b in pairs if (d := first_difference(a, b, f"{where}.{key}"))), None)


MODELS: dict[str, Callable[[], Any]] = {
    "task": partial(hybrid, {"start": "3 steps", "every": "2 steps"}),
    "ema": partial(hybrid, {"start": "3 steps", "every": "4 steps"}, average={"ema": "4 steps"}, lr=0.05),
    "soup": partial(hybrid, {"start": "3 steps", "every": "4 steps"}, average={"soup": 3}, lr=0.05),
    "foreign": Dropping,
    "epoch_scheduler": partial(Dropping, "epoch"),
    "plateau": partial(Dropping, "plateau"),
    "reads_length": partial(Dropping, "step", True),
}
