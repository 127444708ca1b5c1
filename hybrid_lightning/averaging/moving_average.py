"""Averages of tensors that change: plain torch, for any training loop."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_SHORT = (torch.float16, torch.bfloat16)


class MovingAverage:
    """Exponential moving averages of named tensors, each from the first update that it takes part in.

    The value of k updates ago has the weight 2^(-k / half_life), and the weights sum to 1. So what was there before the
    first update has none, however short the training; as the moments of Adam are corrected (arXiv 1412.6980).

    Args:
        half_life: In updates, above 0.
    """

    def __init__(self, half_life: float) -> None:
        self._decay = 0.5 ** (1 / half_life)
        self.values: dict[str, Tensor] = {}
        """Name → average; in float32 of tensors of 16 bits, which small changes would round away in."""
        self.counts: dict[str, int] = {}
        """Name → number of updates."""

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the tensors of now; the averages of all others end."""
        for name in self.values.keys() - tensors.keys():
            del self.values[name], self.counts[name]
        by_count: dict[int, list[str]] = {}
        for name, tensor in tensors.items():
            if name not in self.values:
                dtype = torch.float32 if tensor.dtype in _SHORT else tensor.dtype
                self.values[name] = torch.zeros_like(tensor, dtype=dtype, requires_grad=False)
            self.counts[name] = self.counts.get(name, 0) + 1
            by_count.setdefault(self.counts[name], []).append(name)
        for count, names in by_count.items():
            values = [self.values[name] for name in names]
            given = [tensors[name].to(self.values[name].dtype) for name in names]
            torch._foreach_lerp_(values, given, (1 - self._decay) / (1 - self._decay**count))


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several states of the same names; a tensor that is the same in all stays as it is, bit by bit."""
    mean = {}
    for name, first in states[0].items():
        given = [state[name] for state in states]
        is_same = all(torch.equal(first, other) for other in given)
        if is_same or not first.is_floating_point():
            mean[name] = first
        else:
            mean[name] = torch.stack(given).double().mean(0).to(first.dtype)
    return mean
