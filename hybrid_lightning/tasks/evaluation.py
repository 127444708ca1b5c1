"""What tasks do with outputs: validation, test, prediction; repeated samples; schedulers that follow a metric."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.network.hybrid_network import HybridNetwork, Outputs
from hybrid_lightning.optim.lr_schedules import GroupScheduler
from hybrid_lightning.tasks.metrics import SplitMetrics


def output_names(names: Sequence[str] | None, count: int) -> list[str]:
    """The names that the data give the outputs, or their numbers.

    Raises:
        ConfigError: If there are more or fewer names than outputs.
    """
    if names is not None and len(names) != count:
        raise ConfigError(
            f"data: target_names has {len(names)} names ({listing(map(str, names))}), but the model has {count} "
            f"outputs or classes. Use the data, or the statistics, that it was trained with."
        )
    return [str(name) for name in (range(count) if names is None else names)]


class Evaluation(pl.LightningModule, ABC):
    """Steps of a LightningModule that evaluate; what outputs mean is left to subclasses.

    Logged after each validation or test: ``val/loss`` or ``test/loss`` and the metrics of `make_metrics`; the same of
    each part's own head, with ``/<part>`` after it.
    """

    explain: bool
    """Whether `predict_step` also says what each part contributes."""

    def prepare_metrics(self) -> None:
        """Makes the metrics of the model; part of the construction."""
        self.explain = False
        self.split_metrics = nn.ModuleDict({"val": self.make_metrics(), "test": self.make_metrics()})
        self.part_metrics = nn.ModuleDict({"val": nn.ModuleDict(), "test": nn.ModuleDict()})

    def measure_parts(self, parts: Iterable[str]) -> None:
        """Makes metrics for the heads of these parts, and for no others."""
        parts = list(parts)
        for split in ("val", "test"):
            self.part_metrics[split] = nn.ModuleDict({part: self.make_metrics() for part in parts})

    @abstractmethod
    def built(self) -> HybridNetwork:
        """The network."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number of outputs of the head."""

    @abstractmethod
    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch, a scalar, from the head's outputs `(B, outputs)`."""

    def loss_weight(self, target: Tensor) -> Tensor | int:
        """What `loss` divides by, so that the loss of a split is exact: the number of samples, unless overridden."""
        return len(target)

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What metrics and users see, from the head's outputs."""

    def prediction_columns(self, predictions: Tensor, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Predictions as columns of a table: name → a tensor or list with a value per sample.

        Args:
            predictions: `(N,)` or `(N, outputs)`.
            names: Of the outputs; None numbers them.

        Raises:
            ConfigError: If there are more or fewer names than outputs.
        """
        if predictions.ndim == 1:
            return {"prediction": predictions}
        columns = predictions.flatten(1)
        return {f"prediction_{name}": columns[:, i] for i, name in enumerate(output_names(names, columns.shape[1]))}

    def program_facts(self) -> dict[str, Any]:
        """What `predictions` needs beside the outputs of an exported program, as plain data."""
        return {}

    def use_program_facts(self, facts: Mapping[str, Any]) -> None:
        """Takes `program_facts` from the file of an exported program."""

    @abstractmethod
    def make_metrics(self) -> SplitMetrics:
        """New metrics for one split."""

    def _with_parts(self, batch: Mapping[str, Any]) -> Outputs:
        """The outputs, and those of the parts' own heads, if there are any."""
        network = self.built()
        return network.forward_parts(batch) if "part_heads" in network.parts else Outputs(self(batch), {}, {})

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        self._evaluate(batch, batch_idx, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Adds a batch to the test metrics."""
        self._evaluate(batch, batch_idx, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        """Predictions for a batch, see `predictions`; with `explain` a dict of them and of ``contributions``."""
        if not self.explain:
            return self.predictions(self(batch))
        outputs, _, without = self.built().forward_parts(batch, contributions=True)
        predictions = self.predictions(outputs)
        contributions = {
            part: self.contribution(predictions, self.predictions(other)) for part, other in without.items()
        }
        return {"predictions": predictions, "contributions": contributions}

    def contribution(self, predictions: Tensor, without: Tensor) -> Tensor:
        """What a part adds to each prediction, `(B,)`: what changes if it is taken for absent.

        For several outputs it is the mean absolute change.

        Args:
            predictions: From `predictions`, with all parts.
            without: The same if the samples lacked the part.
        """
        difference = predictions - without
        return difference if difference.ndim == 1 else difference.abs().mean(1)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._log_metrics("test")

    def _evaluate(self, batch: dict[str, Any], batch_idx: int, split: str) -> None:
        outputs, alone, _ = self._with_parts(batch)
        target = batch["target"]
        loaders = self.trainer.val_dataloaders if split == "val" else self.trainer.test_dataloaders
        own = own_samples(loaders, batch_idx, len(target))
        self._measure(self.metrics_of(split), outputs, target, slice(own))
        for part, (of_part, present) in alone.items():
            there = slice(own) if present is None else present & (torch.arange(len(target), device=target.device) < own)
            self._measure(self.metrics_of(split, part), of_part, target, there)

    def _measure(self, metrics: SplitMetrics, outputs: Tensor, target: Tensor, counted: Tensor | slice) -> None:
        """Adds the samples that are counted; all have gone through the network, on every rank."""
        chosen, labels = outputs[counted], target[counted]
        if len(labels):
            metrics.update(self.loss(chosen, labels), self.loss_weight(labels), self.predictions(chosen), labels)
        else:
            metrics.update_without_samples(self.predictions(outputs), target)

    def metrics_of(self, split: str, part: str | None = None) -> SplitMetrics:
        """The metrics of ``val`` or ``test``, of the model or of a part's own head."""
        metrics = self.split_metrics[split] if part is None else self.part_metrics[split][part]  # type: ignore[index]
        assert isinstance(metrics, SplitMetrics)
        return metrics

    def _log_metrics(self, split: str) -> None:
        values, undefined = self.metrics_of(split).compute()
        if not self.trainer.sanity_checking:
            for name, reason in undefined.items():
                rank_zero_info(f"{split}/{name} is not logged, because it is undefined: {reason}.")
        shown = list(values)[:2]  # the loss and the first metric; more would not fit into a line
        for name, value in values.items():
            self.log(f"{split}/{name}", value, sync_dist=True, prog_bar=name in shown)
        for part, _ in self.part_metrics[split].named_children():
            of_part, _ = self.metrics_of(split, part).compute()
            for name, value in of_part.items():
                self.log(f"{split}/{name}/{part}", value, sync_dist=True)
        if split == "val" and self.trainer.state.fn == "fit":
            step_by_metric(self.trainer, values, undefined)


_KNOWN_ORDERS = (DistributedSampler.__iter__, DistributedSamplerWrapper.__iter__)


def own_samples(loaders: Any, batch_index: int, size: int) -> int:
    """How many samples of a batch, from its first on, are no repetitions; those after them are.

    torch's `DistributedSampler` deals a list of samples to the ranks, one by one. If they do not come out even, it puts
    the first samples at the end of the list once more, so repetitions are the last samples of a rank. A loader that
    does not take its batches from such a sampler in order has none that could be told: all its samples count.

    Args:
        loaders: A loader, or a list of one, as the Trainer uses it.
        batch_index: Number of the batch, from 0.
        size: Its number of samples.
    """
    loader = loaders[0] if isinstance(loaders, list | tuple) and len(loaders) == 1 else loaders
    if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
        return size
    batches = loader.batch_sampler
    sampler = batches.sampler
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or type(sampler).__iter__ not in _KNOWN_ORDERS:
        return size
    count: int = len(sampler.dataset)  # type: ignore[arg-type]
    own = len(range(sampler.rank, count, sampler.num_replicas)) - batch_index * batches.batch_size
    return min(max(own, 0), size)


def step_by_metric(trainer: pl.Trainer, values: Mapping[str, Any], undefined: Mapping[str, str]) -> None:
    """Steps `ReduceLROnPlateau` after a validation; Lightning would after the checkpoint, and not after a restart.

    Args:
        trainer: Its scheduler is stepped if it waits for a metric, and only checked in Lightning's sanity check.
        values: Metric → value of this validation, without ``val/``.
        undefined: Metrics that could not be computed this time; for one of these nothing happens.

    Raises:
        ConfigError: If validation does not measure the metric.
    """
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.ready
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, GroupScheduler) and config.scheduler.by_metric:
            name = str(config.monitor).removeprefix("val/")
            if name not in values and name not in undefined:
                raise unknown("model.scheduler.monitor", "metric", f"val/{name}", [f"val/{v}" for v in values])
            if name in values and not trainer.sanity_checking and config.scheduler.measured_after != batches:
                config.scheduler.step(values[name])
                config.scheduler.measured_after = batches
