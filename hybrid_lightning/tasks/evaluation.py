"""Evaluation: the metrics of each split, over each sample once."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from hybrid_lightning.errors import ConfigError, listing, unknown, writing
from hybrid_lightning.files import write_csv
from hybrid_lightning.network.batch import Batch
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import PREFIX
from hybrid_lightning.optim.lr_schedules import GroupScheduler
from hybrid_lightning.tasks.metrics import COVERAGE, MeanOf, SplitMetrics
from hybrid_lightning.tasks.objective import Objective

_SPLITS = ("val", "test")


class Evaluator(nn.Module):
    """The metrics of ``val`` and ``test``."""

    def __init__(self, make_metrics: Callable[[], SplitMetrics]) -> None:
        super().__init__()
        self.splits = nn.ModuleDict({split: make_metrics() for split in _SPLITS})

    def follow(self, objective: Objective) -> None:
        """Lets the model's metrics decide by an objective's thresholds, and measure its coverage on test rows."""
        calibration = objective.calibration
        for split in _SPLITS:
            has_thresholds = calibration is not None and calibration.thresholds is not None
            self.metrics_of(split).decide = objective.decisions if has_thresholds else None
        measured = self.metrics_of("test").metrics
        for name in COVERAGE:
            if name in measured:
                del measured[name]
        if calibration is not None and calibration.quantiles is not None:
            size = "set_size" if objective.closed_form != "values" else "interval_width"
            for name in ("coverage", size):
                measured[name] = MeanOf(partial(_value_of, objective, name))

    def metrics_of(self, name: str) -> SplitMetrics:
        """The metrics of a split."""
        metrics = self.splits[name]
        assert isinstance(metrics, SplitMetrics)
        return metrics

    def compute(self, split: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Values by metric, and metric → reason of the undefined ones; all start anew afterwards.

        Collective: call it on every rank.
        """
        return self.metrics_of(split).compute()


def _value_of(objective: Objective, name: str, predictions: Tensor, target: Tensor) -> Tensor:
    return objective.coverage(predictions, target)[name]


def log_metrics(task: Any, split: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Computes and logs the metrics of a split, and writes its tables; for what it gives see `Evaluator.compute`.

    A validation of a run writes no tables: `BestCheckpoint` does, of the best.
    """
    trainer = task.trainer
    values, undefined = task.evaluator.compute(split)
    if not trainer.sanity_checking:
        for name, reason in undefined.items():
            rank_zero_info(f"{split}/{name} is not logged, because it is undefined: {reason}.")
    shown = ("loss", task.objective.main_metric)  # more would not fit into a line
    for name, value in values.items():
        task.log(f"{split}/{name}", value, sync_dist=True, prog_bar=name in shown)
    if trainer.state.fn != "fit":
        write_tables(trainer, task, split)
    return values, undefined


def write_tables(trainer: pl.Trainer, task: Any, split: str) -> None:
    """Writes each table that was computed last for a split, such as ``val_confusion_matrix.csv``, beside the logs."""
    metrics: SplitMetrics = task.evaluator.metrics_of(split)
    if not metrics.tables or not trainer.loggers:
        return
    folder = trainer.log_dir  # collective: read on every rank
    if not trainer.is_global_zero or not folder:
        return
    known = task.objective.names
    for key, value in metrics.tables.items():
        names = known if len(known) == len(value) else [str(number) for number in range(len(value))]
        header, *rows = metrics.chosen[key].rows(value, names, metrics.rows)
        path = Path(folder) / f"{split}_{key}.csv"
        with writing(path, "Make room or mend the cause."):
            write_csv(path, header, rows)


class RunningLoss:
    """The mean training loss since it was last taken; it stays on the device, so that no step waits for it."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._count = 0

    def add(self, loss: Tensor) -> None:
        """Adds the loss of a batch."""
        value = loss.detach()
        self._sum = value if self._sum is None else self._sum + value
        self._count += 1

    def take(self) -> Tensor | None:
        """The mean, and starts anew; None without a batch."""
        mean = None if self._sum is None else self._sum / self._count
        self._sum, self._count = None, 0
        return mean


_KNOWN_ORDERS = (DistributedSampler.__iter__, DistributedSamplerWrapper.__iter__)


def own_samples(loaders: Any, batch_index: int, size: int) -> int:
    """Number of leading samples of a batch, of `size`, that are not padding of `DistributedSampler`.

    torch's sampler deals a list of samples to the ranks, one by one. If they do not come out even, it puts the first
    samples at the end of the list once more, so padding is at the end of a rank's samples. With any other sampler or
    order, padding cannot be told, and all samples count.
    """
    loader = loaders[0] if isinstance(loaders, list | tuple) and len(loaders) == 1 else loaders
    if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
        return size
    batches = loader.batch_sampler
    sampler = batches.sampler
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or type(sampler).__iter__ not in _KNOWN_ORDERS:
        return size
    count: int = len(sampler.dataset)  # type: ignore[arg-type]
    of_rank = len(range(sampler.rank, count, sampler.num_replicas))
    own = of_rank - batch_index * batches.batch_size
    return min(max(own, 0), size)


def refuse_several(loaders: Any, split: str) -> None:
    """Raises `ConfigError` if a split has several loaders: its metrics are of all its samples together."""
    if isinstance(loaders, list | tuple | Mapping) and len(loaders) > 1:
        raise ConfigError(
            f"there are {len(loaders)} {split} loaders, and the metrics are those of one. Join the data with "
            f"torch.utils.data.ConcatDataset; or call trainer.validate or trainer.test once for each.",
            "data",
        )


def step_by_metric(trainer: pl.Trainer, values: Mapping[str, Any], undefined: Mapping[str, str]) -> None:
    """Steps `ReduceLROnPlateau` after a validation; Lightning would after the checkpoint, and not after a restart.

    `values` are by metric, without ``val/``; for one that is undefined nothing happens, one of neither is an error.
    """
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if not isinstance(scheduler, GroupScheduler) or not scheduler.by_metric:
            continue
        name = str(config.monitor).removeprefix("val/")
        if name not in values and name not in undefined:
            raise unknown("model.scheduler.monitor", "metric", f"val/{name}", [f"val/{known}" for known in values])
        # a restored fit may repeat the validation that it was saved in
        is_new = scheduler.measured_after != batches
        if name in values and is_new and not trainer.sanity_checking:
            scheduler.step(values[name])
            scheduler.measured_after = batches


def refuse_empty_samples(network: HybridNetwork, batch: Batch) -> None:
    """Raises `ConfigError` if a sample has nothing that a part reads."""
    if not any(key.startswith(PREFIX) for key in batch):
        return
    present = network.presence(batch)
    if not all(name in present for name in network.feeding):
        return  # a part that is not there is present in all samples
    is_empty = ~torch.stack([present[name] for name in network.feeding]).any(0)
    if not bool(is_empty.any()):
        return
    ids = batch.get("id")
    if isinstance(ids, Tensor):
        what, found = "id", ids[is_empty]
    else:
        what, found = "position in the batch", is_empty.nonzero().flatten()
    raise ConfigError(
        f"samples with nothing that a part reads ({what}): {listing(map(str, found.tolist()), 5)}. A prediction of "
        f"them would be a guess. Remove these samples, or give them one of the inputs.",
        "data",
    )
