"""Modules whose tensors get their shapes from the first batch (``torch.nn.Lazy...``), and modules that grow."""

from collections.abc import Mapping
from itertools import chain

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from hybrid_lightning.errors import ConfigError, listing

_WITHOUT_SHAPE = (UninitializedParameter, UninitializedBuffer)
Shapes = Mapping[str, list[int]]


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict(chain(module.named_parameters(), module.named_buffers()))


def names_of_tensors(module: nn.Module) -> dict[str, bool]:
    """Name → whether it still lacks a shape, of all parameters and buffers."""
    return {name: isinstance(tensor, _WITHOUT_SHAPE) for name, tensor in _tensors(module).items()}


def shapes_found(module: nn.Module, before: Mapping[str, bool]) -> dict[str, list[int]] | None:
    """Name → shape of the tensors that had none before a dry run; None if all had one.

    `before` is what `names_of_tensors` gave then. Raises `ConfigError` if the module has other tensors now, or if some
    lack a shape still: it could be trained, and never be rebuilt.
    """
    tensors = _tensors(module)
    added = [name for name in tensors if name not in before]
    if added:
        raise ConfigError(
            f"{type(module).__name__} makes {listing(added)} when it is first called, so a checkpoint could not be "
            f"loaded into a new one. Make them in __init__, or with the Lazy modules of torch.nn."
        )
    left = [name for name, lacks_shape in names_of_tensors(module).items() if lacks_shape]
    if left:
        raise ConfigError(
            f"{type(module).__name__} has {listing(left)} without a shape, because its forward does not use them. "
            f"Remove them, or use them."
        )
    return {name: list(tensors[name].shape) for name, lacked in before.items() if lacked} or None


def give_shapes(module: nn.Module, shapes: Shapes) -> None:
    """Gives tensors without a shape the recorded one; their values follow from a checkpoint."""
    tensors = _tensors(module)
    for name, tensor in tensors.items():
        if isinstance(tensor, _WITHOUT_SHAPE):
            if name not in shapes:
                raise ConfigError(f"the record of the network lacks the shape of {name!r}. Use another checkpoint.")
            tensor.materialize(tuple(shapes[name]))
