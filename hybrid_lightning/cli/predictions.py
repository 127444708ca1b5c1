"""``predict``: a table with a row per sample in the order of the data, complete also if several ranks predict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from hybrid_lightning.cli.building import Select, Setup
from hybrid_lightning.cli.members import leave_out_decisions, mean_and_spread, refuse_other_names
from hybrid_lightning.cli.preparation import restoring
from hybrid_lightning.cli.tables import Columns, as_array, write_table
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.objective import output_names

_TABLE = "predictions.csv"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell begins with that a spreadsheet computes."""


def predict(
    setup: Setup,
    ckpt_path: list[str] | str | None = None,  # noqa: ARG001  the members have their paths
    output: str | None = None,
    row_numbers: bool = False,
    quote_formulas: bool = False,
    select: Select = "best",
) -> None:
    """Writes a table of predictions in the order of the data.

    Args:
        setup: The model and what it predicts.
        ckpt_path: best, last (of the newest run of this name) or a path. Several paths, folders of runs or a pattern
            in quotes, such as 'runs/x_fold*', are an ensemble: the table has the mean of what they predict, and std.
        output: The table to write, .csv or .parquet (extra 'data'); null: predictions.csv in the run's folder.
        row_numbers: Whether the table also has the samples' row numbers if the data name them by ids.
        quote_formulas: Whether ids, classes and names of columns that a spreadsheet would take for a formula, because
            they begin with =, +, - or @, get a ' before them.
        select: best is what the run has selected for its best checkpoint; joint is the joint network in any case.
    """
    trainer = setup.trainer
    members = [setup, *setup.others]
    if output is None:
        _refuse_earlier_table(trainer)
    of_members = [_predicted(member, select, is_one=len(members) == 1) for member in members]
    folder = trainer.log_dir or "."  # a collective call: the answer is broadcast
    if not trainer.is_global_zero:
        return
    predicted, spread = _together(members, of_members)
    path = Path(folder) / _TABLE if output is None else Path(output)
    table = prediction_table(predicted, setup.model, setup.data, row_numbers, spread)
    write_table(quoted(table) if quote_formulas else table, path)
    if setup.others:
        print(f"the mean of {len(members)} checkpoints: {listing([str(member.checkpoint) for member in members], 20)}")
    print(f"predictions: {path}")


def _refuse_earlier_table(trainer: Trainer) -> None:
    """Raises `ConfigError` where, without a logger, no new folder is made and a table of the same name is there."""
    path = Path(trainer.log_dir or ".") / _TABLE
    if not trainer.loggers and path.exists():
        raise ConfigError(
            f"{str(path)!r} is there already, and would be lost: without a logger there is no folder for each run. "
            f"Name another file.",
            "--output",
        )


def _predicted(member: Setup, select: Select, is_one: bool) -> "Predicted | None":
    """What one checkpoint predicts, on the first rank; None elsewhere."""
    model, trainer, path = member.model, member.trainer, member.checkpoint
    model.serves_selection = select == "best"
    # adds what each part contributes; to a mean of several, it is known only then
    model.explain = "without" if not is_one and type(model).predict_step is HybridTask.predict_step else True
    collected = CollectPredictions()
    trainer.callbacks.append(collected)  # type: ignore[attr-defined]
    with restoring(trainer, path):
        trainer.predict(model, datamodule=member.data, return_predictions=False, ckpt_path=path, weights_only=True)
    trainer.callbacks.remove(collected)  # type: ignore[attr-defined]
    predicted = collected.gathered()
    if predicted is not None:
        refuse_not_finite(predicted)
    return predicted


