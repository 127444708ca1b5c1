"""Collects what a report shows beside metrics: predictions of a split, the parts, the data and the machine."""

import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

import hybrid_lightning
from hybrid_lightning.data.in_memory import InMemoryDataModule, pick
from hybrid_lightning.data.loaders import plain_samples, targets_of
from hybrid_lightning.data.table import Array
from hybrid_lightning.drift.reference_batch import batches_on_device, first_of
from hybrid_lightning.errors import ConfigError, reason
from hybrid_lightning.report.describe import MOST_WORST, Rows, Worst, describe, new_record, row_losses
from hybrid_lightning.report.pictures import shown
from hybrid_lightning.report.record import Record
from hybrid_lightning.report.summary import parts_of
from hybrid_lightning.tasks.features import reading
from hybrid_lightning.tasks.selection import weights_of
from hybrid_lightning.tasks.settings import has_own_steps

_MOST_ROWS = 20_000


def collect(
    trainer: Trainer, task: Any, data: Any, split: str, checkpoint: Path | None, seconds: float | None = None
) -> Record:
    """The record of a run; the rows of a split are predicted by a checkpoint, unless that would take more `seconds`."""
    record = new_record(task.objective, split)
    record.machine = machine(trainer)
    record.parts = parts_of(trainer, task)
    try:
        loader = _loader(data, split)
        record.data = overview(_datasets(trainer, data, loader, split), record.kind)
        if checkpoint is not None:
            _predict(record, trainer, _Rows(task, data), loader, checkpoint, seconds)
    except Exception as error:  # data and modules of others may raise any
        record.notes.append(f"Predictions are not shown: {reason(error)}")
    return record


def _predict(
    record: Record, trainer: Trainer, rows: "_Rows", loader: Any, checkpoint: Path, seconds: float | None
) -> None:
    """Adds what a checkpoint predicts."""
    task = rows.task
    if not record.kind or has_own_steps(type(task)):
        raise ConfigError("the task has steps or a loss of its own.")
    if loader is None:
        raise ConfigError(f"there are no {record.split} rows.")
    with weights_of(trainer, task, checkpoint, select=True), reading(trainer):
        some = plain_samples(None, loader, _MOST_ROWS)
        rows.read(batches_on_device(trainer, task, some), _length(some), seconds)
    found = rows.rows()
    _describe_parts(record, rows, found)
    describe(record, found, rows.worst, task.objective, rows.data)


def _loader(data: Any, split: str) -> Any:
    """The first loader of a split; None if a DataModule has none."""
    method = {"val": "val_dataloader", "test": "test_dataloader"}[split]
    if not is_overridden(method, data, LightningDataModule):
        return None
    loaders = getattr(data, method)()
    return None if loaders == [] else first_of(loaders)


def _length(loader: Any) -> int:
    try:
        return len(loader)
    except TypeError:  # a stream
        return 0


