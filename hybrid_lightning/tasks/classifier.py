"""Classification with a hybrid network."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.data.loaders import training_targets
from hybrid_lightning.errors import ConfigError, check_number, unknown
from hybrid_lightning.tasks.base import HybridTask
from hybrid_lightning.tasks.checkpoint import CHECKPOINT_KEY, require_plain
from hybrid_lightning.tasks.evaluation import output_names
from hybrid_lightning.tasks.losses import loss_facts, make_loss
from hybrid_lightning.tasks.metrics import SplitMetrics, classification_metrics

KINDS = ("multiclass", "binary", "multilabel")


def checked_weights(given: Any, classes: int, where: str = "model.class_weights") -> list[float] | str | None:
    """Class weights as plain data: None, ``balanced`` or a list.

    Raises:
        ConfigError: If they are impossible.
    """
    if given is None:
        return None
    if isinstance(given, str):
        if given != "balanced":
            raise ConfigError(f"{where}: {given!r} is neither 'balanced' nor a list of a weight per class.")
        return given
    if len(given) != classes:
        raise ConfigError(f"{where}: {len(given)} weights are given for {classes} classes.")
    weights = [float(weight) for weight in given]
    for weight in weights:
        check_number(weight, where, low=0)
    return weights


def balanced_weights(targets: Tensor, classes: int, kind: str) -> list[float]:
    """Weights with which all classes count alike in the loss.

    Args:
        targets: All training labels, `(N,)`, or `(N, classes)` if multilabel.
        classes: Number of classes or labels.
        kind: See `HybridClassifier`.

    Returns:
        N / (classes × samples of the class); if multilabel, negatives / positives of each label. What no sample has
        counts as if one had it.
    """
    if kind == "multilabel":
        positives = targets.long().sum(0).double()
        weights = (len(targets) - positives).clamp(min=1) / positives.clamp(min=1)
    else:
        weights = len(targets) / (classes * torch.bincount(targets.long(), minlength=classes).double().clamp(min=1))
    found: list[float] = weights.tolist()
    return found


class HybridClassifier(HybridTask):
    """Classifies with pretrained and untrained parts under one head.

    Logged after each validation and test, over all samples: ``accuracy``, ``macro_f1``, ``auroc`` and
    ``calibration_error`` (not for multilabel). A metric that the data leave undefined is not logged, and named.

    Args:
        num_classes: Number of classes, or of labels if ``kind`` is multilabel; 2 if it is binary.
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
        **common: Arguments of `HybridTask`.

    Raises:
        ConfigError: If an argument is impossible.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        kind: str = "multiclass",
        class_weights: list[float] | str | None = None,
        label_smoothing: float = 0.0,
        loss_function: str | dict[str, Any] | None = None,
        **common: Any,
    ) -> None:
        if kind not in KINDS:
            raise unknown("model.kind", "kind", kind, KINDS)
        if num_classes < 2 or (kind == "binary" and num_classes != 2):
            wanted = "2" if kind == "binary" else "2 or more; one label alone is 'kind: binary' with 2 classes"
            raise ConfigError(
                f"model.num_classes: {num_classes} is not possible for a {kind} target, which has {wanted}."
            )
        self.balanced = isinstance(class_weights, str)
        """Whether the weights are those of the training labels."""
        given = checked_weights(class_weights, num_classes)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"model.label_smoothing: {label_smoothing} is not in [0, 1).")
        self.num_classes, self.kind, self.label_smoothing = num_classes, kind, label_smoothing
        loss_function = loss_facts(loss_function)
        super().__init__(**common)
        self.register_buffer("class_weights", None, persistent=False)
        self.loss_module: nn.Module | None = None
        self.facts |= {"num_classes": num_classes, "kind": kind, "class_weights": given}
        self.facts |= {"label_smoothing": label_smoothing, "loss_function": loss_function}
        require_plain(loss_function, "model.loss_function")
        self._weigh(given)

    @property
    def outputs(self) -> int:
        """One output per class or label; a single one for a binary target."""
        return 1 if self.kind == "binary" else self.num_classes

    # Building

    def on_built(self, start: Mapping[str, Any] | None) -> None:
        """Makes the loss, now that it is known whom a file may name."""
        self._make_loss()

    def configure_model(self) -> None:
        """Builds what is not built yet; a fit counts the training labels for ``class_weights: balanced``."""
        super().configure_model()
        if self.facts["class_weights"] == "balanced" and self.trainer.state.fn == "fit":
            targets = training_targets(self.trainer)
            if targets is None:
                raise ConfigError(
                    "model.class_weights: 'balanced' counts the training labels, but the training dataset does not "
                    "show them: it has no tensor 'targets' with a label per sample. Give it one, or give the weights "
                    "as a list."
                )
            self.check_target(targets, "data: train targets")
            weights = balanced_weights(targets, self.num_classes, self.kind)
            self._weigh(self.trainer.strategy.broadcast(weights))

    def _weigh(self, weights: list[float] | str | None) -> None:
        """Takes class weights, or holds that they are still to be counted."""
        self.facts["class_weights"] = weights
        tensor = None if weights is None or isinstance(weights, str) else torch.tensor(weights, dtype=torch.float32)
        self.class_weights = None if tensor is None else tensor.to(self.device)
        if self.loss_module is not None:
            self._make_loss()

    def _make_loss(self) -> None:
        if self.facts["loss_function"] is None:
            return
        weights = self.facts["class_weights"]
        given: dict[str, Any] = {} if weights is None else {"class_weights": weights}
        if isinstance(weights, str):
            given["class_weights"] = [
                1.0
            ] * self.num_classes  # counted later; until then it is seen whether it takes any
        if self.label_smoothing:
            given["label_smoothing"] = self.label_smoothing
        self.loss_module = make_loss(self.facts["loss_function"], self._trust, given).to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what a rebuild needs, and which facts were counted from the data."""
        super().on_save_checkpoint(checkpoint)
        if self.balanced:
            checkpoint[CHECKPOINT_KEY]["counted"] = ["class_weights"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the class weights that were counted when the model was trained; else see `HybridTask`."""
        saved = checkpoint.get(CHECKPOINT_KEY)
        if self.balanced and saved:
            weights = saved["facts"].get("class_weights")
            fits = weights is None or len(weights) == self.num_classes
            if fits and ("class_weights" in saved.get("counted", ()) or self.trainer.state.fn != "fit"):
                self._weigh(weights)
        super().on_load_checkpoint(checkpoint)

    # Meaning of the outputs

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The loss function; cross-entropy is averaged as torch does: weighted by class if there are class weights."""
        if self.facts["class_weights"] == "balanced":
            raise ConfigError("model.class_weights: 'balanced' is counted by a fit, and there has been none. Load one.")
        if self.facts["loss_function"] is not None:
            return self._loss_of_module(outputs, target)
        weights = self.class_weights
        if self.kind == "multiclass":
            return functional.cross_entropy(outputs, target.long(), weights, label_smoothing=self.label_smoothing)
        hard = target.to(outputs.dtype)
        outputs = outputs.squeeze(1) if self.kind == "binary" else outputs
        soft = hard * (1 - self.label_smoothing) + self.label_smoothing / 2
        if self.kind == "multilabel":
            return functional.binary_cross_entropy_with_logits(outputs, soft, pos_weight=weights)
        losses = functional.binary_cross_entropy_with_logits(outputs, soft, reduction="none")
        if weights is None:
            return losses.mean()
        of_samples = weights[target.long()]
        return (losses * of_samples).sum() / of_samples.sum()

    def _loss_of_module(self, outputs: Tensor, target: Tensor) -> Tensor:
        if self.loss_module is None:
            self._make_loss()
        assert self.loss_module is not None
        target = target.long() if self.kind == "multiclass" else target.to(outputs.dtype)
        loss = self.loss_module(outputs.squeeze(1) if self.kind == "binary" else outputs, target)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise ConfigError(
                f"model.loss_function: {type(self.loss_module).__name__} does not return one number. It has to return "
                f"the mean over the samples, such as with 'reduction: mean'."
            )
        return loss

    def loss_weight(self, target: Tensor) -> Tensor | int:
        """The summed class weights of the samples, or their number."""
        if self.class_weights is None or self.kind == "multilabel" or self.facts["loss_function"] is not None:
            return len(target)
        return self.class_weights[target.long()].sum()

    def predictions(self, outputs: Tensor) -> Tensor:
        """Probabilities `(B, num_classes)`; over the classes they sum to 1, except for multilabel."""
        if self.kind == "multiclass":
            return outputs.softmax(1)
        positive = outputs.sigmoid()
        return positive if self.kind == "multilabel" else torch.cat([1 - positive, positive], dim=1)

    def contribution(self, predictions: Tensor, without: Tensor) -> Tensor:
        """What a part adds to the probability of the predicted class; for multilabel the mean absolute change."""
        if self.kind == "multilabel":
            return super().contribution(predictions, without)
        chosen = predictions.argmax(1, keepdim=True)
        return (predictions - without).gather(1, chosen).squeeze(1)

    def prediction_columns(self, predictions: Tensor, names: Sequence[str] | None = None) -> dict[str, Any]:
        """``prediction`` (the likeliest class) and ``probability_<class>``; ``prediction_<label>`` if multilabel.

        Args:
            predictions: Probabilities `(N, num_classes)`.
            names: Of the classes or labels; None numbers them.

        Raises:
            ConfigError: If there are more or fewer names than classes.
        """
        known = output_names(names, self.num_classes)
        probabilities = {f"probability_{name}": predictions[:, index] for index, name in enumerate(known)}
        if self.kind == "multilabel":
            labels = (predictions > 0.5).long()  # as the metrics decide
            return {f"prediction_{name}": labels[:, index] for index, name in enumerate(known)} | probabilities
        likeliest = predictions.argmax(1)
        return {"prediction": likeliest if names is None else [known[i] for i in likeliest.tolist()], **probabilities}

    def make_metrics(self) -> SplitMetrics:
        """Accuracy, macro F1, AUROC and calibration error."""
        return classification_metrics(self.num_classes, multilabel=self.kind == "multilabel")

    def check_target(self, target: Tensor, where: str) -> None:
        """Raises `ConfigError` if a label is out of range or the shape is wrong."""
        multilabel = self.kind == "multilabel"
        wanted = f"(B, {self.num_classes})" if multilabel else "(B,)"
        if target.ndim != (2 if multilabel else 1) or (multilabel and target.shape[1] != self.num_classes):
            raise ConfigError(f"{where}: the shape is {tuple(target.shape)}; a {self.kind} target is {wanted}.")
        if not multilabel and target.is_floating_point():
            raise ConfigError(f"{where}: labels are {target.dtype}; class indices are integers (int64).")
        if multilabel and bool(((target != 0) & (target != 1)).any()):
            raise ConfigError(f"{where}: a multilabel target holds 0 and 1 only, not values such as {target.max():g}.")
        low, high = target.min().item(), target.max().item()
        top = 1 if multilabel else self.num_classes - 1
        if low < 0 or high > top:
            raise ConfigError(
                f"{where}: labels run from {low} to {high}, but the model allows 0 to {top}. "
                f"Correct the labels or model.num_classes ({self.num_classes})."
            )
