"""Tables of predictions: a row per sample in the order of the data, complete also if several ranks predict."""

import csv
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import whole_file
from hybrid_lightning.tasks import HybridTask

FORMATS = (".csv", ".parquet")
Columns = dict[str, Any]
"""Name → a value per row: an array or a list."""


class Predicted(NamedTuple):
    """What was predicted for some samples.

    Args:
        places: Each sample's place in the data, `(N,)` int64.
        predictions: As the task gives them, `(N,)` or `(N, outputs)`.
        rows: The batches' own ``id``, `(N,)` int64, if all have it.
        contributions: Part → its contribution to each prediction, `(N,)`; empty if the model gives none.
    """

    places: Tensor
    predictions: Tensor
    rows: Tensor | None
    contributions: dict[str, Tensor]


class CollectPredictions(BasePredictionWriter):
    """Keeps the predictions of ``Trainer.predict`` with the places of their samples in the data."""

    def __init__(self) -> None:
        super().__init__("batch")
        self.batches: list[Predicted] = []
        self._count = 0

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuses to share samples unevenly among ranks that have to make equally many steps."""
        if trainer.world_size == 1 or not isinstance(trainer.strategy, ModelParallelStrategy):
            return
        sampler = getattr(getattr(trainer.predict_dataloaders, "batch_sampler", None), "sampler", None)
        if not isinstance(sampler, UnrepeatedDistributedSampler):
            return
        count: int = len(sampler.dataset)  # type: ignore[arg-type]
        if count % trainer.world_size:
            raise ConfigError(
                f"predict: {count} samples do not come out even on {trainer.world_size} devices, which have to make "
                f"equally many steps with sharded parameters. Use --trainer.strategy ddp, or --trainer.devices 1; or "
                f"let the predict loader have a DistributedSampler."
            )

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Keeps the predictions of a batch, on the CPU."""
        parts: Mapping[str, Tensor] = {}
        if isinstance(prediction, Mapping):
            prediction, parts = prediction["predictions"], prediction["contributions"]
        places = self._places(batch_indices, len(prediction), trainer.world_size)
        own = batch.get("id") if isinstance(batch, Mapping) else None
        if not isinstance(own, Tensor) or own.shape != places.shape or own.is_floating_point():
            own = None
        rows = None if own is None else own.cpu()
        contributions = {part: values.cpu() for part, values in parts.items()}
        self.batches.append(Predicted(places, prediction.cpu(), rows, contributions))

    def _places(self, indices: Sequence[Any] | None, count: int, ranks: int) -> Tensor:
        """The samples' places: what their loader asked the dataset for, or else the order in which they come."""
        start, self._count = self._count, self._count + count
        if indices and all(isinstance(index, int | np.integer) for index in indices):
            if len(indices) != count:
                raise ConfigError(
                    f"data: a batch of {len(indices)} samples has {count} predictions, so they cannot be told apart. "
                    f"Let the loader's collation keep all samples."
                )
            return torch.as_tensor([int(index) for index in indices])
        if ranks > 1:
            raise ConfigError(
                "predict: these data do not tell the places of their samples, which several devices need to put them "
                "in order. Set --trainer.devices 1, or give a DataLoader over a dataset with a length."
            )
        return torch.arange(start, start + count)

    def gathered(self) -> Predicted | None:
        """The predictions of all ranks on the first one, in the order of the data, each sample once; None elsewhere.

        Raises:
            ConfigError: If there are none.
        """
        batches = self.batches
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            first = torch.distributed.get_rank() == 0
            of_ranks: list[Any] | None = [None] * torch.distributed.get_world_size() if first else None
            torch.distributed.gather_object(batches, of_ranks)
            if of_ranks is None:
                return None
            batches = [batch for of_rank in of_ranks for batch in of_rank]
        if not batches:
            raise ConfigError("predict: the data have no samples, so there is nothing to write.")
        return joined(batches)


def joined(batches: Sequence[Predicted]) -> Predicted:
    """Batches as one, in the order of the data, each sample once."""
    places = torch.cat([batch.places for batch in batches])
    ordered, order = places.sort(stable=True)
    order = order[torch.cat([torch.tensor([True]), ordered[1:] != ordered[:-1]])]
    rows = [batch.rows for batch in batches if batch.rows is not None]
    return Predicted(
        places[order],
        torch.cat([batch.predictions for batch in batches])[order],
        torch.cat(rows)[order] if len(rows) == len(batches) else None,
        {part: torch.cat([b.contributions[part] for b in batches])[order] for part in batches[0].contributions},
    )


def prediction_table(predicted: Predicted, task: HybridTask, data: Any, row_numbers: bool = False) -> Columns:
    """The columns of a table of predictions.

    Args:
        predicted: In the order of the data.
        task: Says what predictions mean.
        data: A DataModule; if it has them, its ``target_names`` name classes or outputs, and its ``predict_ids`` the
            samples.
        row_numbers: Whether ``row`` stands beside ``id``.

    Returns:
        ``id`` (without ids, ``row``: the batches' own numbers, or places in the data); then what the task gives, such
        as ``prediction`` and ``probability_<class>``; then ``contribution_<part>``.

    Raises:
        ConfigError: If the data name other classes or samples than there are.
    """
    ids = getattr(data, "predict_ids", None)
    columns: Columns = {}
    if ids is not None:
        if int(predicted.places[-1]) >= len(ids):
            raise ConfigError(
                f"data: predict_ids has {len(ids)} ids, but sample {int(predicted.places[-1])} was predicted (counted "
                f"from 0). The DataModule has to give an id per sample of its predict data."
            )
        columns["id"] = [ids[place] for place in predicted.places.tolist()]
    if ids is None or row_numbers:
        columns["row"] = as_array(predicted.places if predicted.rows is None else predicted.rows)
    names = getattr(data, "target_names", None)
    given = task.objective.prediction_columns(predicted.predictions, None if names is None else list(names))
    columns |= {name: as_array(values) for name, values in given.items()}
    return columns | {f"contribution_{part}": as_array(values) for part, values in predicted.contributions.items()}


def as_array(values: Any) -> Any:
    """A tensor as an array, in a precision that numpy has; anything else as it is."""
    if not isinstance(values, Tensor):
        return values
    exact = values.dtype in (torch.float32, torch.float64) or not values.is_floating_point()
    return (values if exact else values.float()).numpy()


def check_output(path: str, where: str = "output") -> None:
    """Raises `ConfigError` unless a table can be written under this name."""
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise ConfigError(f"{where}: {path!r} ends in neither {FORMATS[0]} nor {FORMATS[1]}, the formats of tables.")
    if suffix == ".parquet" and not find_spec("pyarrow"):
        raise ConfigError(
            f"{where}: Parquet is written with pyarrow, which is missing. Install it with: "
            f"pip install 'hybrid_lightning[data]'; or write a .csv file."
        )


def write_table(columns: Columns, path: str | Path) -> None:
    """Writes columns as CSV or Parquet, by the suffix; the file appears whole or not at all.

    Raises:
        ConfigError: If the file cannot be written.
    """
    try:
        with whole_file(path) as temporary:
            if Path(path).suffix == ".parquet":
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.table(columns), temporary)
            else:
                _write_csv(columns, temporary)
    except OSError as error:
        raise ConfigError(f"output: {str(path)!r} cannot be written: {error.strerror or error}.") from error


def _write_csv(columns: Columns, path: Path) -> None:
    # as text numpy gives the shortest number that reads back as the same
    texts = [values.astype(str) if isinstance(values, np.ndarray) else values for values in columns.values()]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*texts, strict=True))
