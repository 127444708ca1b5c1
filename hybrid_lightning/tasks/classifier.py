"""Classification with a hybrid network."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.data.loaders import training_targets
from hybrid_lightning.errors import ConfigError, at, check_choice, listing, reason
from hybrid_lightning.probe.conformal import class_scores, class_sets
from hybrid_lightning.probe.targets import Kind
from hybrid_lightning.tasks.base import HybridTask
from hybrid_lightning.tasks.chosen_metrics import parse_metrics
from hybrid_lightning.tasks.class_weights import balanced_weights, has_rare_class, parse_weights
from hybrid_lightning.tasks.losses import make_loss, parse_loss
from hybrid_lightning.tasks.metrics import COVERAGE, SplitMetrics, classification_metrics
from hybrid_lightning.tasks.objective import Objective, named_columns, output_names
from hybrid_lightning.tasks.settings import Options

KINDS = ("multiclass", "binary", "multilabel")


class ClassificationObjective(Objective):
    """Classes or labels; for the arguments see `HybridClassifier`."""

    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int | None,
        kind: str,
        class_weights: Sequence[float] | str | None,
        label_smoothing: float,
        loss_function: str | Options | None,
        metrics: Sequence[str | Options] | None = None,
    ) -> None:
        with at("model"):
            check_choice(kind, "kind", KINDS, "kind")
            if num_classes is None:
                problem = "it must be given, such as 3. With a manifest, commands and from_config count the classes."
                raise ConfigError(problem, "num_classes")
            if num_classes < 2 or (kind == "binary" and num_classes != 2):
                wanted = "2" if kind == "binary" else "2 or more; one label alone is 'kind: binary' with 2 classes"
                problem = f"{num_classes} is not possible for a {kind} target, which has {wanted}."
                raise ConfigError(problem, "num_classes")
            if not 0 <= label_smoothing < 1:
                raise ConfigError(f"{label_smoothing} is not in [0, 1).", "label_smoothing")
            weights = parse_weights(class_weights, num_classes)
        super().__init__(outputs=1 if kind == "binary" else num_classes)
        with at("model.loss_function"):
            self.loss_function = parse_loss(loss_function)
        self.num_classes = num_classes
        self.kind = kind
        self.main_metric = "average_precision" if kind == "multilabel" else "accuracy"
        with at("model.metrics"):
            form = "Multilabel" if kind == "multilabel" else "Multiclass"
            self.chosen = parse_metrics(metrics, form, num_classes, [*self.metrics().logged, *COVERAGE])
        self.closed_form, self.thresholds, self.intervals = _form_of(kind, num_classes)
        self.label_smoothing = label_smoothing
        self.counted = ("class_weights",) if weights == "balanced" else ()
        self.loss_module: nn.Module | None = None
        self._trust: Collection[str] | None = None
        # not persistent, because a checkpoint has them among its settings, in full precision
        self.register_buffer("class_weights", None, persistent=False)
        self._weigh(weights)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss function; cross-entropy is averaged as torch does: weighted by class if there are class weights."""
        if self._weights == "balanced":
            raise ConfigError(
                "'balanced' is counted by a run, and there has been none. Load one.", "model.class_weights"
            )
        if self.loss_function is not None:
            return self._loss_of_module(outputs, target)
        weights = self.class_weights
        if self.kind == "multiclass":
            return functional.cross_entropy(outputs, target.long(), weights, label_smoothing=self.label_smoothing)
        # torch smooths only classes; of a label, half of the share goes to 0 and half to 1
        hard = target.to(outputs.dtype)
        soft = hard * (1 - self.label_smoothing) + self.label_smoothing / 2
        if self.kind == "multilabel":
            return functional.binary_cross_entropy_with_logits(outputs, soft, pos_weight=weights)
        losses = functional.binary_cross_entropy_with_logits(outputs.squeeze(1), soft, reduction="none")
        if weights is None:
            return losses.mean()
        of_samples = weights[target.long()]
        return (losses * of_samples).sum() / of_samples.sum()

    def _loss_of_module(self, outputs: Tensor, target: Tensor) -> Tensor:
        if self.loss_module is None:
            self.build(self._trust)
        assert self.loss_module is not None
        target = target.long() if self.kind == "multiclass" else target.to(outputs.dtype)
        if self.kind == "binary":
            outputs = outputs.squeeze(1)
        loss = self.loss_module(outputs, target)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ConfigError(
                f"{type(self.loss_module).__name__} does not return one number. It has to return the mean over the "
                f"samples, such as with 'reduction: mean'.",
                "model.loss_function",
            )
        return loss

    def loss_weight(self, outputs: Tensor, target: Tensor) -> Tensor | int:
        """The summed class weights of the samples, or their number."""
        if self.class_weights is None or self.kind == "multilabel" or self.loss_function is not None:
            return len(target)
        return self.class_weights[target.long()].sum()

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probabilities `(B, num_classes)`; over the classes they sum to 1, except for multilabel."""
        if self.kind == "multiclass":
            return outputs.softmax(1)
        positive = outputs.sigmoid()
        return positive if self.kind == "multilabel" else torch.cat([1 - positive, positive], dim=1)

    def decisions(self, predictions: Tensor) -> Tensor:
        """Classes `(B,)`, or labels `(B, labels)` of 0 and 1: the likeliest, or by thresholds where these are set."""
        thresholds = None if self.calibration is None else self.calibration.thresholds
        if thresholds is None:
            return (predictions > 0.5).long() if self.kind == "multilabel" else predictions.argmax(1)
        above = self.of_labels(predictions) > predictions.new_tensor(thresholds)
        return above.long() if self.kind == "multilabel" else above.squeeze(1).long()

    def of_labels(self, predictions: Tensor) -> Tensor:
        """The probabilities that thresholds are for: of each label `(B, labels)`, or of the second class `(B, 1)`."""
        return predictions if self.kind == "multilabel" else predictions[:, 1:]

    def sets(self, predictions: Tensor) -> Tensor | None:
        """Which classes each set holds, bool `(B, classes)`; None without a coverage, see `class_sets`."""
        if self.calibration is None or self.calibration.quantiles is None:
            return None
        return class_sets(predictions, self.decisions(predictions), self.calibration.quantiles[0])

    def conformal_scores(self, predictions: Tensor, target: Tensor) -> Tensor:
        """See `class_scores`."""
        return class_scores(predictions, target)

    def coverage(self, predictions: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Whether the set of each sample holds its class, and how many classes it has, `(B,)`; none without sets."""
        sets = self.sets(predictions)
        if sets is None:
            return {}
        return {"coverage": sets.gather(1, target.long()[:, None]).squeeze(1), "set_size": sets.sum(1)}

    def contribution(self, predictions: Tensor, without: Tensor) -> Tensor:
        """What a part adds to the probability of the predicted class; for multilabel the mean absolute change."""
        if self.kind == "multilabel":
            return super().contribution(predictions, without)
        chosen = self.decisions(predictions)[:, None]
        return (predictions - without).gather(1, chosen).squeeze(1)

    def prediction_columns(self, predictions: Tensor, names: Sequence[str] | None = None) -> dict[str, Any]:
        """``prediction``, of labels each, ``probability_<class>`` and, with a coverage, ``set_<class>`` of 0 and 1."""
        known = output_names(names, self.num_classes)
        columns = named_columns("probability", predictions, known)
        decided = self.decisions(predictions)
        if self.kind == "multilabel":
            return named_columns("prediction", decided, known) | columns
        sets = self.sets(predictions)
        if sets is not None:
            columns |= named_columns("set", sets.long(), known)
        return {"prediction": decided if names is None else [known[i] for i in decided.tolist()], **columns}

    def closed_form_target(self, target: Tensor) -> Tensor:
        """Classes `(N,)`; or labels `(N, labels)`, of which a binary target is one."""
        return target.long() if self.closed_form == "classes" else target.reshape(len(target), -1)

    def row_weights(self, target: Tensor) -> Tensor | None:
        """The class weights of the samples; of several labels there are none."""
        weights = self._weights
        if weights is None or self.kind == "multilabel":
            return None
        if isinstance(weights, str):
            weights = balanced_weights(target, self.num_classes, self.kind)
        return torch.tensor(weights)[target.long()]

    def metrics(self) -> SplitMetrics:
        """Accuracy, macro F1, AUROC, calibration error, of two classes and of labels average precision; and others."""
        return classification_metrics(self.num_classes, self.kind == "multilabel", self.chosen)

    def check_target(self, target: Tensor) -> None:
        """Raises `ConfigError` if a label is out of range or the shape is wrong."""
        is_multilabel = self.kind == "multilabel"
        wanted = (self.num_classes,) if is_multilabel else ()
        if target.ndim == 0 or tuple(target.shape[1:]) != wanted:
            expected = f"(B, {self.num_classes})" if is_multilabel else "(B,)"
            raise ConfigError(f"the shape is {tuple(target.shape)}; a {self.kind} target is {expected}.")
        if not is_multilabel and target.is_floating_point():
            raise ConfigError(f"labels are {target.dtype}; class indices are integers (int64).")
        if is_multilabel and bool(((target != 0) & (target != 1)).any()):
            raise ConfigError(f"a multilabel target holds 0 and 1 only, not values such as {target.max():g}.")
        low, high = (end.item() for end in target.aminmax())
        top = self.num_classes - 1
        if not is_multilabel and (low < 0 or high > top):
            raise ConfigError(
                f"labels run from {low} to {high}, but the model allows 0 to {top}. "
                f"Correct the labels or model.num_classes ({self.num_classes})."
            )

    def check_kind(self, kind: str, names: Sequence[str]) -> None:
        """Raises `ConfigError` for numbers, for labels where classes are learned, and for another count of classes."""
        wanted = f"target: {{column: ..., kind: {self.kind}}}"
        if kind == "regression":
            raise ConfigError(
                f"{listing(names)} is a quantity, and HybridClassifier learns classes. For classes write {wanted}; for "
                f"a quantity take HybridRegressor."
            )
        if (kind == "multilabel") != (self.kind == "multilabel"):
            raise ConfigError(f"it is {kind}, and model.kind is {self.kind}. Write {wanted}, or model.kind: {kind}.")
        if len(names) != self.num_classes:
            what = "labels" if kind == "multilabel" else "classes"
            raise ConfigError(
                f"it has {len(names)} {what}, {listing(names, 6)}, and model.num_classes is {self.num_classes}. Write "
                f"num_classes: {len(names)}, or correct the target."
            )

    # Class weights

    def build(self, trust: Collection[str] | None) -> None:
        """Makes the loss that ``loss_function`` names, with the class weights."""
        self._trust = trust
        if self.loss_function is None:
            return
        weights = self._weights
        if weights == "balanced":
            weights = [1.0] * self.num_classes  # only to find out whether the loss takes any
        given: Options = {} if weights is None else {"class_weights": weights}
        if self.label_smoothing:
            given["label_smoothing"] = self.label_smoothing
        self.loss_module = make_loss(self.loss_function, trust, given)
        self._try_loss()

    def _try_loss(self) -> None:
        """Raises `ConfigError` if the loss cannot take what this kind of target gives it."""
        target = torch.arange(4 * min(self.num_classes, 8)) % self.num_classes
        if self.kind == "multilabel":
            target = functional.one_hot(target, self.num_classes)
        outputs = torch.zeros(len(target), self.outputs)
        try:
            self._loss_of_module(outputs, target)
        except (TypeError, ValueError, RuntimeError, IndexError) as error:
            if isinstance(error, ConfigError):
                raise
            shape = "(B,)" if self.kind == "binary" else f"(B, {self.num_classes})"
            wanted = "int64 classes (B,)" if self.kind == "multiclass" else f"floats {shape}"
            raise ConfigError(
                f"{type(self.loss_module).__name__} cannot take outputs {shape} with {wanted}, as 'kind: {self.kind}' "
                f"gives them: {reason(error)} Take another loss, or another kind.",
                "model.loss_function",
            ) from error

    def _weigh(self, weights: list[float] | str | None) -> None:
        """Takes a weight per class; ``balanced`` stands for weights that are still to be counted."""
        self._weights = weights
        self.class_weights = torch.tensor(weights, dtype=torch.float32) if isinstance(weights, list) else None
        if self.loss_module is not None:
            self.build(self._trust)

    def prepare_fit(self, trainer: pl.Trainer) -> None:
        """Counts the training labels, for ``class_weights: balanced`` and to find out whether one of two is rare."""
        for metric in self.chosen:
            metric.require()
        has_two = self.num_classes == 2 and self.kind != "multilabel"
        is_balanced = self._weights == "balanced"
        targets = training_targets(trainer) if has_two or is_balanced else None
        if targets is not None:
            with at("data: train targets"):
                self.check_target(targets)
        if has_two:
            is_rare = targets is not None and has_rare_class(targets)
            self.main_metric = trainer.strategy.broadcast("average_precision" if is_rare else "accuracy")
        if not is_balanced:
            return
        if targets is None:
            raise ConfigError(
                "'balanced' counts the training labels, but the training dataset does not show them: it has no tensor "
                "'targets' with a label per sample. Give it one, or give the weights as a list.",
                "model.class_weights",
            )
        weights = balanced_weights(targets, self.num_classes, self.kind)
        self._weigh(trainer.strategy.broadcast(weights))

    def settings(self) -> Options:
        """The class weights, also those that were counted; the loss in its long form."""
        loss = None if self.loss_function is None else self.loss_function.plain()
        return {"class_weights": self._weights, "loss_function": loss}

    def adopt(self, saved: Mapping[str, Any], is_fit: bool) -> None:
        """Keeps the class weights that were counted when the model was trained."""
        weights = saved["settings"].get("class_weights")
        was_counted = "class_weights" in saved.get("counted", ())
        is_possible = weights is None or len(weights) == self.num_classes
        # a run that asks for balance, of a model that had none, counts anew
        if self.counted and is_possible and (was_counted or not is_fit):
            self._weigh(weights)


