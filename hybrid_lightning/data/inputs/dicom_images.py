"""Images from DICOM files as a viewer shows them."""

from pathlib import Path
from typing import Any

import numpy as np

from hybrid_lightning.data.inputs.dicom_files import (
    Layout,
    layout_of,
    quantities,
    read_header,
    rescale_of,
    stored_values,
)
from hybrid_lightning.data.inputs.dicom_header import Lookup, frame_item, item_of, number, numbers, text
from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import ConfigError, check_choice, check_number

Window = str | tuple[float, float]
_GRAY = ("MONOCHROME1", "MONOCHROME2")
_PALETTE = "PALETTE COLOR"


def check_window(value: Any) -> Window:
    """The option ``window``: ``file``, ``full``, or center and width."""
    if isinstance(value, list | tuple) and len(value) == 2:
        center, width = value
        check_number(center, "window", -np.inf)
        check_number(width, "window", 0, above_low=True)
        return float(center), float(width)
    if isinstance(value, list | tuple):
        raise ConfigError(f"{value!r} is not [center, width].", "window")
    choice: str = check_choice(value, "window", ("file", "full"))
    return choice


def read_image(path: Path, window: Window) -> Array:
    """The first frame: `(H, W)` float32 in [0, 1] if it is gray, or `(H, W, 3)`, uint8 or float32 in [0, 1]."""
    header = read_header(path, with_pixels=True)
    values, meaning = stored_values(header, first_frame=True)
    if meaning in _GRAY and values.ndim == 3:
        shown = _windowed(header, quantities(header, values)[0], window)
        return 1 - shown if meaning == "MONOCHROME1" else shown
    if meaning == _PALETTE and values.ndim == 3:
        return _from_palette(header, values[0])
    if meaning != "RGB" or values.ndim != 4:
        raise ValueError("its colors are neither gray, of a palette, RGB nor YBR")
    bits = number(header, "BitsStored", 8)
    return values[0] if values.dtype == np.uint8 and bits == 8 else _share(values[0], bits)


def layout(path: Path) -> Layout:
    """The sides that a file states; palettes have three samples."""
    header = read_header(path)
    sides = layout_of(header)
    is_palette = text(header, "PhotometricInterpretation") == _PALETTE
    return sides._replace(samples=3) if is_palette else sides


def remarks_on(path: Path, window: Window) -> list[str]:
    """What of a file an image does not show."""
    header = read_header(path)
    remarks = []
    if layout_of(header).frames > 1:
        remarks.append("have several frames, of which the first is read; 'volume' reads all")
    is_gray = text(header, "PhotometricInterpretation") in _GRAY
    stated = _stated_window(header)
    if is_gray and window == "file" and stated is None and item_of(header, "VOILUTSequence") is None:
        remarks.append("state no window, so that all values of their bits are shown, which may be dark")
    if is_gray and window == "file" and len(numbers(header, "WindowCenter")) > 1:
        remarks.append("state several windows, of which the first is used")
    return remarks


def _windowed(header: Any, values: Array, window: Window) -> Array:
    """Quantities `(H, W)` from black, 0, to white, 1, float32."""
    if isinstance(window, tuple):
        center, width = window
        return _between(values, center - width / 2, center + width / 2)
    table = item_of(header, "VOILUTSequence")
    if window == "file" and table is not None:
        lookup = Lookup.of(table)
        return _share(lookup.of_values(values), lookup.bits)
    stated = _stated_window(header) if window == "file" else None
    if stated is None:
        return _between(values, *_range_of_bits(header))
    center, width = stated
    function = text(_of_window(header), "VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            shares: Array = 1 / (1 + np.exp(-4 * (values - center) / width))
        return shares.astype(np.float32)
    if function == "LINEAR_EXACT":
        return _between(values, center - width / 2, center + width / 2)
    # PS3.3 C.11.2.1.2: numbers are whole, so that a width of 256 has 255 steps
    low = center - 0.5 - (width - 1) / 2
    return _between(values, low, low + width - 1)


def _of_window(header: Any) -> Any:
    """What states the window of the first frame."""
    return frame_item(header, 0, "FrameVOILUTSequence") or header


def _stated_window(header: Any) -> tuple[float, float] | None:
    """Center and width that a file states, the first of several; None if it has none that can be used."""
    item = _of_window(header)
    centers, widths = numbers(item, "WindowCenter"), numbers(item, "WindowWidth")
    return (centers[0], widths[0]) if centers and widths and widths[0] > 0 else None


def _range_of_bits(header: Any) -> tuple[float, float]:
    """The lowest and the highest quantity that the bits of a file can hold."""
    table = item_of(header, "ModalityLUTSequence")
    if table is not None:
        return 0.0, 2.0 ** Lookup.of(table).bits - 1
    if "PixelData" not in header:
        raise ValueError("it holds floating numbers without a window; write 'window: [center, width]'")
    bits = number(header, "BitsStored", 16)
    low = -(2.0 ** (bits - 1)) if number(header, "PixelRepresentation", 0) else 0.0
    slope, intercept = rescale_of(header, 0)
    ends = sorted(slope * end + intercept for end in (low, low + 2.0**bits - 1))
    return ends[0], ends[1]


def _between(values: Array, low: float, high: float) -> Array:
    """Shares of the way from `low` to `high`, float32; a step where both are one."""
    if high <= low:
        return (values > low).astype(np.float32)
    shares: Array = (values - low) / (high - low)
    return shares.clip(0, 1).astype(np.float32)


def _share(values: Array, bits: int) -> Array:
    """Whole numbers as shares of the highest of their bits, float32."""
    shares: Array = values.astype(np.float32) / (2**bits - 1)
    return shares.clip(0, 1)


def _from_palette(header: Any, values: Array) -> Array:
    """Colors `(H, W, 3)` of stored numbers `(H, W)`."""
    planes = []
    for color in ("Red", "Green", "Blue"):
        prefix = f"{color}PaletteColorLookupTable"
        if f"{prefix}Data" not in header:
            raise ValueError("its palette is segmented or missing, which cannot be read; convert the file to RGB")
        lookup = Lookup.of(header, prefix)
        planes.append(_share(lookup.of_values(values), lookup.bits))
    return np.stack(planes, -1)
