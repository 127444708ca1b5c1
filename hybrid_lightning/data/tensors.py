"""Entries of a batch: a tensor, or a dict of tensors; and what data and network call alike in them."""

from collections.abc import Callable

from torch import Tensor

Tensors = Tensor | dict[str, Tensor]
PRESENT = "present"
"""Which of a sample's files are there, `(B, K)` bool, in an entry of a batch that has several per sample."""
PART_POOL = "part_pool"
"""Among the arguments that data offer to parts: the ``pool`` of those that make maps `(B, C, H, W)` and state none."""
FILES_POOL = "files_pool"
"""Among them: how the features of several files per sample are pooled, one of `FILES_POOLS`."""
FILES_POOLS = ("mean", "max")


def map_tensors(function: Callable[[Tensor], Tensor], value: Tensors) -> Tensors:
    """Applies a function to a tensor, or to each one of a dict."""
    if isinstance(value, dict):
        return {name: function(tensor) for name, tensor in value.items()}
    return function(value)


def per_sample(numbers: Tensor, values: Tensor) -> Tensor:
    """`(B,)` → `(B, 1, ...)`, with as many dimensions as `values`."""
    return numbers.view(-1, *[1] * (values.ndim - 1))
