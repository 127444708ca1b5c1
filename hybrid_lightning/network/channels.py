"""Images on their way into a part: other numbers of channels, and the scale that its weights were trained on."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError, listing

_Convolution = nn.modules.conv._ConvNd


def adapt_channels(module: nn.Module, channels: int) -> None:
    """Gives a module's first convolution another number of input channels, made from the weights it has.

    As in timm's ``adapt_input_conv`` (R. Wightman, PyTorch Image Models, 2019): summed for one channel, which shows a
    gray image on all of them; else repeated in turn, and scaled so that the outputs keep their size.
    """
    first = next((layer for layer in module.modules() if isinstance(layer, _Convolution)), None)
    # a module that is a convolution itself has no name to be adapted by
    if first is None or first is module or first.groups != 1:
        raise ConfigError(f"{type(module).__name__} has no first convolution that could be adapted.", "channels")
    before = first.in_channels
    if before == channels:
        return
    weight = _adapted(first.weight.detach(), channels)
    first.weight = nn.Parameter(weight, first.weight.requires_grad)
    first.in_channels = channels
    for owner in module.modules():
        # models of transformers compare it with their input
        if getattr(owner, "num_channels", None) == before:
            owner.num_channels = channels  # type: ignore[assignment]


def _adapted(weight: Tensor, channels: int) -> Tensor:
    if channels == 1:
        return weight.sum(1, keepdim=True)
    before = weight.shape[1]
    # repeated filters add up to more; the factor keeps the scale of the outputs
    repeated = torch.cat([weight] * math.ceil(channels / before), dim=1)
    return repeated[:, :channels] * (before / channels)


def refuse_wrong_channels(module: nn.Module, called: Sequence[nn.Module], inputs: Sequence[Any]) -> None:
    """Raises `ConfigError` if a module's first convolution, by its calls, cannot take the channels of its input."""
    # the module's own checks may have failed before any call
    layers = (*called, *module.modules())
    first = next((layer for layer in layers if isinstance(layer, _Convolution)), None)
    value = inputs[0] if inputs else None
    # models of transformers take a dict with the image first
    if isinstance(value, Mapping):
        value = next(iter(value.values()), None)
    if first is None or not isinstance(value, Tensor):
        return
    is_batch = value.ndim == 2 + len(first.kernel_size)
    if is_batch and value.shape[1] != first.in_channels:
        raise _wrong_channels(first.in_channels, value)


def _wrong_channels(wanted: int, image: Tensor) -> ConfigError:
    return ConfigError(
        f"the part expects {wanted} channels, and the input {tuple(image.shape)} has {image.shape[1]}. Either let the "
        f"data give {wanted} channels, or write 'channels: {image.shape[1]}' on the part, which adapts its first "
        f"convolution."
    )


def require_channels(mean: Sequence[float], image: Any) -> None:
    """Raises `ConfigError` if an image has other channels than its scale, over which it would be spread."""
    if isinstance(image, Tensor) and image.ndim > 1 and len(mean) not in (1, image.shape[1]):
        raise _wrong_channels(len(mean), image)


class Normalize(nn.Module):
    """Images in [0, 1] on the scale that a part's weights were trained on: ``(image - mean) / std``, per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """`(B, C, ...)` → `(B, C, ...)`."""
        # (1, C, 1, ...): one value per channel
        shape = (1, -1, *[1] * (image.ndim - 2))
        mean = self.mean.to(image.dtype).view(shape)
        std = self.std.to(image.dtype).view(shape)
        return (image - mean) / std


def find_scale(stated: Mapping[str, Any], channels: int | None) -> dict[str, list[float]]:
    """The arguments of `Normalize` from what a part or its model states; other `channels` get the mean over these."""
    if stated and "mean" not in stated:
        raise ConfigError("the model scales images in [0, 1] by itself. Leave it out.")
    if not stated.get("mean") or not stated.get("std"):
        raise ConfigError(
            "the model does not say on which scale it was trained. Write {mean: [...], std: [...]}, one value per "
            "channel for images in [0, 1]; or leave it out, if the module scales its input itself."
        )
    mean = [float(value) for value in stated["mean"]]
    std = [float(value) for value in stated["std"]]
    if len(mean) != len(std) or min(std) <= 0:
        raise ConfigError(f"{mean} and {std}: std does not hold as many values above 0 as mean has.")
    if channels is not None and channels != len(mean):
        mean = [sum(mean) / len(mean)] * channels
        std = [sum(std) / len(std)] * channels
    return {"mean": mean, "std": std}


def values_beyond(inputs: Sequence[Any]) -> str:
    """The range of a part's images `(B, C, H, W)`, the first of its inputs, in words; empty if it is within [0, 1]."""
    image = inputs[0] if inputs else None
    if not isinstance(image, Tensor) or image.ndim != 4 or not image.numel():
        return ""
    low, high = float(image.min()), float(image.max())
    # interpolation may go a little beyond
    return "" if low >= -0.01 and high <= 1.01 else f"values from {low:.4g} to {high:.4g}"


def refuse_other_scale(stated: Mapping[str, Any], inputs: Sequence[Any]) -> None:
    """Raises `ConfigError` if images are not in [0, 1], which a part that says nothing about it takes them to be."""
    beyond = values_beyond(inputs)
    if beyond:
        raise ConfigError(
            f"the images of the first batch have {beyond}, and the published weights were trained on images in [0, 1], "
            f"less {listing(map(str, stated['mean']))}, divided by {listing(map(str, stated['std']))}. Let the data "
            f"give [0, 1], and this is done; or write 'normalize: false' if they are on that scale already."
        )
