"""Images: a file per sample → `(C, H, W)`, float32 in [0, 1]."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.inputs import dicom_images
from hybrid_lightning.data.inputs.base import Value, check_name
from hybrid_lightning.data.inputs.dicom_files import is_dicom
from hybrid_lightning.data.inputs.files import FileInput, check_size
from hybrid_lightning.data.shard_members import source_of
from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import check_choice
from hybrid_lightning.importing import import_extra

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

_ORIENTATION = 0x0112  # the tag of EXIF
_QUARTER_TURNS = (5, 6, 7, 8)
_TWELVE_BITS = 4095
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601-2, as Pillow has it
_FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF"),
    "WEBP",
)
"""Those that Pillow decodes by itself. It hands others, such as PostScript, to a program, which runs what they say."""


class ImageInput(FileInput):
    """An image per sample, read with Pillow and turned as its EXIF data say.

    Gray, RGB and palette images with 8 bits are divided by 255, gray ones with 16 bits by 65535; floating images (TIFF)
    have to lie in [0, 1]. Of several pages or frames the first is read. Pillow reads color with 16 bits per channel as
    8 bits, or refuses it; store it as an array. Resized with Pillow's antialiased bilinear filter.

    DICOM files (extra ``dicom``) are read as a viewer shows them: rescaled, through a window, and inverted where low
    values are white; palettes and YBR become RGB. Of several frames the first is read.

    Args:
        image: Name of the column of paths.
        size: Height and width in pixels; one number stands for both. None leaves images as they are, which then have
            to be equally large within a batch.
        channels: 3, where gray becomes three equal channels, or 1, where colors become their luma (ITU-R 601-2).
        resize: How other shapes become `size`. ``crop``: scaled until it covers it, and cut at the centre, which keeps
            the aspect; ``pad``: scaled until it fits into it, with black beside it, which loses nothing; ``stretch``:
            scaled to it, which changes the aspect.
        alpha: What shows through transparent parts: ``white`` or ``black``; ``drop`` shows the colors that a file has
            there, which no viewer shows.
        window: Which values of a gray DICOM file go from black to white: ``file``, as it states, or all that its bits
            can hold if it states none; ``full``, all that they can hold; or ``[center, width]`` in the file's units,
            such as [40, 400] of Hounsfield units. What is outside is cut.
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
        alpha: Any = "white",
        window: Any = "file",
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, check_name(image, "image"), train, eval)
        self.size = check_size(size, ("height", "width"))
        self.channels = check_choice(channels, "channels", (1, 3))
        self.resize = check_choice(resize, "resize", ("crop", "pad", "stretch"))
        self.alpha = check_choice(alpha, "alpha", ("white", "black", "drop"))
        self.window = dicom_images.check_window(window)
        import_extra("PIL.Image", "data", "an image")

    def load(self, path: Path, training: bool) -> Tensor:
        """`(C, H, W)`; of 8 bits as uint8, which is joined faster, otherwise and for transforms float32 in [0, 1]."""
        value = torch.from_numpy(self._dicom(path) if is_dicom(path) else self._pixels(path))
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

    def _pixels(self, path: Path) -> Array:
        """`(H, W)` or `(H, W, 3)`, uint8 or float32 in [0, 1]."""
        from PIL import ImageOps

        with _opened(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return np.array(self._resized(self._converted(image)))

    def _dicom(self, path: Path) -> Array:
        """As `_pixels`, of a DICOM file."""
        from PIL import Image

        shown = dicom_images.read_image(path, self.window)
        if shown.dtype == np.uint8:
            return np.array(self._resized(self._converted(Image.fromarray(shown))))
        if shown.ndim == 2:
            return np.array(self._resized(Image.fromarray(shown)))
        if self.channels == 1:
            return np.array(self._resized(Image.fromarray(shown @ _LUMA)))
        planes = [np.array(self._resized(Image.fromarray(plane))) for plane in np.moveaxis(shown, -1, 0)]
        return np.stack(planes, -1)

    def _converted(self, image: "Image") -> "Image":
        """An image of mode ``L``, ``RGB``, or ``F`` in [0, 1]; gray stays gray until it is resized, which is faster."""
        if image.mode == "F" or image.mode.startswith("I"):
            return _plane(image)
        is_gray = self.channels == 1 or image.mode in ("1", "L", "LA", "La")
        if self.alpha != "drop" and image.has_transparency_data:
            image = _on_ground(image, self.alpha)
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

        if is_dicom(path):
            layout = dicom_images.layout(path)
            return layout.samples, layout.rows, layout.columns
        with _opened(path) as image:
            height, width = image.height, image.width
            # as Pillow would read all of a PNG, where the base class takes what stands before the pixels
            turn = Image.Image.getexif(image).get(_ORIENTATION, 1)
            is_turned = turn in _QUARTER_TURNS and image.format != "TIFF"  # of which the size is turned already
            return len(image.getbands()), *((width, height) if is_turned else (height, width))

    def remarks(self, path: Path, value: Value) -> list[str]:
        """What of an image a batch does not show, beside what is odd of any file."""
        remarks = super().remarks(path, value)
        if is_dicom(path):
            return [*remarks, *dicom_images.remarks_on(path, self.window)]
        with _opened(path) as image:
            if image.format != "MPO" and _has_second_frame(image):  # its others are previews
                remarks.append("have several pages or frames, of which the first is read")
        with _opened(path) as image:
            if image.has_transparency_data and not _is_opaque(image.convert("RGBA")):
                remarks.append(f"have transparent parts (alpha: {self.alpha})")
            if len(image.getbands()) > 1 and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
                remarks.append("store 16 bits per color, of which 8 are read; store them as arrays to keep all")
            if image.mode.startswith("I") and np.asarray(image).max() <= _TWELVE_BITS:
                remarks.append(
                    f"store at most 12 bits in 16, so that they are dark: no value is above {_TWELVE_BITS}/65535"
                )
        return remarks


def _opened(path: Path) -> "ImageFile":
    """The image in a file, of `_FORMATS`, whose pixels are not read yet."""
    from PIL import Image

    Image.init()  # else the rarer ones are not known
    return Image.open(source_of(path), formats=[name for name in _FORMATS if name in Image.OPEN])


def _has_second_frame(image: "Image") -> bool:
    """Whether there is another page or frame; all are not counted, because a small file can have millions."""
    try:
        image.seek(1)
    except EOFError:
        return False
    return True


def _is_opaque(layers: "Image") -> bool:
    """Whether nothing shows through an image of mode ``RGBA``."""
    return bool((np.asarray(layers.getchannel("A")) == 255).all())


def _on_ground(image: "Image", color: str) -> "Image":
    """What a viewer shows of an image with transparent parts; it stays gray if it was."""
    from PIL import Image

    layers = image.convert("RGBA")
    if _is_opaque(layers):
        return image
    ground = Image.new("RGBA", image.size, color)
    shown = Image.alpha_composite(ground, layers).convert("RGB")
    return shown.convert("L") if image.mode in ("1", "L", "LA", "La") else shown


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
