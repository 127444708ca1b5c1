"""At the end of a run: what the best checkpoint says of its certainty, from rows that were held out."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from hybrid_lightning.data.loaders import plain_samples
from hybrid_lightning.data.preflight import first_rank_first
from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.drift.reference_batch import batches_on_device, evaluation_loaders, first_of, own_random_state
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.probe.calibration import fit_temperature
from hybrid_lightning.probe.conformal import FEWEST_ROWS, score_quantiles, too_few
from hybrid_lightning.probe.score import log_likelihood
from hybrid_lightning.probe.thresholds import best_thresholds, threshold_scores
from hybrid_lightning.resume.atomic_checkpoint_io import rewriting
from hybrid_lightning.tasks.calibration import CALIBRATION, Calibration
from hybrid_lightning.tasks.checkpoint import read_checkpoint
from hybrid_lightning.tasks.features import reading
from hybrid_lightning.tasks.formats import CHECKPOINT_KEY
from hybrid_lightning.tasks.selection import best_checkpoint, groups_of, most_validation_rows, weights_of
from hybrid_lightning.tasks.settings import has_own_steps
from hybrid_lightning.trainer import FitCallback

_ALL_ROWS = 2**31
_MOST_SHOWN = 12  # thresholds in a line


class Outputs(NamedTuple):
    """What a network gives for some rows, before any calibration."""

    outputs: Tensor  # (N, outputs)
    target: Tensor  # (N, ...)
    groups: Tensor | None  # (N,)


class CalibrateOutput(FitCallback):
    """After a run, writes into ``best.ckpt`` the temperature, thresholds and coverage of what it serves.

    Temperature and thresholds come from the validation rows, which have also chosen the checkpoint and its output; the
    quantile for sets and intervals from calibration rows, which nothing else has read: the ``calibration_dataloader``
    of a DataModule. A coverage is marginal: on average over rows as these are, not in each class or group.

    The temperature is for all rows alike, also with class weights, so that probabilities are frequencies in such rows.
    Other checkpoints, and training that goes on, are not touched. Without a validation, with sharded parameters, and
    for steps of a task of your own there is no calibration; asking for a coverage or a threshold is then an error.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses what could not be found at the end, and tells of calibration rows that nothing reads."""
        task: Any = pl_module
        wanted = task.settings.calibrate or {}
        with own_random_state(trainer):
            rows = _length_of(_calibration_loader(trainer))
        is_unread = rows > 0 and wanted.get("coverage") is None and not has_own_steps(type(task))
        if is_unread and trainer.is_global_zero:
            print("calibration: nothing reads its rows, because the model has no `calibrate: {coverage: 0.9}`")
        is_asked_for = wanted.get("threshold") is not None or wanted.get("coverage") is not None
        if not is_asked_for or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if isinstance(trainer.strategy, FSDP2Strategy):
            raise ConfigError("it needs the whole network on one device. Use another strategy.", "model.calibrate")
        monitors = [getattr(callback, "monitor", None) for callback in trainer.checkpoint_callbacks]
        if not trainer.enable_validation or not any(monitors):
            raise ConfigError(
                "it is written into the checkpoint that is best on validation rows, and this run keeps none. Give it "
                "validation rows and checkpoints.",
                "model.calibrate",
            )
        if wanted.get("coverage") is not None and rows < FEWEST_ROWS:
            raise too_few(int(rows))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Calibrates the best checkpoint, on the first rank; the others wait."""
        task: Any = pl_module
        path = best_checkpoint(trainer)
        # the disks of other ranks may not have the file
        if trainer.strategy.broadcast(path is not None and _calibrates(trainer, task)):
            first_rank_first(trainer, lambda: _calibrate_and_write(trainer, task, path))


def _calibrates(trainer: Trainer, task: Any) -> bool:
    """Whether a run has outputs to calibrate, and rows for it."""
    is_known = task.objective.closed_form is not None and not has_own_steps(type(task))
    is_whole = not isinstance(trainer.strategy, FSDP2Strategy)
    is_validated = trainer.val_dataloaders is not None and trainer.enable_validation
    return is_known and is_whole and is_validated and not trainer.fast_dev_run  # type: ignore[attr-defined]


def _calibrate_and_write(trainer: Trainer, task: Any, path: Any) -> None:
    """Calibrates a checkpoint; it stays as it is where that is impossible, as the run is sound."""
    wanted = {"temperature": task.objective.closed_form != "values", **(task.settings.calibrate or {})}
    held_out = None
    if not any(wanted.values()):
        write(path, Calibration())
        return
    try:
        with weights_of(trainer, task, path, select=True), reading(trainer):
            task.built().temperature = 1.0  # not that of an earlier end of the run
            loader = plain_samples(None, evaluation_loaders(trainer), most_validation_rows(trainer))
            validation = _outputs(trainer, task, loader, "val_groups")
            if wanted.get("coverage") is not None:
                loader = plain_samples(None, _calibration_loader(trainer), _ALL_ROWS)
                held_out = _outputs(trainer, task, loader, "calibration_groups")
        found = calibrated(task.objective, wanted, validation, held_out)
    except ConfigError as error:
        print(f"calibration: {path.name} stays as it is. {error}")
        return
    for line in described(task.objective, wanted, found, validation, held_out):
        print(f"calibration: {line}")
    write(path, found)


def _calibration_loader(trainer: Trainer) -> Any:
    """The calibration rows of the data; an empty list if there are none."""
    make = getattr(trainer.datamodule, "calibration_dataloader", list)  # type: ignore[attr-defined]
    return make()


def _length_of(loader: Any) -> float:
    """The number of rows of a loader; ``inf`` if it does not know."""
    loader = first_of(loader)
    try:
        return len(loader.dataset) if hasattr(loader, "dataset") else len(loader)
    except TypeError:
        return math.inf


