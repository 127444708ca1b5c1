"""The scale of a regression's targets: the network learns standardized numbers, users see their own."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class TargetScale(nn.Module):
    """Mean and standard deviation of each output over the training targets; 0 and 1 until they are known.

    They are float32 whatever the precision of the module, because bfloat16 would round them to three digits.

    Args:
        outputs: Numbers per sample.
    """

    mean: Tensor
    std: Tensor
    known: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(outputs, dtype=torch.float32))
        self.register_buffer("std", torch.ones(outputs, dtype=torch.float32))
        self.register_buffer("known", torch.zeros((), dtype=torch.int64))  # not bool, which gloo does not send

    def set(self, mean: list[float], std: list[float]) -> None:
        """Sets the scale for good; a network that was trained under it has no meaning under another."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))
        self.known.fill_(1)

    def standardized(self, target: Tensor) -> Tensor:
        """Targets `(B,)` or `(B, outputs)` as the network learns them."""
        return (target - self.mean) / self.std

    def restored(self, numbers: Tensor) -> Tensor:
        """What the network gives, `(B,)` or `(B, outputs)`, in the units of the targets."""
        return numbers * self.std + self.mean

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows the module to its device, but not to its precision."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                device = fn(buffer).device
                self._buffers[name] = buffer.to(device)
        return self


def scale_of(targets: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each output; the deviation of one that is constant counts as 1.

    Args:
        targets: `(N,)` or `(N, outputs)`, at least one.
    """
    columns = targets.reshape(len(targets), -1).double()
    std, mean = torch.std_mean(columns, dim=0, correction=0)
    # not std == 0: rounding leaves a constant column a small deviation, which would blow up its targets
    is_constant = columns.amin(0) == columns.amax(0)
    std = torch.where(is_constant, 1.0, std)
    return mean.tolist(), std.tolist()