def _together(members: Sequence[Setup], of_members: Sequence[Any]) -> "tuple[Predicted, Tensor | None]":
    """The mean of what members predict, and their standard deviation; None of one member."""
    first = of_members[0]
    if len(members) == 1:
        return first, None
    names = [getattr(member.data, "target_names", None) for member in members]
    for member, own, predicted in zip(members, names, of_members, strict=True):
        refuse_other_names(str(member.checkpoint), own, str(members[0].checkpoint), names[0])
        if (
            not torch.equal(predicted.places, first.places)
            or predicted.contributions.keys() != first.contributions.keys()
        ):
            raise ConfigError(
                f"{str(member.checkpoint)!r} predicts {len(predicted.places)} samples from the parts "
                f"{listing(predicted.contributions)}, {str(members[0].checkpoint)!r} {len(first.places)} from "
                f"{listing(first.contributions)}. Give checkpoints of one model for the same rows.",
                "--ckpt_path",
            )
    leave_out_decisions([member.model.objective for member in members])
    model = members[0].model
    mean, spread = mean_and_spread([predicted.predictions for predicted in of_members])
    contributions = {}
    for part in first.contributions:
        of_part, _ = mean_and_spread([predicted.contributions[part] for predicted in of_members])
        is_without = model.explain == "without"
        contributions[part] = model.objective.contribution(mean, of_part) if is_without else of_part
    return first._replace(predictions=mean, contributions=contributions), spread


class Predicted(NamedTuple):
    """What was predicted for some samples."""

    places: Tensor  # in the data, (N,) int64
    predictions: Tensor  # as the task gives them, (N,) or (N, outputs)
    rows: Tensor | None  # the batches' own id, (N,) int64, if all have it
    contributions: dict[str, Tensor]  # part → (N,), or predictions without it; empty if the model gives none


