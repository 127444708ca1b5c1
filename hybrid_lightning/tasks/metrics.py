"""Metrics of a split, from torchmetrics states over all samples; undefined ones are left out and named."""

from collections.abc import Mapping

import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics import classification, regression

from hybrid_lightning.errors import listing


class TargetCounts(torchmetrics.Metric):
    """How many samples each class has, and how many there are in all.

    Args:
        classes: Number of classes or labels; a binary target counts as two classes.
    """

    full_state_update = False
    positives: Tensor
    total: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("positives", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, target: Tensor) -> None:
        """Counts class indices `(B,)` or label indicators `(B, labels)`."""
        self.total += len(target)
        self.positives += target.long().sum(0) if target.ndim == 2 else torch.bincount(target, minlength=self.classes)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Samples per class `(classes,)` and their number."""
        return self.positives, self.total


class SplitMetrics(nn.Module):
    """The mean loss and the metrics of one split.

    Args:
        metrics: Name → metric, fed with predictions and targets.
        counts: Counts targets, to tell which metrics are defined; None for regression.
    """

    def __init__(self, metrics: Mapping[str, torchmetrics.Metric], counts: TargetCounts | None = None) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(metrics)
        self.loss = torchmetrics.MeanMetric()
        self.counts = counts
        self.samples = torchmetrics.SumMetric()

    def update(self, loss: Tensor, weight: Tensor | int, predictions: Tensor, target: Tensor) -> None:
        """Adds a batch; `weight` is what its loss was divided by."""
        self.loss.update(loss, weight)
        self.samples.update(len(target))
        if self.counts is not None:
            target = target.long()  # also bool, small integers, and indicators that are floats
            self.counts.update(target)
        for metric in self.metrics.values():
            metric.update(predictions, target)  # type: ignore[operator]

    def update_without_samples(self, predictions: Tensor, target: Tensor) -> None:
        """Takes note of a batch none of whose samples count; a rank that saw no other has states that can be joined.

        Args:
            predictions: Of samples that another rank counts.
            target: Of the same.
        """
        self.loss.update(0.0, 0)
        self.samples.update(0)
        if self.counts is not None:
            self.counts.update(target[:0].long())
        for metric in self.metrics.values():
            assert isinstance(metric, torchmetrics.Metric)
            if metric.update_called:
                continue
            metric.update(predictions, target if self.counts is None else target.long())
            for name, default in metric._defaults.items():
                state = getattr(metric, name)
                if isinstance(default, list):
                    setattr(metric, name, [entry[:0] for entry in state])
                else:
                    setattr(metric, name, default.to(state).expand_as(state).clone())

    def compute(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Values of the defined metrics, and name → reason of the undefined ones; starts anew afterwards.

        Without samples there are neither.
        """
        values: dict[str, Tensor] = {}
        undefined: dict[str, str] = {}
        if self.samples.compute() > 0:
            undefined, values = self._undefined(), {"loss": self.loss.compute()}
            defined = {name: metric for name, metric in self.metrics.items() if name not in undefined}
            values |= {name: metric.compute() for name, metric in defined.items()}  # type: ignore[operator]
        for metric in self.modules():
            if isinstance(metric, torchmetrics.Metric):
                metric.reset()
        return values, undefined

    def _undefined(self) -> dict[str, str]:
        if self.counts is None:
            few = {"r2": "it needs at least two samples"} if self.samples.compute() < 2 else {}
            return {name: reason for name, reason in few.items() if name in self.metrics}
        positives, total = self.counts.compute()
        absent = torch.nonzero((positives == 0) | (positives == total)).flatten().tolist()
        if not absent or "auroc" not in self.metrics:
            return {}
        return {"auroc": f"class {listing(map(str, absent))} has no samples, or all of them"}


def classification_metrics(classes: int, multilabel: bool) -> SplitMetrics:
    """Accuracy, macro F1, AUROC and calibration error (not for multilabel targets, where it has no one meaning).

    Args:
        classes: Number of classes or labels. A binary target is one of two classes.
        multilabel: Whether targets and predictions are `(B, labels)`; else targets `(B,)`, predictions `(B, classes)`.
    """
    metrics: dict[str, torchmetrics.Metric]
    if multilabel:
        metrics = {
            "accuracy": classification.MultilabelAccuracy(classes, average="micro"),
            "macro_f1": classification.MultilabelF1Score(classes, average="macro"),
            "auroc": classification.MultilabelAUROC(classes, average="macro"),
        }
    else:
        metrics = {
            "accuracy": classification.MulticlassAccuracy(classes, average="micro"),
            "macro_f1": classification.MulticlassF1Score(classes, average="macro"),
            "auroc": classification.MulticlassAUROC(classes, average="macro"),
            "calibration_error": classification.MulticlassCalibrationError(classes),
        }
    return SplitMetrics(metrics, TargetCounts(classes))


def regression_metrics() -> SplitMetrics:
    """Mean absolute error and root mean squared error over all values, and R² averaged over outputs."""
    return SplitMetrics(
        {
            "mae": regression.MeanAbsoluteError(),
            "rmse": regression.MeanSquaredError(squared=False),
            "r2": regression.R2Score(),
        }
    )