def _outputs(trainer: Trainer, task: Any, loader: Any, groups: str) -> Outputs:
    """What a network gives for the samples of a loader, whose groups the data have under a name."""
    outputs = []
    targets = []
    for batch in batches_on_device(trainer, task, loader):
        outputs.append(task(batch).cpu())
        targets.append(batch["target"].cpu())
    if not outputs:
        raise ConfigError("there are no rows.", "data")
    target = torch.cat(targets)
    task.objective.check_target(target)
    return Outputs(torch.cat(outputs), target, groups_of(loader, getattr(trainer.datamodule, groups, None)))  # type: ignore[attr-defined]


def calibrated(objective: Any, wanted: Mapping[str, Any], validation: Outputs, held_out: Outputs | None) -> Calibration:
    """What is `wanted` of a calibration, a temperature and thresholds from validation rows, quantiles from others."""
    found = Calibration()
    if wanted.get("temperature"):
        target = objective.closed_form_target(validation.target)
        found = Calibration(fit_temperature(validation.outputs, target, objective.closed_form, validation.groups))
    if wanted.get("threshold"):
        predictions = objective.predictions(validation.outputs / found.temperature)
        labels = validation.target.reshape(len(predictions), -1)
        thresholds = best_thresholds(objective.of_labels(predictions), labels, wanted["threshold"])
        found = replace(found, metric=wanted["threshold"], thresholds=thresholds)
    if held_out is not None:
        predictions = objective.predictions(held_out.outputs / found.temperature)
        scores = objective.conformal_scores(predictions, held_out.target)
        quantiles = score_quantiles(scores, wanted["coverage"], held_out.groups)
        found = replace(found, coverage=float(wanted["coverage"]), quantiles=quantiles)
    return found


def described(
    objective: Any, wanted: Mapping[str, Any], found: Calibration, validation: Outputs, held_out: Outputs | None
) -> list[str]:
    """A line for each thing that was found, with what it changes."""
    lines = []
    if wanted.get("temperature"):
        lines.append(_of_temperature(objective, found, validation))
    if found.thresholds is not None:
        lines.append(_of_thresholds(objective, found, validation))
    if held_out is not None:
        lines.append(_of_coverage(objective, found, held_out))
    return lines


def _of_temperature(objective: Any, found: Calibration, rows: Outputs) -> str:
    """The temperature, and the log loss before and after; where it has one meaning, also the calibration error."""
    where = f"{len(rows.target)} validation rows"
    if found.temperature == 1:
        return f"temperature 1; no other is sure to lower the log loss, by {where}"
    changes: dict[str, list[str]] = {}
    for temperature in (1.0, found.temperature):
        outputs = rows.outputs.float() / temperature
        target = objective.closed_form_target(rows.target)
        likelihood = log_likelihood(outputs, target, objective.closed_form)
        values = {"log loss": -likelihood.mean()}
        error = objective.metrics().metrics
        if "calibration_error" in error:
            values["calibration error"] = error["calibration_error"](objective.predictions(outputs), rows.target.long())
        for name, value in values.items():
            changes.setdefault(name, []).append(f"{float(value):.3f}")
    shown = [f"{name} {' → '.join(values)}" for name, values in changes.items()]
    return f"temperature {found.temperature:.3g}; on {where} {', '.join(shown)}"


def _of_thresholds(objective: Any, found: Calibration, rows: Outputs) -> str:
    """The thresholds, and their metric before and after, of several labels the mean of those that it is defined for."""
    assert found.thresholds is not None
    probabilities = objective.of_labels(objective.predictions(rows.outputs / found.temperature)).double()
    labels = rows.target.reshape(len(probabilities), -1) > 0
    scores = []
    for index, threshold in enumerate(found.thresholds):
        both = torch.tensor([0.5, threshold], dtype=torch.float64)
        scores.append(threshold_scores(probabilities[:, index], labels[:, index], both, str(found.metric)))
    before, after = torch.stack(scores).nanmean(0).tolist()
    count = len(found.thresholds)
    names = objective.names[-count:] or [str(number) for number in range(objective.num_classes)][-count:]
    named = zip(names[:_MOST_SHOWN], found.thresholds, strict=False)
    shown = ", ".join(f"{name} {threshold:.3g}" for name, threshold in named)
    return f"thresholds {shown}; on {len(labels)} validation rows {found.metric} {before:.3f} → {after:.3f}"


def _of_coverage(objective: Any, found: Calibration, held_out: Outputs) -> str:
    """The coverage, and what sets or intervals are like on the rows that gave it."""
    objective.calibration = found
    try:
        predictions = objective.predictions(held_out.outputs / found.temperature)
        values = objective.coverage(predictions, held_out.target)
    finally:
        objective.calibration = None
    groups = "" if held_out.groups is None else f" of {len(torch.unique(held_out.groups))} groups, which count alike"
    means = {name.replace("_", " "): value.double().mean() for name, value in values.items() if name != "coverage"}
    [(what, mean)] = means.items()
    return f"coverage {found.coverage:g} from {len(held_out.target)} calibration rows{groups}; mean {what} {mean:.4g}"


def write(path: Path, found: Calibration) -> None:
    """Writes a calibration into a checkpoint, in which nothing else changes, or takes one out that is no longer."""
    record = {} if found == Calibration() else {CALIBRATION: found.plain()}
    saved, _ = read_checkpoint(path, tensors=False)
    if saved.get(CALIBRATION) == record.get(CALIBRATION):
        return
    with rewriting(path) as checkpoint:
        checkpoint[CHECKPOINT_KEY].pop(CALIBRATION, None)
        checkpoint[CHECKPOINT_KEY].update(record)
