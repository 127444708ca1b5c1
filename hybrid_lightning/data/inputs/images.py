"""Images: a file per sample → `(C, H, W)`, float32 in [0, 1]."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.inputs.base import Value
from hybrid_lightning.data.inputs.checks import check_choice, check_column, check_size
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

_MODES = {1: "L", 3: "RGB"}


class ImageInput(FileInput):
    """An image per sample, read with Pillow and turned as its EXIF data say.

    Gray, RGB and palette images with 8 bits are divided by 255, gray ones with 16 bits by 65535; transparency is
    dropped; floating images (TIFF) have to lie in [0, 1]. Pillow reads color with 16 bits per channel as 8 bits, or
    refuses it; store it as an array. Resized with Pillow's antialiased bilinear filter.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        image: Name of the column of paths.
        size: Height and width in pixels; one number stands for both. None leaves images as they are, which then have
            to be equally large within a batch.
        channels: 3, where gray becomes three equal channels, or 1, where colors become their luma (ITU-R 601-2).
        resize: How other shapes become `size`. ``crop``: scaled until it covers it, and cut at the centre, which keeps
            the aspect; ``pad``: scaled until it fits into it, with black beside it, which loses nothing; ``stretch``:
            scaled to it, which changes the aspect.
        train: Transforms of each training sample, a tensor `(C, H, W)`, see `make_transforms`.
        eval: Transforms of each sample otherwise.

    Raises:
        ConfigError: If Pillow (extra ``data``) is missing, or an option is impossible.
    """

    def __init__(
        self,
        key: str,
        where: str,
        image: Any,
        size: Any = None,
        channels: Any = 3,
        resize: Any = "crop",
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, where, check_column(image, f"{where}.image"), train, eval)
        self.size = check_size(size, f"{where}.size", ("height", "width"))
        self.channels = check_choice(channels, f"{where}.channels", tuple(_MODES))
        self.resize = check_choice(resize, f"{where}.resize", ("crop", "pad", "stretch"))
        try:
            import PIL  # noqa: F401
        except ModuleNotFoundError:
            raise ConfigError(
                f"{where}: images are read with Pillow, which is missing. Install it with: "
                f"pip install 'hybrid_lightning[data]'"
            ) from None

    def load(self, path: Path, training: bool) -> Tensor:
        """`(C, H, W)`; of 8 bits as uint8, which is joined faster, otherwise float32 in [0, 1]."""
        from PIL import Image, ImageOps

        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            value = torch.from_numpy(np.array(self._resized(self._converted(image))))
        value = value if value.dtype == torch.uint8 else value.clamp_(0, 1)  # resizing leaves them by a rounding
        return value.permute(2, 0, 1) if value.ndim == 3 else value.expand(self.channels, *value.shape)

    def transformed(self, value: Tensor, row: int, training: bool) -> Tensor:
        """Transforms get float32 in [0, 1]."""
        return super().transformed(_unit(value) if self._transforms[training] else value, row, training)

    def collate(self, values: Sequence[Value | None], placeholder: Value) -> Value:
        """`(B, C, H, W)`, float32 in [0, 1]."""
        kinds = {value.dtype for value in values if isinstance(value, Tensor)}
        if len(kinds) > 1:
            values = [_unit(value) if isinstance(value, Tensor) else None for value in values]
        joined = super().collate(values, placeholder)
        assert isinstance(joined, Tensor)
        return _unit(joined)

    def _converted(self, image: "Image.Image") -> "Image.Image":
        """An image of mode ``L``, ``RGB``, or ``F`` in [0, 1]; gray stays gray until it is resized."""
        if image.mode == "F" or image.mode.startswith("I"):
            return _plane(image)
        gray = image.mode in ("1", "L", "LA", "La") or self.channels == 1
        wanted = "L" if gray else "RGB"
        return image if image.mode == wanted else image.convert(wanted)

    def _resized(self, image: "Image.Image") -> "Image.Image":
        from PIL import Image

        if self.size is None or image.size == (self.size[1], self.size[0]):
            return image
        height, width = self.size
        across, down = image.width / width, image.height / height
        bilinear = Image.Resampling.BILINEAR
        if self.resize == "stretch":
            return image.resize((width, height), bilinear)
        if self.resize == "crop":
            scale = min(across, down)
            left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
            return image.resize((width, height), bilinear, box=(left, top, image.width - left, image.height - top))
        scale = max(across, down)
        inner = max(1, round(image.width / scale)), max(1, round(image.height / scale))
        padded = Image.new(image.mode, (width, height))
        padded.paste(image.resize(inner, bilinear), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return padded

    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """Channels, height and width as stored."""
        from PIL import Image

        with Image.open(path) as image:
            return len(image.getbands()), image.height, image.width


def _unit(value: Tensor) -> Tensor:
    return value.float().div_(255) if value.dtype == torch.uint8 else value


def _plane(image: "Image.Image") -> "Image.Image":
    """A gray image of more than 8 bits as a floating one in [0, 1]."""
    from PIL import Image

    array = np.asarray(image)
    if image.mode != "F":
        array = array.astype(np.float32) / 65535
    if not (array.min() >= 0 and array.max() <= 1):  # also nan
        raise ValueError(
            f"its pixels go from {array.min():g} to {array.max():g}, of which 0 to 1 is possible (for whole numbers, "
            f"as shares of 65535). Rescale them, or store them as an array and read it as 'array'."
        )
    return Image.fromarray(array)
