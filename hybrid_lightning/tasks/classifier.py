"""Classification with a hybrid network."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, check_number, unknown
from hybrid_lightning.tasks.base import HybridTask
from hybrid_lightning.tasks.metrics import SplitMetrics, classification_metrics

KINDS = ("multiclass", "binary", "multilabel")


class HybridClassifier(HybridTask):
    """Classifies with pretrained and untrained parts under one head.

    Logged after each validation and test, over all samples: ``accuracy``, ``macro_f1``, ``auroc`` and
    ``calibration_error`` (not for multilabel). A metric that the data leave undefined is not logged, and named.

    Args:
        num_classes: Number of classes, or of labels if ``kind`` is multilabel; 2 if it is binary.
        kind: ``multiclass`` (targets `(B,)`, one class each), ``binary`` (targets `(B,)` of 0 and 1, one output) or
            ``multilabel`` (targets `(B, num_classes)` of 0 and 1).
        class_weights: Weight of each class in the loss; of the positive samples of each label if multilabel; of class 0
            and class 1 if binary. Null weighs all alike.
        label_smoothing: Share of the target that is spread evenly, in [0, 1).
        **common: Arguments of `HybridTask`.

    Raises:
        ConfigError: If an argument is impossible.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        kind: str = "multiclass",
        class_weights: list[float] | None = None,
        label_smoothing: float = 0.0,
        **common: Any,
    ) -> None:
        if kind not in KINDS:
            raise unknown("model.kind", "kind", kind, KINDS)
        if num_classes < 2 or (kind == "binary" and num_classes != 2):
            wanted = "2" if kind == "binary" else "2 or more; one label alone is 'kind: binary' with 2 classes"
            raise ConfigError(
                f"model.num_classes: {num_classes} is not possible for a {kind} target, which has {wanted}."
            )
        if class_weights is not None and len(class_weights) != num_classes:
            raise ConfigError(f"model.class_weights: {len(class_weights)} weights are given for {num_classes} classes.")
        class_weights = None if class_weights is None else [float(weight) for weight in class_weights]
        for weight in class_weights or ():
            check_number(weight, "model.class_weights", low=0)
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"model.label_smoothing: {label_smoothing} is not in [0, 1).")
        self.num_classes, self.kind, self.label_smoothing = num_classes, kind, label_smoothing
        super().__init__(**common)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self.facts |= {"num_classes": num_classes, "kind": kind, "class_weights": class_weights}
        self.facts |= {"label_smoothing": label_smoothing}

    @property
    def outputs(self) -> int:
        """One output per class or label; a single one for a binary target."""
        return 1 if self.kind == "binary" else self.num_classes

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy, averaged as torch does: weighted by class if there are class weights."""
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

    def loss_weight(self, target: Tensor) -> Tensor | int:
        """The summed class weights of the samples, or their number."""
        if self.class_weights is None or self.kind == "multilabel":
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
