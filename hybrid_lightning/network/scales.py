"""On which scale the images of a part are put, and what is said if they are on another one."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hybrid_lightning.errors import at
from hybrid_lightning.network.channels import find_scale, refuse_other_scale, values_beyond
from hybrid_lightning.network.libraries import family_of, published_scale
from hybrid_lightning.network.part import Part


def scale_of(
    part: Part,
    module: nn.Module,
    factory: Callable[..., Any] | None,
    inputs: list[Any],
) -> dict[str, list[float]] | None:
    """The mean and deviation by which a part's images are scaled; None leaves them."""
    if part.normalize is False:
        return None
    stated = part.normalize
    if not isinstance(stated, Mapping):
        stated = published_scale(part.module, module, factory)
    with at("normalize"):
        if part.normalize is None:
            if not _is_published_image_part(part, inputs) or not stated.get("mean") or not stated.get("std"):
                return None
            refuse_other_scale(stated, inputs)
        return find_scale(stated, part.channels)


def remark_on_scale(part: Part, module: nn.Module, inputs: list[Any]) -> str:
    """A line if a pretrained part that takes images in [0, 1] gets others; empty if not."""
    takes_unit = bool(part.normalize) or hasattr(module, "preprocessing")
    beyond = values_beyond(inputs) if takes_unit and part.origin == "pretrained" else ""
    return beyond and f"the images of the first batch have {beyond}, and its weights are for images in [0, 1]"


def _is_published_image_part(part: Part, inputs: list[Any]) -> bool:
    # other weights, from a file, may have been trained on any scale
    is_published = part.weights == "pretrained" and family_of(part.module) in ("timm", "torchvision")
    image = inputs[0] if len(inputs) == 1 else None
    return is_published and isinstance(image, Tensor) and image.ndim == 4
