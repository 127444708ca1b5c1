"""Parts that train by their flags, get gradients, and do not move: all their gradients are 0."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.distributed.sharding import own_shares

_FIRST_LOOK = 10  # backward passes, after which parts that move are no longer looked at
_LAST_LOOK = 50  # a last layer that starts at 0 gives all before it no gradient at first, so a line waits for long
Add = Callable[[Tensor], Tensor]
"""Gives the sum over all ranks of a tensor, on the CPU."""


class ZeroGradients:
    """What trains from now on, as long as every gradient of it was 0; `training` are names of groups.

    Parts in `told` are left out, and those of which there is a line are added.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], training: Collection[str], told: set[str]) -> None:
        self._told = told
        self._parameters: dict[str, list[nn.Parameter]] = {}
        for group in groups:
            if group["name"] in training and group["part"] not in told:
                self._parameters.setdefault(group["part"], []).extend(group["params"])
        self._largest: dict[str, Tensor] = {}
        self._passes = 0

    def observe(self, add: Add) -> list[str]:
        """Takes the gradients of a backward pass; a line for each part after enough of them."""
        if not self._parameters:
            return []
        self._passes += 1
        for part, parameters in self._parameters.items():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            if gradients:
                largest = torch.stack([_largest_of(share) for share in own_shares(gradients)]).max()
                before = self._largest.get(part, largest)
                self._largest[part] = torch.maximum(before, largest)
        # a look makes the device wait
        if self._passes in (_FIRST_LOOK, _LAST_LOOK):
            self._forget_moving(add)
        return self._lines() if self._passes == _LAST_LOOK else []

    def conclude(self, add: Add) -> list[str]:
        """The lines at the end of a run that was shorter, unless it was too short to say anything."""
        if not self._parameters or self._passes < _FIRST_LOOK:
            return []
        self._forget_moving(add)
        return self._lines()

    def _forget_moving(self, add: Add) -> None:
        # on several ranks a shard may be 0, and the rest of its tensor is not
        own = [self._largest.get(part, torch.ones(())).cpu() for part in self._parameters]
        largest = add(torch.stack(own)).tolist()
        for part, value in zip(list(self._parameters), largest, strict=True):
            if value != 0:  # nan, too
                del self._parameters[part]

    def _lines(self) -> list[str]:
        text = (
            f"every gradient has been 0 in {self._passes} batches, so nothing but weight decay changes it. The loss, "
            f"or a blend, may give it no weight; or its output does not depend on its weights (dead units, clamped "
            f"values)."
        )
        parts, self._parameters = list(self._parameters), {}
        self._told.update(parts)
        return [f"{part}: {text}" for part in parts]


def _largest_of(gradient: Tensor) -> Tensor:
    values = gradient.detach()
    if values.is_sparse:
        values = values.coalesce().values()
    return values.abs().max().float() if values.numel() else torch.zeros((), device=values.device)
