"""Images on their way into a part: other numbers of channels, and the scale that its weights were trained on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError

_Convolution = nn.modules.conv._ConvNd


def adapt_channels(module: nn.Module, channels: int, where: str) -> None:
    """Gives a module's first convolution another number of input channels, made from the weights it has.

    For one channel the filters are summed over their channels, which is the same as showing a gray image on all of
    them. For others they are repeated in turn and scaled by old ÷ new, so that the outputs keep their size. Both as in
    timm's ``adapt_input_conv`` (R. Wightman, PyTorch Image Models, 2019).

    Args:
        module: Changed in place.
        channels: The new number, at least 1.
        where: Config path of the part, for errors.

    Raises:
        ConfigError: If it has no convolution, or its first one works on groups of channels.
    """
    found = next(((n, m) for n, m in module.named_modules() if isinstance(m, _Convolution)), None)
    if found is None or found[1].groups != 1 or not found[0]:
        raise ConfigError(f"{where}.channels: {type(module).__name__} has no first convolution that could be adapted.")
    first, before = found[1], found[1].in_channels
    if before == channels:
        return
    first.weight = nn.Parameter(_adapted(first.weight.detach(), channels), first.weight.requires_grad)
    first.in_channels = channels
    for owner in module.modules():  # models of transformers compare it with their input
        if getattr(owner, "num_channels", None) == before:
            owner.num_channels = channels  # type: ignore[assignment]


def _adapted(weight: Tensor, channels: int) -> Tensor:
    if channels == 1:
        return weight.sum(1, keepdim=True)
    before = weight.shape[1]
    repeated = torch.cat([weight] * math.ceil(channels / before), dim=1)[:, :channels]
    return repeated * (before / channels)


def refuse_wrong_channels(module: nn.Module, called: Sequence[nn.Module], inputs: Sequence[Any], where: str) -> None:
    """Raises `ConfigError` if a module's first convolution cannot take its input because of the channels.

    Args:
        module: The part, whose own checks may have failed before a convolution was called.
        called: Its submodules in the order of their first call.
        inputs: What it was called with.
        where: Config path of the part, for errors.
    """
    first = next((m for m in [*called, *module.modules()] if isinstance(m, _Convolution)), None)
    value = inputs[0] if inputs else None
    value = next(iter(value.values()), None) if isinstance(value, Mapping) else value
    if first is None or not isinstance(value, Tensor) or value.ndim != 2 + len(first.kernel_size):
        return
    if value.shape[1] != first.in_channels:
        raise _wrong_channels(first.in_channels, value, where)


def _wrong_channels(wanted: int, image: Tensor, where: str) -> ConfigError:
    return ConfigError(
        f"{where}: the part expects {wanted} channels, and the input {tuple(image.shape)} has {image.shape[1]}. Either "
        f"let the data give {wanted} channels, or write 'channels: {image.shape[1]}' on the part, which adapts its "
        f"first convolution."
    )


def require_channels(mean: Sequence[float], image: Any, where: str) -> None:
    """Raises `ConfigError` if an image has other channels than its scale, over which it would be spread."""
    if isinstance(image, Tensor) and image.ndim > 1 and len(mean) not in (1, image.shape[1]):
        raise _wrong_channels(len(mean), image, where)


class Normalize(nn.Module):
    """Images in [0, 1] on the scale that a part's weights were trained on: ``(image - mean) / std``, per channel.

    Args:
        mean: One value per channel.
        std: One value per channel, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, C, ...)` → `(B, C, ...)`."""
        shape = (1, -1, *[1] * (image.ndim - 2))
        return (image - self.mean.to(image.dtype).view(shape)) / self.std.to(image.dtype).view(shape)


def normalization(given: Any, facts: Mapping[str, Any], channels: int | None, where: str) -> dict[str, list[float]]:
    """Mean and standard deviation for `Normalize`, from a part's ``normalize`` and what its model says.

    Args:
        given: True takes the model's own; a dict states ``mean`` and ``std``.
        facts: The model's facts, see `preprocessing_of`.
        channels: The part's ``channels``; where they differ from the facts, each gets the mean over the facts'.
        where: Config path of the part, for errors.

    Raises:
        ConfigError: If there is nothing to take.
    """
    source = given if isinstance(given, Mapping) else facts
    if set(source) & {"mean", "std"} != {"mean", "std"}:
        raise ConfigError(
            f"{where}.normalize: the model does not say on which scale it was trained. Write "
            f"{{mean: [...], std: [...]}}, one value per channel for images in [0, 1]; or leave it out."
        )
    mean, std = ([float(v) for v in source[key]] for key in ("mean", "std"))
    if not mean or len(mean) != len(std) or min(std) <= 0:
        raise ConfigError(f"{where}.normalize: {given!r} does not hold as many values above 0 in std as in mean.")
    if channels is not None and channels != len(mean):
        mean, std = ([sum(values) / len(values)] * channels for values in (mean, std))
    return {"mean": mean, "std": std}
