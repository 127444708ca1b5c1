"""Metrics of a split, from torchmetrics states over all samples; undefined ones are left out and named."""

from collections.abc import Mapping
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics import classification, regression

from hybrid_lightning.errors import listing


class SampleCounts(torchmetrics.Metric):
    """How many samples there are, and how many each class has; without `classes` (regression) none of the latter."""

    full_state_update = False
    positives: Tensor
    total: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("positives", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, target: Any) -> None:
        """Counts predictions; and class indices `(B,)` or label indicators `(B, labels)`."""
        self.total += len(predictions)
        if self.classes and target.ndim == 2:
            self.positives += target.sum(0)
        elif self.classes:
            self.positives += torch.bincount(target, minlength=self.classes)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Samples per class `(classes,)` and their number."""
        return self.positives, self.total


class SplitMetrics(nn.Module):
    """The mean loss and the metrics of one split.

    Args:
        metrics: Name → metric, fed with predictions and targets.
        classes: Number of classes or labels, of which samples may lack some; 0 for regression.
    """

    def __init__(self, metrics: Mapping[str, torchmetrics.Metric], classes: int = 0) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(metrics)
        self.loss = torchmetrics.MeanMetric()
        self.counts = SampleCounts(classes)

    def _as_counted(self, target: Any) -> Any:
        """Class labels as int64: also bool, small integers, and indicators that are floats."""
        return target.long() if self.counts.classes else target

    def update(
        self,
        loss: Tensor,
        weight: Tensor | int,
        predictions: Tensor,
        target: Any,
    ) -> None:
        """Adds a batch; `weight` is what its loss was divided by, and a target may be None without metrics."""
        target = self._as_counted(target)
        self.loss.update(loss, weight)
        self.counts.update(predictions, target)
        for metric in self.metrics.values():
            metric.update(predictions, target)  # type: ignore[operator]

    def update_without_samples(self, predictions: Tensor, target: Any) -> None:
        """Adds nothing, but gives the states the shapes that they have on the ranks which count these samples."""
        target = self._as_counted(target)
        self.loss.update(0.0, 0)
        self.counts.update(predictions[:0], None if target is None else target[:0])
        for metric in self.metrics.values():
            assert isinstance(metric, torchmetrics.Metric)
            if metric.update_called:
                continue
            metric.update(predictions, target)
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
        positives, total = self.counts.compute()
        if total > 0:
            undefined = self._undefined(positives, total)
            values["loss"] = self.loss.compute()
            for name, metric in self.metrics.items():
                if name not in undefined:
                    values[name] = metric.compute()  # type: ignore[operator]
        # in inference mode it would make states that a fit, which follows a validation by hand, cannot update
        with torch.inference_mode(False):
            for metric in self.modules():
                if isinstance(metric, torchmetrics.Metric):
                    metric.reset()
        return values, undefined

    def _undefined(self, positives: Tensor, total: Tensor) -> dict[str, str]:
        """Name → reason of the metrics that these samples leave undefined."""
        if "r2" in self.metrics and total < 2:
            return {"r2": "it needs at least two samples"}
        # the area under a curve needs samples on both sides of the threshold
        constant = (positives == 0) | (positives == total)
        if "auroc" not in self.metrics or not bool(constant.any()):
            return {}
        classes = map(str, constant.nonzero().flatten().tolist())
        return {"auroc": f"class {listing(classes)} has no samples, or all of them"}


def classification_metrics(classes: int, multilabel: bool) -> SplitMetrics:
    """Accuracy, macro F1, AUROC and, where it has one meaning, calibration error; a binary target has two classes.

    Multilabel targets and predictions are `(B, labels)`; else targets are `(B,)`, predictions `(B, classes)`.
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
    return SplitMetrics(metrics, classes)


def regression_metrics() -> SplitMetrics:
    """Mean absolute error and root mean squared error over all values, and R² averaged over outputs."""
    return SplitMetrics(
        {
            "mae": regression.MeanAbsoluteError(),
            "rmse": regression.MeanSquaredError(squared=False),
            "r2": regression.R2Score(),
        }
    )
