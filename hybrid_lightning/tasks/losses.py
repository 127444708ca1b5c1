"""Losses for the head's outputs: our own, and any module that a config names."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, check_number, unknown
from hybrid_lightning.importing import check_arguments, parameters_of, trusted
from hybrid_lightning.network.registry import resolve


class FocalLoss(nn.Module):
    """Cross-entropy that counts a sample the less the surer the model is of it (Lin et al., arXiv 1708.02002).

    Each sample, or each label of it, counts ``(1 - p) ** gamma`` times, where p is the probability that the model gives
    to what is true. Multiclass: outputs `(B, classes)`, target `(B,)`. Binary: both `(B,)`. Multilabel: both
    `(B, labels)`.

    Args:
        gamma: 0 is cross-entropy; the paper's 2 is the default.
        class_weights: Weight of each class; of class 0 and class 1 if binary; of the positive samples of each label if
            multilabel. Null weighs all alike. ``class_weights`` of the model arrives here.

    Raises:
        ConfigError: If an argument is impossible.
    """

    class_weights: Tensor | None

    def __init__(self, gamma: float = 2.0, class_weights: list[float] | None = None) -> None:
        super().__init__()
        check_number(gamma, "model.loss_function.init_args.gamma", low=0)
        self.gamma = gamma
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The mean over the samples (and labels), a scalar; also with class weights it is divided by their number."""
        weights = self.class_weights
        if outputs.ndim == 2 and target.ndim == 1:
            true = functional.one_hot(target.long(), outputs.shape[1]).bool()
            log_classes = outputs.log_softmax(1)
            log_p, log_rest = log_classes[true], log_classes.masked_fill(true, float("-inf")).logsumexp(1)
            factors = None if weights is None else weights[target.long()]
        else:
            signed = torch.where(target > 0.5, outputs, -outputs)
            log_p, log_rest = functional.logsigmoid(signed), functional.logsigmoid(-signed)
            factors = None if weights is None else self._of_labels(weights, target)
        losses = -(self.gamma * log_rest).exp() * log_p  # by logarithms, as a power of 0 has no gradient
        return (losses if factors is None else losses * factors).mean()

    @staticmethod
    def _of_labels(weights: Tensor, target: Tensor) -> Tensor:
        if target.ndim == 1:
            return weights[target.long()]
        return torch.where(target > 0.5, weights, torch.ones_like(weights))


LOSSES = {"FocalLoss": FocalLoss}
"""Names that a loss may have without a dot."""


def loss_facts(spec: Any, where: str = "model.loss_function") -> dict[str, Any] | None:
    """A loss in its long form, ``{class_path: ..., init_args: {...}}``, with its class by name; None stays None.

    Args:
        spec: ``FocalLoss``, a dotted path, a class, or the long form.
        where: Config path, for errors.

    Raises:
        ConfigError: If it is none of these.
    """
    if spec is None:
        return None
    spec = {"class_path": spec} if isinstance(spec, str | type) else spec
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str | type):
        raise ConfigError(
            f"{where}: write {{class_path: FocalLoss, init_args: {{...}}}} or a class name, not {spec!r}."
        )
    for key in spec:
        if key not in ("class_path", "init_args"):
            raise unknown(where, "key", str(key), ("class_path", "init_args"))
    path = spec["class_path"]
    path = f"{path.__module__}.{path.__qualname__}" if isinstance(path, type) else path
    # where a loss of ours lives has changed before, and is in the saved configs of older runs
    own = path.rpartition(".")[2] if path.startswith("hybrid_lightning.") else path
    return {"class_path": own if own in LOSSES else path, "init_args": dict(spec.get("init_args") or {})}


def make_loss(
    facts: Mapping[str, Any],
    trust: Collection[str] | None = None,
    given: Mapping[str, Any] | None = None,
    where: str = "model.loss_function",
) -> nn.Module:
    """The module of `loss_facts`; it is called with outputs and targets, and returns the mean over the samples.

    Args:
        facts: From `loss_facts`.
        trust: See `resolve`.
        given: Arguments of the model that the loss has to take too, such as ``class_weights``.
        where: Config path, for errors.

    Raises:
        ConfigError: If the class or an argument is unknown or not allowed, or it has parameters, which nobody trains.
    """
    path, args = facts["class_path"], {**facts["init_args"]}
    if path not in LOSSES and "." not in path:
        raise unknown(f"{where}.class_path", "loss", path, [*LOSSES, "torch.nn.MultiMarginLoss"])
    if trust is not None and path not in LOSSES and not path.startswith("torch.nn.") and not trusted(path, trust):
        raise ConfigError(
            f"{where}: the file names {path!r}, which is neither a loss of ours nor of torch.nn. A path in a file is "
            f"code chosen by whoever wrote it. If you trust it, load with trust=[{path.split('.')[0]!r}]."
        )
    factory = LOSSES[path] if path in LOSSES else resolve(path, f"{where}.class_path", trust)
    for name, value in (given or {}).items():
        if name not in parameters_of(factory):
            raise ConfigError(
                f"model.{name}: {path} takes no argument of this name, so it cannot follow it. Remove model.{name}, or "
                f"give the loss what it takes under {where}.init_args."
            )
        args.setdefault(name, value)
    check_arguments(factory, args, f"{where}.init_args")
    try:
        loss = factory(**args)
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: {path} refuses its arguments: {error}") from error
    if not isinstance(loss, nn.Module) or any(True for _ in loss.parameters()):
        kind = "has parameters, which no group would train" if isinstance(loss, nn.Module) else "is no nn.Module"
        raise ConfigError(f"{where}: {path} {kind}. Give a class of losses, such as FocalLoss or torch.nn.HuberLoss.")
    return loss
