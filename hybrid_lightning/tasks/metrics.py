"""Metrics of a split, from torchmetrics states over all samples; undefined ones are left out and named."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import classification, regression
from torchmetrics.utilities import dim_zero_cat

from hybrid_lightning.errors import listing
from hybrid_lightning.probe.ranking import mean_over_classes
from hybrid_lightning.tasks.chosen_metrics import ChosenMetric, computed

COVERAGE = ("coverage", "set_size", "interval_width")
"""Metrics of test rows under a `Calibration` with a coverage."""
_DECIDING = (
    classification.MulticlassStatScores,
    classification.MulticlassConfusionMatrix,
    classification.MulticlassExactMatch,
    classification.MultilabelStatScores,
    classification.MultilabelConfusionMatrix,
    classification.MultilabelExactMatch,
)
"""The metrics, and those made of them, that count decisions; the others read probabilities."""


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
        chosen: Further metrics, which a config names.
    """

    def __init__(
        self,
        metrics: Mapping[str, torchmetrics.Metric],
        classes: int = 0,
        chosen: Sequence[ChosenMetric] = (),
    ) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict(metrics)
        self.metrics.update({metric.key: metric.make() for metric in chosen})
        self.chosen = {metric.key: metric for metric in chosen}
        self.loss = torchmetrics.MeanMetric()
        self.counts = SampleCounts(classes)
        self.decide: Callable[[Tensor], Tensor] | None = None
        """What makes decisions of predictions, where thresholds are set; None: metrics decide at 0.5."""
        self.kept: list[tuple[Tensor, Any]] | None = None
        """Predictions and targets of each batch, on the CPU, from when somebody puts a list here."""
        self.samples = 0
        """How many samples the last values were of."""
        self.tables: dict[str, Tensor] = {}
        """Name → the last value of each metric that is a table."""
        self.rows: Tensor | None = None
        """How many of the samples each class had, `(classes,)`; None for regression."""

    @property
    def logged(self) -> list[str]:
        """The names of the metrics that are numbers."""
        tables = [key for key, metric in self.chosen.items() if metric.is_table]
        return [name for name in self.metrics if name not in tables]

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
        if self.kept is not None and isinstance(target, Tensor):
            self.kept.append((predictions.cpu(), target.cpu()))
        self.loss.update(loss, weight)
        self.counts.update(predictions, target)
        for metric in self.metrics.values():
            metric.update(self._given(metric, predictions), target)  # type: ignore[operator]

    def _given(self, metric: nn.Module, predictions: Tensor) -> Tensor:
        """Decisions for a metric that counts these, unless it has a threshold of its own; else the predictions."""
        is_open = getattr(metric, "threshold", 0.5) == 0.5 and getattr(metric, "top_k", 1) == 1
        if self.decide is None or not is_open or not isinstance(metric, _DECIDING):
            return predictions
        return self.decide(predictions)

    def update_without_samples(self, predictions: Tensor, target: Any) -> None:
        """Adds nothing, but gives the states the shapes that they have on the ranks which count these samples."""
        target = self._as_counted(target)
        self.loss.update(0.0, 0)
        self.counts.update(predictions[:0], None if target is None else target[:0])
        for metric in self.metrics.values():
            assert isinstance(metric, torchmetrics.Metric)
            if metric.update_called:
                continue
            metric.update(self._given(metric, predictions), target)
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
        self.samples = int(total)
        self.tables = {}
        self.rows = positives.clone() if self.counts.classes else None
        if total > 0:
            undefined = self._undefined(positives, total)
            values["loss"] = self.loss.compute()
            for name in self.logged:
                if name not in undefined and name not in self.chosen:
                    values[name] = self.metrics[name].compute()  # type: ignore[operator]
            undefined |= self._compute_chosen(values)
        # in inference mode it would make states that a run, which follows a validation by hand, cannot update
        with torch.inference_mode(False):
            for metric in self.modules():
                if isinstance(metric, torchmetrics.Metric):
                    metric.reset()
        return values, undefined

    def error(self, name: str, value: float) -> float:
        """Roughly one standard error of a share, 0 to 1, over the samples that were counted last; 0 of other metrics.

        That of an accuracy p of n samples is the root of p (1 - p) / n; that of an average precision the same with the
        number of positives as n (Boyd et al. 2013, doi:10.1007/978-3-642-40994-3_29), of two classes the rarer one's.
        """
        count = self.samples if name == "accuracy" else 0
        if name == "average_precision" and self.rows is not None:
            count = int(self.rows.min() if len(self.rows) == 2 else self.rows.sum())
        return math.sqrt(max(value * (1 - value), 0.0) / count) if count else 0.0

    def _compute_chosen(self, values: dict[str, Tensor]) -> dict[str, str]:
        """Adds the values of the metrics that a config names; name → reason of those that are undefined."""
        undefined = {}
        for name, chosen in self.chosen.items():
            metric = self.metrics[name]
            assert isinstance(metric, torchmetrics.Metric)
            value = chosen.read(computed(metric))
            if chosen.is_table:
                self.tables[name] = value
            elif chosen.index is not None and self.rows is not None and not self.rows[chosen.index]:
                undefined[name] = f"no sample is of the class {chosen.of_class!r}"
            elif value.isnan():
                undefined[name] = "it is not a number on these samples"
            else:
                values[name] = value
        return undefined

    def _undefined(self, positives: Tensor, total: Tensor) -> dict[str, str]:
        """Name → reason of the metrics that these samples leave undefined."""
        found = {}
        if "r2" in self.metrics and total < 2:
            found["r2"] = "it needs at least two samples"
        if "average_precision" in self.metrics and not bool(positives.any()):
            found["average_precision"] = "no sample has any of the labels"
        # the area under a curve needs samples on both sides of the threshold
        constant = (positives == 0) | (positives == total)
        if "auroc" in self.metrics and bool(constant.any()):
            classes = map(str, constant.nonzero().flatten().tolist())
            found["auroc"] = f"class {listing(classes)} has no samples, or all of them"
        return found


