"""Transforms of single samples, from the config: a few of our own, or any callable by its dotted path."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, at, check_number, unknown
from hybrid_lightning.importing import check_arguments, resolve

Transform = Callable[[Tensor], Any]


class RandomFlip:
    """Mirrors a sample along one dimension.

    Args:
        p: Probability.
        dim: The dimension, counted from the last one: -1 is left and right in an image.
    """

    def __init__(self, p: float = 0.5, dim: int = -1) -> None:
        check_number(p, "RandomFlip.p", 0, 1)
        self.p, self.dim = p, dim

    def __call__(self, value: Tensor) -> Tensor:
        """Any shape; stays as it is."""
        return value.flip(self.dim) if float(torch.rand(())) < self.p else value


class RandomCrop:
    """Cuts a window out of a sample, at a random place.

    Args:
        size: Sides of the window, one per dimension after the channels; one number stands for all.
        padding: Zeros added on each side of each of these dimensions before.
    """

    def __init__(self, size: int | Sequence[int], padding: int = 0) -> None:
        for side in [size] if isinstance(size, int) else size:
            check_number(side, "RandomCrop.size", 1)
        check_number(padding, "RandomCrop.padding", 0)
        self.size, self.padding = size, padding

    def __call__(self, value: Tensor) -> Tensor:
        """`(C, ...)` → `(C, *size)`."""
        dimensions = value.ndim - 1
        sizes = [self.size] * dimensions if isinstance(self.size, int) else list(self.size)
        value = functional.pad(value, [self.padding] * 2 * dimensions)
        room = [side - size for side, size in zip(value.shape[1:], sizes, strict=True)]
        if min(room) < 0:
            raise ValueError(f"a window of {sizes} does not fit into {list(value.shape[1:])}")
        for dim, (space, size) in enumerate(zip(room, sizes, strict=True), 1):
            value = value.narrow(dim, int(torch.randint(space + 1, ())), size)
        return value


class RandomResizedCrop:
    """Cuts a random window out of an image and scales it (Szegedy et al., arXiv 1409.4842, section 6).

    Area and aspect are drawn until the window fits, ten times at most; then the whole image is taken.

    Args:
        size: Height and width of the result in pixels; one number stands for both.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width ÷ height, drawn on a logarithmic scale.
    """

    def __init__(
        self, size: int | Sequence[int], scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (0.75, 4 / 3)
    ) -> None:
        self.size = [size, size] if isinstance(size, int) else list(size)
        for side in self.size:
            check_number(side, "RandomResizedCrop.size", 1)
        for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
            check_number(low, f"RandomResizedCrop.{name}", 0, above_low=True)
            check_number(high, f"RandomResizedCrop.{name}", low)
        self.scale, self.ratio = tuple(scale), torch.tensor(ratio).log()

    def __call__(self, image: Tensor) -> Tensor:
        """`(C, H, W)` → `(C, *size)`."""
        top, left, height, width = self._window(*image.shape[1:])
        window = image[:, top : top + height, left : left + width]
        return functional.interpolate(window[None], self.size, mode="bilinear", antialias=True)[0]

    def _window(self, height: int, width: int) -> tuple[int, int, int, int]:
        for _ in range(10):
            share, aspect, down, right = torch.rand(4).tolist()
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = float((self.ratio[0] + aspect * (self.ratio[1] - self.ratio[0])).exp())
            high, wide = max(1, round((area / ratio) ** 0.5)), max(1, round((area * ratio) ** 0.5))
            if high <= height and wide <= width:
                return int(down * (height - high + 1)), int(right * (width - wide + 1)), high, wide
        return 0, 0, height, width


class Normalize:
    """``(value - mean) / std``, per channel; a part's own ``normalize`` does this for pretrained weights.

    Args:
        mean: One value per channel.
        std: One value per channel, above 0.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for value in std:
            check_number(value, "Normalize.std", 0, above_low=True)
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(self, value: Tensor) -> Tensor:
        """`(C, ...)` → `(C, ...)`."""
        shape = [-1] + [1] * (value.ndim - 1)
        return (value - self.mean.view(shape)) / self.std.view(shape)


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "RandomFlip": RandomFlip,
    "RandomCrop": RandomCrop,
    "RandomResizedCrop": RandomResizedCrop,
    "Normalize": Normalize,
}
"""Names that an item of a list of transforms may take without a dot."""


