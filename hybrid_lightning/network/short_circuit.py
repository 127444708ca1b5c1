"""Running a module from its middle on: the output of a module within it is given, and what comes before is not run."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hybrid_lightning.network.calling import replaced_forwards, run_module
from hybrid_lightning.network.image_layout import is_channels_last

_DONE = object()


def place_in(part: str, path: str) -> str:
    """The key of what a cache keeps of a part at a module within it."""
    return f"{part}/{path}"


def part_of(place: str) -> str:
    """The part of such a key, or of a part's name, which stands for its output."""
    return place.split("/")[0]


def is_inside(place: str) -> bool:
    """Whether it is a place within a part."""
    return "/" in place


def parts_of(places: Collection[str]) -> set[str]:
    """The parts of such keys."""
    return {part_of(place) for place in places}


@dataclass(frozen=True)
class Like:
    """The layout of a tensor: each size is `constant + samples * growth`."""

    constant: tuple[int, ...]
    growth: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_channels_last: bool = False

    @property
    def has_samples_first(self) -> bool:
        """Whether its first dimension, and no other, is that of the samples."""
        others = any(self.growth[1:])
        return self.growth[:1] == (1,) and self.constant[0] == 0 and not others

    @property
    def bytes(self) -> int:
        """Size of a sample, for a tensor with the samples first."""
        return math.prod(self.constant[1:]) * self.dtype.itemsize

    def made(self, samples: int, number: float) -> Tensor:
        """A tensor that takes no memory, of a single value."""
        sizes = [size + samples * more for size, more in zip(self.constant, self.growth, strict=True)]
        if not self.dtype.is_floating_point:
            number = 0 if math.isnan(number) else number
        value = torch.full((), number, dtype=self.dtype, device=self.device)
        return value.expand(sizes)


def layout(of_two: Any, of_three: Any) -> Any:
    """A value with `Like` for each tensor, from those for two and three samples; `ValueError` if that fails."""
    return pytree.tree_map(_like, of_two, of_three)


def _like(two: Any, three: Any) -> Any:
    if not isinstance(two, Tensor):
        if two is not three and two != three:
            raise ValueError(f"{two!r:.50} becomes {three!r:.50} with one sample more")
        return two
    growth = [more - size for size, more in zip(two.shape, three.shape, strict=True)]
    constant = [size - 2 * more for size, more in zip(two.shape, growth, strict=True)]
    return Like(tuple(constant), tuple(growth), two.dtype, two.device, is_channels_last(two))


def tensors_in_tree(value: Any) -> list[Tensor]:
    """The tensors of a value of nested containers."""
    leaves = pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def likes_in(value: Any) -> list[Like]:
    """The layouts in a value of `layout`."""
    leaves = pytree.tree_leaves(value)
    return [leaf for leaf in leaves if isinstance(leaf, Like)]


@dataclass(frozen=True)
class ShortCircuit:
    """The start of a module, up to the end of a module within it, which is called once.

    Whoever makes one makes sure that what comes later depends on the start by the output of the boundary alone.
    """

    boundary: str
    """Name of the last module of the start."""
    inputs: list[Any]
    """Layout of the module's positional arguments; a lone dict is passed as keyword arguments."""
    returned: Mapping[str, Sequence[Any]]
    """Name of each module that the start calls → layouts of what its calls return, without those that these call."""
    tensors: Sequence[str]
    """Names of the parameters and buffers that the start depends on."""

    @property
    def kept(self) -> Like:
        """The layout of the output of the boundary."""
        [like] = likes_in(self.returned[self.boundary][0])
        return like

    def capture(self, module: nn.Module, inputs: list[Any], scale: nn.Module | None = None) -> Tensor:
        """The output of the boundary `(B, ...)` for inputs of the module, which is run up to there."""

        def stop(_module: nn.Module, _inputs: Any, output: Any) -> None:
            raise _ReachedError(output)

        boundary = module.get_submodule(self.boundary)
        # before hooks that may change the output, as they will run again on what was kept
        hook = boundary.register_forward_hook(stop, prepend=True)
        try:
            run_module(module, inputs, scale)
        except _ReachedError as reached:
            [tensor] = tensors_in_tree(reached.output)
            return tensor
        finally:
            hook.remove()
        raise RuntimeError(f"{self.boundary} was not called")

    def run(self, module: nn.Module, kept: Tensor, number: float = math.nan) -> Any:
        """What the module returns if the output of the boundary is `kept` `(B, ...)`.

        What the start would read or return elsewhere is filled with `number`, integers with 0 if it is nan.
        """
        # nan shows itself wherever something else of the start is used, also through a gate that is closed
        samples = len(kept)

        def placeholder(leaf: Any) -> Any:
            return leaf.made(samples, number) if isinstance(leaf, Like) else leaf

        def activation(leaf: Any) -> Any:
            if not isinstance(leaf, Like):
                return leaf
            # a copy, as what follows may work in place, and a batch may be used twice
            layout = torch.channels_last if leaf.is_channels_last else torch.preserve_format
            return kept.clone(memory_format=layout)

        replaying = {}
        for name, layouts in self.returned.items():
            fill = activation if name == self.boundary else placeholder
            results = [pytree.tree_map(fill, one) for one in layouts]
            layer = module.get_submodule(name)
            replaying[layer] = _replaying(results, layer.forward)
        with replaced_forwards(replaying):
            return run_module(module, pytree.tree_map(placeholder, self.inputs), None)

    def replayed(self, module: nn.Module) -> list[nn.Module]:
        """The modules within `module` that `run` does not run."""
        return [module.get_submodule(name) for name in self.returned]


class _ReachedError(Exception):
    def __init__(self, output: Any) -> None:
        super().__init__("the boundary is reached")
        self.output = output


def _replaying(results: Sequence[Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A function that returns these results, one per call, and then what the original one does."""
    waiting = iter(results)

    def forward(*args: Any, **kwargs: Any) -> Any:
        result = next(waiting, _DONE)
        return original(*args, **kwargs) if result is _DONE else result

    return forward