class CollectPredictions(BasePredictionWriter):
    """Keeps the predictions of ``Trainer.predict`` with the places of their samples in the data."""

    def __init__(self) -> None:
        super().__init__("batch")
        self.batches: list[Predicted] = []
        self._count = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses to share samples unevenly among ranks that have to make equally many steps."""
        batch_sampler = getattr(trainer.predict_dataloaders, "batch_sampler", None)
        sampler = getattr(batch_sampler, "sampler", None)
        if not isinstance(trainer.strategy, ModelParallelStrategy) or not isinstance(
            sampler, UnrepeatedDistributedSampler
        ):
            return
        count: int = len(sampler.dataset)  # type: ignore[arg-type]
        if count % trainer.world_size:
            raise ConfigError(
                f"predict: {count} samples do not come out even on {trainer.world_size} devices, which have to make "
                f"equally many steps with sharded parameters. Use --trainer.strategy ddp, or --trainer.devices 1; or "
                f"let the predict loader have a DistributedSampler."
            )

    def write_on_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, prediction: Any, batch_indices: Any, batch: Any, *rest: Any
    ) -> None:
        """Keeps the predictions of a batch, on the CPU."""
        contributions = {}
        if isinstance(prediction, Mapping):
            contributions = {part: values.cpu() for part, values in prediction["contributions"].items()}
            prediction = prediction["predictions"]
        places = self._places(batch_indices, len(prediction), trainer.world_size)
        given = batch.get("id") if isinstance(batch, Mapping) else None
        rows = None
        if isinstance(given, Tensor) and given.shape == places.shape and not given.is_floating_point():
            rows = given.cpu()
        self.batches.append(Predicted(places, prediction.cpu(), rows, contributions))

    def _places(self, indices: Sequence[Any] | None, count: int, ranks: int) -> Tensor:
        """Indices into the dataset `(count,)`; of a stream, the order in which samples come."""
        start = self._count
        self._count += count
        if indices and all(isinstance(index, int | np.integer) for index in indices):
            if len(indices) != count:
                raise ConfigError(
                    f"data: a batch of {len(indices)} samples has {count} predictions, so they cannot be told apart. "
                    f"Let the loader's collation keep all samples."
                )
            return torch.tensor([int(index) for index in indices])
        if ranks > 1:
            raise ConfigError(
                "predict: these data do not give the places of their samples, which several devices need to put them "
                "in order. Set --trainer.devices 1, or give a DataLoader over a dataset with a length."
            )
        return torch.arange(start, start + count)

    def gathered(self) -> Predicted | None:
        """The predictions of all ranks, joined, on the first one; None elsewhere. Collective: call it on every rank."""
        batches = self.batches
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            is_first = torch.distributed.get_rank() == 0
            by_rank: list[Any] | None = [None] * torch.distributed.get_world_size() if is_first else None
            torch.distributed.gather_object(batches, by_rank)
            if by_rank is None:
                return None
            batches = []
            for of_rank in by_rank:
                batches += of_rank
        if not batches:
            raise ConfigError("predict: the data have no samples, so there is nothing to write.")
        return joined(batches)


def joined(batches: Sequence[Predicted]) -> Predicted:
    """Batches as one, in the order of the data, each sample once."""
    all_places, all_predictions, all_rows, all_contributions = zip(*batches, strict=True)
    places, order = torch.cat(all_places).sort(stable=True)
    # a sample that pads the share of a rank comes twice; the first one is kept
    is_first = torch.ones(len(places), dtype=torch.bool)
    is_first[1:] = places[1:] != places[:-1]
    order = order[is_first]
    rows = None
    if all(of_batch is not None for of_batch in all_rows):
        rows = torch.cat(all_rows)[order]
    contributions = {}
    for part in all_contributions[0]:
        contributions[part] = torch.cat([of_batch[part] for of_batch in all_contributions])[order]
    return Predicted(places[is_first], torch.cat(all_predictions)[order], rows, contributions)


def refuse_not_finite(predicted: Predicted) -> None:
    """Raises `ConfigError` with a count of the samples whose predictions or contributions are nan or infinite."""
    is_bad = torch.zeros(len(predicted.places), dtype=torch.bool)
    for values in (predicted.predictions, *predicted.contributions.values()):
        is_bad |= ~values.flatten(1).isfinite().all(1) if values.ndim > 1 else ~values.isfinite()
    if is_bad.any():
        rows = predicted.places if predicted.rows is None else predicted.rows
        shown = listing(map(str, rows[is_bad].tolist()), 5)
        raise ConfigError(
            f"predict: {int(is_bad.sum())} of {len(is_bad)} samples (rows {shown}) have predictions that are not "
            f"finite, so no table was written. Look at their inputs, and at the scale of the weights."
        )


def quoted(table: Columns) -> Columns:
    """A table in which no name and no text begins as a formula of a spreadsheet does."""
    found: Columns = {}
    for name, values in table.items():
        if not isinstance(values, np.ndarray) or values.dtype.kind in "OU":
            values = [_quoted(value) for value in values]
        found[_quoted(name)] = values
    return found


def _quoted(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def prediction_table(
    predicted: Predicted,
    task: HybridTask,
    data: Any,
    row_numbers: bool,
    spread: Tensor | None = None,
) -> Columns:
    """The columns of a table: ``id`` or ``row``, ``target`` where it is known, the task's, ``contribution_<part>``.

    `spread`, like the predictions, is ``std``, or ``std_<name>`` of several outputs.
    """
    ids = getattr(data, "predict_ids", None)
    columns: Columns = {}
    if ids is not None:
        last = int(predicted.places[-1])
        if last >= len(ids):
            raise ConfigError(
                f"data: predict_ids has {len(ids)} ids, but sample {last} was predicted (counted from 0). The "
                f"DataModule has to give an id per sample of its predict data."
            )
        columns["id"] = [ids[place] for place in predicted.places.tolist()]
    if ids is None or row_numbers:
        columns["row"] = predicted.places if predicted.rows is None else predicted.rows
    for name, values in (getattr(data, "predict_targets", None) or {}).items():
        columns[name] = [values[place] for place in predicted.places.tolist()]
    names = getattr(data, "target_names", None)
    known = None if names is None else list(names)
    columns |= task.objective.prediction_columns(predicted.predictions, known)
    if spread is not None and spread.ndim == 1:
        columns["std"] = spread
    elif spread is not None:
        for index, name in enumerate(output_names(known, spread.shape[1])):
            columns[f"std_{name}"] = spread[:, index]
    for part, values in predicted.contributions.items():
        columns[f"contribution_{part}"] = values
    return {name: as_array(values) for name, values in columns.items()}
