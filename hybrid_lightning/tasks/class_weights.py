"""Class weights: those that a config gives, and those that balance the training labels."""

from typing import Any

import torch
from torch import Tensor

from hybrid_lightning.errors import ConfigError, check_number

_RARE = 0.1


def parse_weights(given: Any, classes: int) -> list[float] | str | None:
    """Class weights as plain data: None, ``balanced`` or a list."""
    if given is None:
        return None
    place = "class_weights"
    if isinstance(given, str):
        if given != "balanced":
            raise ConfigError(f"{given!r} is neither 'balanced' nor a list of a weight per class.", place)
        return given
    if len(given) != classes:
        raise ConfigError(f"{len(given)} weights are given for {classes} classes.", place)
    weights = [float(weight) for weight in given]
    for weight in weights:
        check_number(weight, place, low=0)
    return weights


def has_rare_class(targets: Tensor) -> bool:
    """Whether the rarer one of two classes `(N,)` has less than 10 % of the rows, but some."""
    ones = targets.double().mean()
    share = float(torch.minimum(ones, 1 - ones))
    return 0 < share < _RARE


def balanced_weights(targets: Tensor, classes: int, kind: str) -> list[float]:
    """Weights with which all classes count alike, from all training labels `(N,)`, or `(N, classes)` if multilabel.

    N / (classes × samples of the class); if multilabel, negatives / positives of each label. What no sample has counts
    as if one had it.
    """
    samples = len(targets)
    if kind == "multilabel":
        positives = targets.long().sum(0).double()
        weights = (samples - positives).clamp(min=1) / positives.clamp(min=1)
    else:
        counts = torch.bincount(targets.long(), minlength=classes).double()
        weights = samples / (classes * counts.clamp(min=1))
    return weights.tolist()