class _Rows:
    """Predictions of a task, batch by batch."""

    def __init__(self, task: Any, data: Any) -> None:
        self.task = task
        self.data = data
        self.truth: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self.without: dict[str, list[Tensor]] = {}
        self.contributions: dict[str, list[Tensor]] = {}
        self.worst: list[Worst] = []  # the largest loss first
        self.count = 0

    @torch.no_grad()
    def read(self, batches: Iterable[Any], expected: int, seconds: float | None) -> None:
        """Predicts; raises `ConfigError` if it would take longer, or there is nothing."""
        started = time.perf_counter()
        for number, batch in enumerate(batches):
            self._add(batch)
            needed = (time.perf_counter() - started) * max(expected / (number + 1), 1)
            if seconds is not None and number > 0 and needed > seconds:
                raise ConfigError(f"that would take about {needed:.1f} s at the end of each run.")
        if not self.predicted:
            raise ConfigError("there are no rows.")

    def _add(self, batch: Any) -> None:
        task = self.task
        objective = task.objective
        outputs, without = task.built().forward_and_without(batch)
        predictions = task.predictions(outputs)
        for part, other in without.items():
            less = task.predictions(other)
            change = objective.contribution(predictions, less).abs()
            self.without.setdefault(part, []).append(objective.decisions(less).cpu())
            self.contributions.setdefault(part, []).append(change.cpu())
        target = batch["target"]
        self.truth.append(target.cpu())
        self.predicted.append(predictions.float().cpu())
        self._keep_worst(batch, row_losses(predictions, target, objective).tolist())
        self.count += len(target)

    def _keep_worst(self, batch: Any, losses: list[float]) -> None:
        """Adds the rows of a batch with a large loss, and what is shown of them, as the batch is not kept."""
        for place, loss in enumerate(losses):
            self.worst.append(Worst(loss, self.count + place))
        self.worst.sort(key=lambda one: -one.loss)
        del self.worst[MOST_WORST:]
        for number, one in enumerate(self.worst):
            if one.place >= self.count:
                sample = pick(batch, one.place - self.count)
                row = int(sample["id"]) if "id" in sample else one.place
                self.worst[number] = one._replace(row=row, shown=shown(sample))

    def rows(self) -> Rows:
        """All that was read."""
        predicted = torch.cat(self.predicted)
        decided = self.task.objective.decisions(predicted).numpy()
        return Rows(torch.cat(self.truth).numpy(), predicted.numpy(), decided)


def _describe_parts(record: Record, seen: _Rows, rows: Rows) -> None:
    """Adds to each part what would be without it, and how much it changes predictions."""
    whole = score(rows.truth, rows.decided)
    for part in record.parts:
        name = part["part"]
        if name in seen.without:
            without = torch.cat(seen.without[name]).numpy()
            part["whole"] = whole
            part["without"] = score(rows.truth, without)
            part["contribution"] = float(torch.cat(seen.contributions[name]).mean())


def score(truth: Array, decided: Array) -> float:
    """The accuracy of classes and labels, or R² of numbers (the mean over columns), `(N,)` or `(N, K)`."""
    if truth.dtype.kind != "f" or decided.dtype.kind != "f":
        return float((truth == decided).mean())
    left = np.square(truth - decided).reshape(len(truth), -1).sum(0)
    all_of_it = np.square(truth - truth.mean(0)).reshape(len(truth), -1).sum(0)
    return float((1 - left / np.maximum(all_of_it, np.finfo(np.float64).tiny)).mean())


# Data and machine


def _datasets(trainer: Trainer, data: Any, loader: Any, split: str) -> dict[str, Any]:
    """Split → dataset: those of a manifest or of data in memory, or what the loaders of the Trainer read."""
    known = data.splits if isinstance(data, InMemoryDataModule) else getattr(data, "datasets", None)
    if known:
        return dict(known)
    loaders = {"train": first_of(trainer.train_dataloader), split: loader}
    return {name: getattr(one, "dataset", None) for name, one in loaders.items()}


def overview(datasets: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Rows per split, rows per class or label in each, and missing modalities."""
    found: dict[str, Any] = {"rows": {}, "classes": {}, "missing": {}}
    for split, dataset in datasets.items():
        try:
            found["rows"][split] = len(dataset)
        except TypeError:  # a stream
            continue
        targets = targets_of(dataset) if found["rows"][split] else None
        if targets is not None and kind in ("multiclass", "binary") and targets.ndim == 1:
            found["classes"][split] = torch.bincount(targets.long()).tolist()
        elif targets is not None and kind == "multilabel":
            found["classes"][split] = targets.sum(0).long().tolist()
        present = getattr(getattr(dataset, "samples", None), "present", {})
        for key, mask in present.items():
            found["missing"].setdefault(key, {})[split] = int((~mask[dataset.rows]).sum())
    return found


def machine(trainer: Trainer) -> dict[str, str]:
    """Versions and devices, without names of hosts or users."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "hybrid_lightning": hybrid_lightning.__version__,
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "Python": platform.python_version(),
        "system": platform.system(),
        "device": f"{trainer.world_size} × {device.type} ({name})",
        "threads": str(torch.get_num_threads()),
        "precision": str(trainer.precision),
    }
