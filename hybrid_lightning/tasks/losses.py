"""Losses for the head's outputs: our own, and any module that a config names."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, check_number, unknown
from hybrid_lightning.importing import ClassSpec, check_arguments, parameters_of, trusted
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
            log_p = log_classes[true]
            log_rest = log_classes.masked_fill(true, float("-inf")).logsumexp(1)
        else:
            signed = torch.where(target > 0.5, outputs, -outputs)
            log_p = functional.logsigmoid(signed)
            log_rest = functional.logsigmoid(-signed)
        losses = -(self.gamma * log_rest).exp() * log_p  # by logarithms, as a power of 0 has no gradient
        if weights is not None and target.ndim == 1:
            losses = losses * weights[target.long()]
        elif weights is not None:  # multilabel: the weights are those of positives
            losses = losses * torch.where(target > 0.5, weights, torch.ones_like(weights))
        return losses.mean()


LOSSES = {"FocalLoss": FocalLoss}
TORCH_LOSSES = [name for name in vars(nn) if name.endswith("Loss")]
"""Names that a loss may have without a dot: those of ours, and of torch.nn."""
_PLACE = "model.loss_function"


def parse_loss(given: object) -> ClassSpec | None:
    """Reads ``FocalLoss``, a dotted path, a class, or the long form; None stays None."""
    if given is None:
        return None
    spec = ClassSpec.parse(given, "FocalLoss")
    if spec.class_path in TORCH_LOSSES:
        return replace(spec, class_path=f"torch.nn.{spec.class_path}")
    # where a loss of ours lives has changed before, and is in the saved configs of older runs
    own_name = spec.class_path.rpartition(".")[2]
    is_own = spec.class_path.startswith("hybrid_lightning.") and own_name in LOSSES
    return replace(spec, class_path=own_name) if is_own else spec


def make_loss(
    spec: ClassSpec, trust: Collection[str] | None = None, given: Mapping[str, Any] | None = None
) -> nn.Module:
    """The module of a loss, which takes outputs and targets, and is given the model's own arguments `given`, too.

    Raises `ConfigError` if the class or an argument is unknown or not allowed, or if it has parameters.
    """
    path = spec.class_path
    factory = _factory(path, trust)
    arguments = dict(spec.init_args)
    for name, value in (given or {}).items():
        if name not in parameters_of(factory):
            raise ConfigError(
                f"{path} takes no argument of this name, so it cannot follow it. Remove model.{name}, or give the loss "
                f"what it takes under {_PLACE}.init_args.",
                f"model.{name}",
            )
        arguments.setdefault(name, value)
    check_arguments(factory, arguments, f"{_PLACE}.init_args")
    try:
        loss = factory(**arguments)
    except ConfigError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{path} refuses its arguments: {error}", _PLACE) from error
    remedy = "Give a class of losses, such as FocalLoss or torch.nn.HuberLoss."
    if not isinstance(loss, nn.Module):
        raise ConfigError(f"{path} is not an nn.Module. {remedy}", _PLACE)
    if list(loss.parameters()):
        raise ConfigError(f"{path} has parameters, which no group would train. {remedy}", _PLACE)
    return loss


def _factory(path: str, trust: Collection[str] | None) -> Any:
    """The class behind a path, if a file with this trust may name it."""
    if path in LOSSES:
        return LOSSES[path]
    if "." not in path:  # neither a path nor a name of ours: most likely misspelled
        raise unknown(f"{_PLACE}.class_path", "loss", path, [*LOSSES, *TORCH_LOSSES])
    if trust is not None and not path.startswith("torch.nn.") and not trusted(path, trust):
        raise ConfigError(
            f"the file names {path!r}, which is neither a loss of ours nor of torch.nn. A path in a file is code "
            f"chosen by whoever wrote it. If you trust it, load with trust=[{path.split('.')[0]!r}].",
            _PLACE,
        )
    return resolve(path, f"{_PLACE}.class_path", trust)