def _form_of(kind: str, classes: int) -> tuple[Kind, int, int]:
    """What a closed-form fit learns; how many thresholds decide, and how many quantiles a coverage takes."""
    if kind == "multilabel":
        return "labels", classes, 0
    return "classes" if kind == "multiclass" else "labels", int(classes == 2), 1


class HybridClassifier(HybridTask):
    """Classifies with pretrained and untrained parts under one head.

    Logged after each validation and test, over all samples: ``accuracy``, ``macro_f1``, ``auroc`` and
    ``calibration_error`` (not for multilabel); of two classes and of labels also ``average_precision``, the mean over
    the classes or labels that occur. A metric that the data leave undefined is not logged, and named. The best
    checkpoint is that of the highest ``accuracy``; of the highest ``average_precision`` for labels, and where the rarer
    of two classes has less than 10 % of the training rows, because there accuracy hardly tells models apart.

    Args:
        num_classes: Number of classes, or of labels if multilabel; 2 if binary. A config for a manifest may omit it.
        kind: ``multiclass`` (targets `(B,)`, one class each), ``binary`` (targets `(B,)` of 0 and 1, one output) or
            ``multilabel`` (targets `(B, num_classes)` of 0 and 1).
        class_weights: Weight of each class in the loss; of the positive samples of each label if multilabel; of class 0
            and class 1 if binary. Null weighs all alike; ``balanced`` weighs them by the training labels, which the
            data have to show, see `balanced_weights`, and a checkpoint keeps the weights that were found.
        label_smoothing: Share of the target that is spread evenly, in [0, 1).
        loss_function: Null is cross-entropy; else ``FocalLoss``, or ``{class_path: ..., init_args: {...}}`` of it or
            any `nn.Module`. It gets outputs and targets and returns the mean over the samples: `(B, num_classes)`
            and int64 `(B,)` if multiclass, `(B,)` and floats `(B,)` if binary, `(B, num_classes)` and floats of the
            same shape if multilabel. ``class_weights`` and ``label_smoothing``, if given, become arguments of it.
        metrics: Further metrics of torchmetrics, by name: ``[F1Score, {name: F1Score, class: cat}, {name:
            PrecisionAtFixedRecall, class: cat, args: {min_recall: 0.9}}, ConfusionMatrix]``. ``class`` measures one
            class or label, by its name in the data or its number from 0; ``as`` gives another name than
            ``f1_score_cat``. One that is a table is not logged, but written beside ``metrics.csv`` after a test
            and for the best validation: ``val_confusion_matrix.csv`` with a line per true class.
        **common: Arguments of `HybridTask`.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        kind: str = "multiclass",
        class_weights: list[float] | str | None = None,
        label_smoothing: float = 0.0,
        loss_function: str | Options | None = None,
        metrics: list[str | Options] | None = None,
        **common: Any,
    ) -> None:
        objective = ClassificationObjective(num_classes, kind, class_weights, label_smoothing, loss_function, metrics)
        super().__init__(objective=objective, **common)