class MeanOf(torchmetrics.MeanMetric):
    """The mean over samples of what a function gives for predictions and targets, `(B,)`."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def update(self, predictions: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Adds the values of a batch."""
        super().update(self.function(predictions, target).float())


class MeanAveragePrecision(torchmetrics.Metric):
    """The mean of the average precision over the classes or labels that some sample has.

    Predictions are `(B, classes)`, targets `(B,)` classes or `(B, classes)` of 0 and 1.
    """

    higher_is_better = True
    full_state_update = False
    predictions: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predictions", [], dist_reduce_fx="cat")
        self.add_state("targets", [], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, target: Tensor) -> None:
        """Keeps the samples."""
        self.predictions.append(predictions.float())
        self.targets.append(target if target.ndim == 2 else functional.one_hot(target, predictions.shape[1]))

    def compute(self) -> Tensor:
        """The mean; nan if no sample has any of the labels."""
        scores = dim_zero_cat(self.predictions)
        once = torch.ones(1, len(scores), dtype=torch.float64, device=scores.device)
        return mean_over_classes(scores, dim_zero_cat(self.targets), once)[0].float()


def classification_metrics(
    classes: int,
    multilabel: bool,
    chosen: Sequence[ChosenMetric] = (),
) -> SplitMetrics:
    """Accuracy, macro F1, AUROC and, where it has one meaning, calibration error; a binary target has two classes.

    Of two classes, and of labels, also the mean average precision. Multilabel targets and predictions are
    `(B, labels)`; else targets are `(B,)`, predictions `(B, classes)`.
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
    if multilabel or classes == 2:
        metrics["average_precision"] = MeanAveragePrecision()
    return SplitMetrics(metrics, classes, chosen)


def regression_metrics(chosen: Sequence[ChosenMetric] = ()) -> SplitMetrics:
    """Mean absolute error and root mean squared error over all values, and R² averaged over outputs."""
    return SplitMetrics(
        {
            "mae": regression.MeanAbsoluteError(),
            "rmse": regression.MeanSquaredError(squared=False),
            "r2": regression.R2Score(),
        },
        chosen=chosen,
    )
