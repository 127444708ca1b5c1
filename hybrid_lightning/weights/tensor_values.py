"""Whether a tensor of a file can take the place of a model's: torch casts, and takes any values."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parameter import is_lazy

from hybrid_lightning.errors import ConfigError, listing

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types that values may be converted between; torch has no arithmetic for shorter ones."""


def unfit(name: str, given: Any, own: Tensor, is_finite: bool = True) -> str | None:
    """What is wrong with a tensor of a file in the place of `own`, such as ``holds nan``; shapes are not compared.

    With `is_finite` False its values may be any.
    """
    if not isinstance(given, Tensor):
        return f"is a {type(given).__name__}, not a tensor"
    given, own = _local(given), _local(own)
    if not is_dense(given):
        return "is not a plain tensor"
    if not is_lazy(own) and _kind(given) != _kind(own):
        return f"holds {given.dtype}, not {own.dtype}"
    if not is_finite:
        return None
    low, high = value_range(given)
    if not (math.isfinite(low) and math.isfinite(high)) and (is_lazy(own) or _is_finite(own)):
        return "holds values that are not finite"
    if name.endswith("running_var") and low < 0:
        return "holds negative variances"
    if name.endswith("selection.shares") and low < 0:
        return "holds negative shares"
    if name.endswith(".std") and low <= 0 and given.numel() and value_range(own)[0] > 0:
        return "holds deviations that are not above zero"
    return None


def refuse_unfit(given: Mapping[str, Any], own: Mapping[str, Any], what: str, place: str = "") -> None:
    """Raises `ConfigError` if tensors of a file, `what`, cannot take the place of those of the same names."""
    problems = []
    for name, tensor in own.items():
        if name not in given or not isinstance(tensor, Tensor):  # extra state of a module may be anything
            continue
        if getattr(given[name], "shape", tensor.shape) != tensor.shape:  # which has a message of its own
            continue
        problem = unfit(name, given[name], tensor)
        if problem:
            problems.append(f"{name} {problem}")
    if problems:
        raise ConfigError(f"{what} is damaged: {listing(problems, 4)}. Use another one.", place)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's values lie in memory of its own, all of them, as compiled code takes for granted."""
    if not is_dense(tensor):
        return False
    end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    return end <= tensor.untyped_storage().nbytes()


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor has values in memory that can be copied one by one."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return False
    return not (tensor.is_meta or tensor.is_nested or tensor.is_quantized)


def value_range(tensor: Tensor) -> tuple[float, float]:
    """The least and the greatest value of a plain tensor, nan if it holds one; zeros for what cannot hold one."""
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if not values.numel() or not values.is_floating_point():
        return 0.0, 0.0
    if values.dtype not in FLOATS:
        values = values.float()
    low, high = torch.aminmax(values)
    return float(low), float(high)


def _is_finite(tensor: Tensor) -> bool:
    return all(map(math.isfinite, value_range(tensor)))


def _kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "bool"
    if tensor.is_complex():
        return "complex"
    return "float" if tensor.is_floating_point() else "integer"


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
