"""How a part's module is called with what the part reads."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


def run_module(module: Callable[..., Any], inputs: list[Any], scale: nn.Module | None) -> Any:
    """What a part's module returns: a lone dict is passed as keyword arguments, and images on the part's own scale."""
    if scale is not None:
        inputs = scaled(inputs, scale)
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        return module(**inputs[0])
    return module(*inputs)


def scaled(inputs: list[Any], scale: nn.Module) -> list[Any]:
    """The inputs of a part with its images, the first of them, on the part's own scale."""
    return [scale(inputs[0]), *inputs[1:]] if isinstance(inputs[0], Tensor) else inputs
