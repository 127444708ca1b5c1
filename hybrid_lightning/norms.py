"""Normalisations with running statistics: finding them, and estimating their statistics anew."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

NORM_MODES = ("eval", "stats", "train")
"""What a part can do with its normalisations, see `Part`."""


def has_statistics(module: nn.Module) -> bool:
    """Whether a module keeps running statistics: batch and instance normalisation, in any number of dimensions."""
    return getattr(module, "running_mean", None) is not None


class KeptStatistics:
    """A copy of the running statistics that a forward pass will change, for a step that then is not made.

    Args:
        root: Its normalisations in train mode are kept.
    """

    def __init__(self, root: nn.Module) -> None:
        moving = [module for module in root.modules() if has_statistics(module) and module.training]
        self._buffers = [buffer for module in moving for buffer in module.buffers(recurse=False)]
        self._copies = [buffer.clone() for buffer in self._buffers]

    def restore(self) -> None:
        """Puts the copies back."""
        for buffer, copy in zip(self._buffers, self._copies, strict=True):
            buffer.copy_(copy)


def reestimate_statistics(norms: Sequence[Any], batches: Iterable[Any], forward: Callable[[Any], Any]) -> None:
    """Replaces running statistics by their plain average over batches, weights unchanged (arXiv 2105.07576, section 3).

    Running statistics average over weights that are long gone; with a momentum of 0.01 and few steps they never arrive.

    Args:
        norms: The modules, which `has_statistics`; they are put into train mode and back.
        batches: At least one batch.
        forward: Runs the network on a batch; the mode of other modules is the caller's.
    """
    before = [(norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.training = True
    try:
        with torch.no_grad():
            for number, batch in enumerate(batches, 1):
                for norm in norms:
                    norm.momentum = 1 / number
                forward(batch)
    finally:
        for norm, (momentum, training) in zip(norms, before, strict=True):
            norm.momentum, norm.training = momentum, training
