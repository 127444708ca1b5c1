"""Transforms of single samples, from the config: a few of our own, or any callable by its dotted path."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, at, check_number
from hybrid_lightning.importing import ClassSpec, check_arguments, import_extra, resolve

Step = Callable[[Tensor], Any]
Names = Mapping[str, Callable[..., Any]]


class RandomFlip(nn.Module):
    """Mirrors a sample along one dimension.

    Args:
        p: Probability.
        dim: The dimension, counted from the last one: -1 is left and right in an image.
    """

    def __init__(self, p: float = 0.5, dim: int = -1) -> None:
        super().__init__()
        check_number(p, "p", 0, 1)
        self.p = p
        self.dim = dim

    def forward(self, value: Tensor) -> Tensor:
        """Any shape, which it keeps."""
        return value.flip(self.dim) if float(torch.rand(())) < self.p else value


class RandomCrop:
    """Cuts a window out of a sample of any dimensions, at a random place.

    Args:
        size: Sides of the window, one per dimension after the channels; one number stands for all.
        padding: Zeros added on each side of each of these dimensions before.
    """

    def __init__(self, size: int | Sequence[int], padding: int = 0) -> None:
        for side in [size] if isinstance(size, int) else size:
            check_number(side, "size", 1)
        check_number(padding, "padding", 0)
        self.size = size
        self.padding = padding

    def __call__(self, value: Tensor) -> Tensor:
        """`(C, ...)` → `(C, *size)`."""
        dimensions = value.ndim - 1
        window = [self.size] * dimensions if isinstance(self.size, int) else list(self.size)
        value = functional.pad(value, [self.padding] * 2 * dimensions)
        sides = value.shape[1:]
        room = [side - size for side, size in zip(sides, window, strict=True)]
        if min(room) < 0:
            raise ValueError(f"a window of {window} does not fit into {list(sides)}")
        for dim, size in enumerate(window, start=1):
            start = int(torch.randint(room[dim - 1] + 1, ()))
            value = value.narrow(dim, start, size)
        return value


class Normalize:
    """``(value - mean) / std``, per channel; a part's own ``normalize`` does this for pretrained weights.

    Args:
        mean: One value per channel.
        std: One value per channel, above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for value in std:
            check_number(value, "std", 0, above_low=True)
        self.mean = torch.tensor(mean)
        self.std = torch.tensor(std)

    def __call__(self, value: Tensor) -> Tensor:
        """`(C, ...)` → `(C, ...)`."""
        shape = [-1] + [1] * (value.ndim - 1)
        mean = self.mean.view(shape)
        std = self.std.view(shape)
        return (value - mean) / std


# Not kornia's: its crop takes 1.7 ms a sample instead of 0.06, fills up what is too small without a word, and takes a
# series or a volume for images.
TRANSFORMS: Names = {
    "RandomFlip": RandomFlip,
    "RandomCrop": RandomCrop,
    "Normalize": Normalize,
}
"""Names that an item of a list of transforms may take without a dot."""


def apply_steps(value: Tensor, steps: Sequence[Step]) -> Tensor:
    """A sample without batch dimension after all transforms, a tensor of any shape.

    Random ones should draw from torch, which is seeded for each sample, so that a resumed run repeats them. One that
    keeps a random state of its own and has ``set_random_state`` (MONAI) gets a seed drawn from torch before each call.
    """
    for index, step in enumerate(steps):
        seed = getattr(step, "set_random_state", None)
        if callable(seed):
            seed(seed=int(torch.randint(2**31, ())))
        with at(str(index)):
            value = apply_step(step, value)
    return value


def apply_step(step: Step, value: Tensor) -> Tensor:
    """The tensor that a transform returns; `ConfigError` if it fails, or returns something else."""
    name = getattr(step, "__name__", type(step).__name__)
    shape = tuple(value.shape)
    try:
        result = step(value)
    except Exception as error:  # third-party code may raise any exception
        raise ConfigError(f"{name} fails on a tensor {shape}: {str(error)[:300]}") from error
    if not isinstance(result, Tensor):
        raise ConfigError(
            f"{name} returns a {type(result).__name__} for a tensor {shape}. A transform takes a tensor and returns "
            f"one; add a step that converts, or write a function that calls it and name that one."
        )
    return result.as_subclass(Tensor)  # subclasses with their own metadata do not stack


def make_steps(items: Any, names: Names = TRANSFORMS) -> list[Step]:
    """Transforms of a list of names, ``{class_path: ..., init_args: {...}}`` or callables.

    A name is one of `names`, or the dotted path of a class, or of a function from tensor to tensor.
    """
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise ConfigError(f"{items!r} is not a list. Write such as [{{class_path: {next(iter(names))}}}].")
    steps = []
    for index, item in enumerate(items):
        with at(str(index)):
            steps.append(_make_step(item, names))
    return steps


def _make_step(item: Any, names: Names) -> Step:
    if callable(item):  # the command line makes objects of paths that it can import
        return _keeping_dimensions(item)
    spec = ClassSpec.parse(item, next(iter(names)))
    path = spec.class_path
    if path.startswith("kornia."):
        import_extra("kornia", "kornia", repr(path))
    factory = resolve(path, names, kind="name")
    with at("init_args"):
        arguments = {}
        for name, value in spec.init_args.items():
            with at(name):
                arguments[name] = _nested(value, names)
        if not isinstance(factory, type):  # a function, whose first argument is the sample
            return partial(factory, **arguments) if arguments else factory
        check_arguments(factory, arguments)
        try:
            step: Any = factory(**arguments)
        except ConfigError:
            raise
        except Exception as error:  # third-party code may raise any exception
            raise ConfigError(f"{path!r} refuses {spec.init_args!r:.200}: {str(error)[:300]}") from error
        return _keeping_dimensions(step)


def _keeping_dimensions(step: Any) -> Step:
    """A transform; one of kornia would otherwise give a single sample back as a batch of one."""
    if type(step).__module__.startswith("kornia.") and hasattr(step, "keepdim"):
        step.keepdim = True
    return step  # type: ignore[no-any-return]


def _nested(value: Any, names: Names) -> Any:
    """An argument, in which there may be transforms, such as those of a random choice."""
    if isinstance(value, Mapping) and "class_path" in value:
        return _make_step(value, names)
    if not isinstance(value, list):
        return value
    items = []
    for index, item in enumerate(value):
        with at(str(index)):
            items.append(_nested(item, names))
    return items
