"""Entries of a batch: a tensor, or a dict of tensors."""

from collections.abc import Callable

from torch import Tensor

Tensors = Tensor | dict[str, Tensor]


def map_tensors(function: Callable[[Tensor], Tensor], value: Tensors) -> Tensors:
    """Applies a function to a tensor, or to each one of a dict."""
    if isinstance(value, dict):
        return {name: function(tensor) for name, tensor in value.items()}
    return function(value)


def per_sample(numbers: Tensor, values: Tensor) -> Tensor:
    """`(B,)` → `(B, 1, ...)`, with as many dimensions as `values`."""
    return numbers.view(-1, *[1] * (values.ndim - 1))
