"""Images: a file per sample → `(C, H, W)`, float32 in [0, 1]."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.inputs.base import Value, check_name
from hybrid_lightning.data.inputs.files import FileInput, check_size
from hybrid_lightning.errors import check_choice
from hybrid_lightning.importing import import_extra

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageInput(FileInput):
    """An image per sample, read with Pillow and turned as its EXIF data say.

    Gray, RGB and palette images with 8 bits are divided by 255, gray ones with 16 bits by 65535; transparency is
    dropped; floating images (TIFF) have to lie in [0, 1]. Pillow reads color with 16 bits per channel as 8 bits, or
    refuses it; store it as an array. Resized with Pillow's antialiased bilinear filter.

    Args:
        image: Name of the column of paths.
        size: Height and width in pixels; one number stands for both. None leaves images as they are, which then have
            to be equally large within a batch.
        channels: 3, where gray becomes three equal channels, or 1, where colors become their luma (ITU-R 601-2).
        resize: How other shapes become `size`. ``crop``: scaled until it covers it, and cut at the centre, which keeps
            the aspect; ``pad``: scaled until it fits into it, with black beside it, which loses nothing; ``stretch``:
            scaled to it, which changes the aspect.
        train: Transforms of each training sample, a tensor `(C, H, W)`, see `make_steps`.
        eval: Transforms of each sample otherwise.
    """

    def __init__(
        self,
        key: str,
        image: Any,
        size: Any = None,
        channels: Any = 3,
        resize: Any = "crop",
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, check_name(image, "image"), train, eval)
        self.size = check_size(size, ("height", "width"))
        self.channels = check_choice(channels, "channels", (1, 3))
        self.resize = check_choice(resize, "resize", ("crop", "pad", "stretch"))
        import_extra("PIL.Image", "data", "an image")

    def load(self, path: Path, training: bool) -> Tensor:
        """`(C, H, W)`; of 8 bits as uint8, which is joined faster, otherwise and for transforms float32 in [0, 1]."""
        from PIL import Image, ImageOps

        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.array(self._resized(self._converted(image)))
        value = torch.from_numpy(pixels)
        if value.dtype != torch.uint8:
            value.clamp_(0, 1)  # interpolation may leave [0, 1] by a rounding error
        elif self.transforms["train" if training else "eval"]:
            value = _unit(value)
        if value.ndim == 3:
            return value.permute(2, 0, 1)
        return value.expand(self.channels, *value.shape)

    def collate(self, values: Sequence[Value | None], placeholder: Value) -> Tensor:
        """`(B, C, H, W)`, float32 in [0, 1]."""
        dtypes = {value.dtype for value in values if isinstance(value, Tensor)}
        if len(dtypes) > 1:  # files of 8 and of 16 bits
            values = [_unit(value) if isinstance(value, Tensor) else None for value in values]
        joined = super().collate(values, placeholder)
        assert isinstance(joined, Tensor)
        return _unit(joined)

    def _converted(self, image: "Image") -> "Image":
        """An image of mode ``L``, ``RGB``, or ``F`` in [0, 1]; gray stays gray until it is resized, which is faster."""
        if image.mode == "F" or image.mode.startswith("I"):
            return _plane(image)
        is_gray = self.channels == 1 or image.mode in ("1", "L", "LA", "La")
        mode = "L" if is_gray else "RGB"
        return image if image.mode == mode else image.convert(mode)

    def _resized(self, image: "Image") -> "Image":
        from PIL import Image

        if self.size is None:
            return image
        height, width = self.size
        if image.size == (width, height):
            return image
        bilinear = Image.Resampling.BILINEAR
        # old pixels per new one
        across = image.width / width
        down = image.height / height
        if self.resize == "stretch":
            return image.resize((width, height), bilinear)
        if self.resize == "crop":
            scale = min(across, down)
            left = (image.width - scale * width) / 2
            top = (image.height - scale * height) / 2
            box = (left, top, image.width - left, image.height - top)
            return image.resize((width, height), bilinear, box=box)
        scale = max(across, down)
        inner_width = max(1, round(image.width / scale))
        inner_height = max(1, round(image.height / scale))
        padded = Image.new(image.mode, (width, height))
        corner = ((width - inner_width) // 2, (height - inner_height) // 2)
        padded.paste(image.resize((inner_width, inner_height), bilinear), corner)
        return padded

    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """Channels, height and width as stored."""
        from PIL import Image

        with Image.open(path) as image:
            return len(image.getbands()), image.height, image.width


def _unit(value: Tensor) -> Tensor:
    return value.float().div_(255) if value.dtype == torch.uint8 else value


def _plane(image: "Image") -> "Image":
    """A gray image of more than 8 bits as a floating one in [0, 1]."""
    from PIL import Image

    array = np.asarray(image)
    if image.mode != "F":
        array = array.astype(np.float32) / 65535
    lowest, highest = array.min(), array.max()
    if not (lowest >= 0 and highest <= 1):  # written so that nan is refused too
        raise ValueError(
            f"its pixels go from {lowest:g} to {highest:g}, of which 0 to 1 is possible (for whole numbers, as shares "
            f"of 65535). Rescale them, or store them as an array and read it as 'array'."
        )
    return Image.fromarray(array)
