"""How a part's module is called with what the part reads, and why that may fail."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.batch import tensors_in


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


@contextmanager
def replaced_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within it, calls of these modules run these functions in place of their own forward; hooks run as ever."""
    before = {module: vars(module).get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            # not an attribute of the module, so that checkpoints and exports do not see it
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own


def refuse_other_precision(module: nn.Module, inputs: Iterable[Any]) -> None:
    """Raises `ConfigError` if all floats of a module's inputs have another precision than all of its weights."""
    own = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    given = {tensor.dtype for tensor in tensors_in(inputs) if tensor.is_floating_point()}
    if own and given and own.isdisjoint(given):
        weights, values = _names(own), _names(given)
        raise ConfigError(
            f"the weights of {type(module).__name__} are {weights}, its inputs {values}. Convert the values in the "
            f"data, or a live module with .to(torch.{values}); trainer.precision 64-true makes all float64."
        )


def _names(dtypes: Iterable[torch.dtype]) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
