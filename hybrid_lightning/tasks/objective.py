"""The objective of a task: what the outputs of its network mean."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import lightning.pytorch as pl
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError, at, listing
from hybrid_lightning.network.modules.mlp import LinearVote
from hybrid_lightning.probe.targets import Kind
from hybrid_lightning.tasks.calibration import CALIBRATION, Calibration
from hybrid_lightning.tasks.chosen_metrics import ChosenMetric
from hybrid_lightning.tasks.metrics import SplitMetrics


class Objective(nn.Module, ABC):
    """Loss, predictions, metrics and checks of targets; class weights or a scale of targets are its state.

    A subclass defines `loss` and `predictions`. Everything else has a default: no metrics beside the loss, and targets
    of any kind.

    Args:
        outputs: Number of outputs of the head.
    """

    reads_target: ClassVar[bool] = True
    """Whether batches have a ``target``. If not, `loss` is given None."""

    closed_form: Kind | None = None
    """What a closed-form fit learns for this objective: ``classes``, ``labels`` or ``values``; None: there is none."""

    counted: Collection[str] = ()
    """Names of the settings whose values were taken from data."""

    main_metric: str = "loss"
    """The metric that the best checkpoint follows, and by which parts are compared; known once a run is prepared."""

    thresholds: int = 0
    """How many thresholds decide: one of two classes, one of each label; 0: nothing is decided by them."""

    intervals: int = 0
    """How many numbers a coverage takes: one for sets of classes, one of each number for intervals; 0: none."""

    calibration: Calibration | None = None
    """What a run has found on held-out rows; None before."""

    chosen: Sequence[ChosenMetric] = ()
    """The metrics that a config names."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.names: list[str] = []
        """Names of the classes, labels or numbers, if the data have any."""

    # What a subclass defines

    @abstractmethod
    def loss(self, outputs: Tensor, target: Any) -> Tensor:
        """The loss of a batch, a scalar, from the head's outputs `(B, outputs)` and the batch's ``target``."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What metrics and users see, `(B,)` or `(B, ...)`, from the head's outputs `(B, outputs)`."""

    # What it may define

    def loss_weight(self, outputs: Tensor, target: Any) -> Tensor | int:
        """What `loss` divides by, so that the loss of a split is exact: the number of samples, unless overridden."""
        return len(outputs)

    def metrics(self) -> SplitMetrics:
        """New metrics for one split; if `main_metric` is the loss, the first decides whether a part is better."""
        return SplitMetrics({})

    def check_target(self, target: Tensor) -> None:
        """Raises `ConfigError` if targets `(B, ...)` have a wrong shape or range."""

    def check_kind(self, kind: str, names: Sequence[str]) -> None:
        """Raises `ConfigError` if a target of the data is of another kind, or has other classes or columns, than this.

        `kind` is ``binary``, ``multiclass``, ``multilabel`` or ``regression``; `names` are those of its classes, labels
        or columns.
        """

    def check_data(self, data: Any) -> None:
        """Asks `check_kind` about the target of a DataModule that says what it is; of any other nothing is known."""
        kind = getattr(data, "target_kind", None)
        columns = getattr(getattr(data, "target", None), "columns", ())
        if kind is not None and self.reads_target:
            # numbers bear the names of their columns
            is_named = columns and kind != "regression"
            with at(f"data.target: column {listing(columns, 3)}" if is_named else "data.target"):
                self.check_kind(kind, data.target_names)
        self.names = list(getattr(data, "target_names", None) or self.names)
        for metric in self.chosen if self.names else ():
            metric.find(self.names)

    def prediction_columns(self, predictions: Tensor, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Predictions `(N,)` or `(N, outputs)` as columns of a table: name → a tensor or list of a value per sample."""
        if predictions.ndim == 1:
            return {"prediction": predictions}
        columns = predictions.flatten(1)
        return named_columns("prediction", columns, output_names(names, columns.shape[1]))

    def contribution(self, predictions: Tensor, without: Tensor) -> Tensor:
        """What a part adds to each prediction, `(B,)`; of several outputs the mean absolute change."""
        difference = predictions - without
        return difference if difference.ndim == 1 else difference.abs().mean(1)

    def decisions(self, predictions: Tensor) -> Tensor:
        """What is decided by predictions: these themselves, unless they are probabilities."""
        return predictions

    def of_labels(self, predictions: Tensor) -> Tensor:
        """The probabilities `(B, thresholds)` that thresholds are for."""
        return predictions

    def conformal_scores(self, predictions: Tensor, target: Tensor) -> Tensor:
        """How bad each prediction is, `(B, intervals)`: in the units of the quantiles of a `Calibration`."""
        raise NotImplementedError

    def coverage(self, predictions: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Metric → a value per sample, of test rows under a coverage; empty without one."""
        return {}

    def calibration_record(self) -> dict[str, Any]:
        """The entry of a checkpoint that has the calibration; empty without one."""
        return {} if self.calibration is None else {CALIBRATION: self.calibration.plain()}

    def closed_form_target(self, target: Tensor) -> Tensor:
        """Targets `(N, ...)` in the form that a closed-form fit of the kind `closed_form` takes."""
        return target

    def in_outputs(self, vote: LinearVote) -> LinearVote:
        """A linear map to what a closed-form fit learns, as one to the head's outputs: the same, unless overridden."""
        return vote

    def in_units(self, values: Tensor) -> Tensor:
        """What such a run learns, `(N, outputs)`, in the units of the targets: the same, unless overridden."""
        return values

    def row_weights(self, target: Tensor) -> Tensor | None:
        """The weight of each sample in such a run, `(N,)`; None weighs all alike."""
        return None

    # State that comes from data or files

    def build(self, trust: Collection[str] | None) -> None:
        """Makes what needs imports, before the first step; for `trust` see `resolve`."""

    def prepare_fit(self, trainer: pl.Trainer) -> None:
        """Takes from the training data what the loss needs; called on all ranks before the first step."""

    def settings(self) -> dict[str, Any]:
        """Arguments of the task in the form in which a checkpoint stores them."""
        return {}

    def adopt(self, saved: Mapping[str, Any], is_fit: bool) -> None:
        """Takes what an earlier run has decided, from what its task added to a checkpoint."""

    def adopt_head(self, state: Mapping[str, Tensor]) -> None:
        """Takes the state, name → tensor, of the objective whose head ``init_from`` has loaded."""

    def export_note(self) -> str:
        """What is to be done with the outputs of the exported network, as a line; empty: nothing."""
        return ""


def named_columns(prefix: str, values: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Columns of `(N, names)` values, such as ``probability_cat``."""
    return {f"{prefix}_{name}": values[:, index] for index, name in enumerate(names)}


def output_names(names: Sequence[str] | None, count: int) -> list[str]:
    """The names that the data give the outputs, or their numbers; `ConfigError` for more or fewer names."""
    if names is None:
        return [str(number) for number in range(count)]
    if len(names) != count:
        raise ConfigError(
            f"target_names has {len(names)} names ({listing(map(str, names))}), but the model has {count} "
            f"outputs or classes. Use the data, or the statistics, that it was trained with.",
            "data",
        )
    return [str(name) for name in names]