class Transforms:
    """Transforms of one sample, in turn.

    Random ones should draw from torch, which is seeded for each sample, so that a resumed fit repeats them. One that
    keeps a random state of its own and has ``set_random_state`` (MONAI) gets a seed drawn from torch before each call.

    Args:
        steps: Called with a tensor; each returns one.
        where: Config path of the list, for errors.
    """

    def __init__(self, steps: Sequence[Transform], where: str) -> None:
        self.steps, self.where = list(steps), where

    def __len__(self) -> int:
        return len(self.steps)

    def __call__(self, value: Tensor) -> Tensor:
        """A sample without batch dimension → a tensor of any shape.

        Raises:
            ConfigError: If a transform fails, or returns no tensor.
        """
        for index, step in enumerate(self.steps):
            value = self._apply(step, value, f"{self.where}.{index}")
        return value

    @staticmethod
    def _apply(step: Transform, value: Tensor, where: str) -> Tensor:
        name = getattr(step, "__name__", type(step).__name__)
        seeded = getattr(step, "set_random_state", None)
        if callable(seeded):
            seeded(seed=int(torch.randint(2**31, ())))
        try:
            result = step(value)
        except Exception as error:  # somebody else's code may raise anything
            raise ConfigError(f"{where}: {name} fails on a tensor {tuple(value.shape)}: {str(error)[:300]}") from error
        if not isinstance(result, Tensor):
            shape = getattr(result, "shape", None)
            raise ConfigError(
                f"{where}: {name} returns a {type(result).__name__}{f' {tuple(shape)}' if shape is not None else ''} "
                f"for a tensor {tuple(value.shape)}. A transform takes a tensor and returns one; add a step that "
                f"converts, or write a function that calls it and name that one."
            )
        return result.as_subclass(Tensor)  # subclasses with their own metadata do not stack


def make_transforms(items: Any, where: str) -> Transforms:
    """Transforms from the config.

    Args:
        items: A list; each item is a name, or ``{class_path: ..., init_args: {...}}``. A name is one of `TRANSFORMS`,
            or the dotted path of a class, or of a function from tensor to tensor. Or a callable itself.
        where: Config path of the list, for errors.

    Raises:
        ConfigError: If a name is unknown, or the arguments do not fit.
    """
    return Transforms(make_steps(items, where, TRANSFORMS), where)


def make_steps(items: Any, where: str, names: Mapping[str, Callable[..., Any]]) -> list[Any]:
    """The callables behind a list of the config, see `make_transforms`.

    Args:
        items: The list.
        where: Config path of the list, for errors.
        names: What a name without a dot may be.
    """
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise ConfigError(f"{where}: {items!r} is no list. Write such as [{{class_path: {next(iter(names))}}}].")
    return [_make_step(item, f"{where}.{index}", names) for index, item in enumerate(items)]


def _make_step(item: Any, where: str, names: Mapping[str, Callable[..., Any]]) -> Any:
    if callable(item):  # the command line makes objects of paths that it can import
        return item
    given = {"class_path": item} if isinstance(item, str) else item
    if not isinstance(given, Mapping) or not isinstance(given.get("class_path"), str):
        raise ConfigError(f"{where}: {item!r} is neither a name nor {{class_path: ..., init_args: {{...}}}}.")
    for word in given:
        if word not in ("class_path", "init_args"):
            raise unknown(where, "key", str(word), ["class_path", "init_args"])
    path, arguments = given["class_path"], given.get("init_args") or {}
    if "." not in path and path not in names:
        raise unknown(where, "name", path, names)
    if path.startswith("kornia.") and find_spec("kornia") is None:
        raise ConfigError(f"{where}: {path!r} needs kornia. Install it with: pip install 'hybrid_lightning[kornia]'")
    with at(where):
        found = resolve(path, names)
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"{where}.init_args: {arguments!r} are no names and values.")
    built = {name: _nested(value, f"{where}.{name}", names) for name, value in arguments.items()}
    if not isinstance(found, type):
        return partial(found, **built) if built else found
    check_arguments(found, built, where)
    try:
        return found(**built)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except Exception as error:  # somebody else's code may raise anything
        raise ConfigError(f"{where}: {path!r} refuses {dict(arguments)!r:.200}: {str(error)[:300]}") from error


def _nested(value: Any, where: str, names: Mapping[str, Callable[..., Any]]) -> Any:
    """Arguments may hold transforms of their own, such as those of a random choice."""
    if isinstance(value, Mapping) and "class_path" in value:
        return _make_step(value, where, names)
    if isinstance(value, list):
        return [_nested(one, f"{where}.{index}", names) for index, one in enumerate(value)]
    return value
