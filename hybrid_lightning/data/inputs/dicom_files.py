"""DICOM files (extra ``dicom``): what their pixels mean; of the header no more is read than that takes.

Names, dates and private elements are never loaded, and errors tell nothing but the layout and the place of an image.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hybrid_lightning.data.inputs.dicom_header import TAGS, Lookup, frame_item, item_of, number, numbers, text
from hybrid_lightning.data.inputs.numpy_files import refuse_huge
from hybrid_lightning.data.rounding import wide
from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import reason
from hybrid_lightning.importing import import_extra

SUFFIXES = (".dcm", ".dicom", ".ima")
MEANINGS = (
    *("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"),
    *("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"),
)
"""Photometric interpretations that are read."""
_MARK_AT, _MARK = 128, b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"  # the library would inflate all of it at once, however large it becomes
_DECODERS = {
    "1.2.840.10008.1.2.4.5": "pylibjpeg and pylibjpeg-libjpeg (under the GPL), or python-gdcm",
    "1.2.840.10008.1.2.4.57": "python-gdcm, or pylibjpeg with pylibjpeg-libjpeg (under the GPL)",
    "1.2.840.10008.1.2.4.70": "python-gdcm, or pylibjpeg with pylibjpeg-libjpeg (under the GPL)",
    "1.2.840.10008.1.2.4.8": "pyjpegls, or python-gdcm",
    "1.2.840.10008.1.2.4.9": "pylibjpeg with pylibjpeg-openjpeg, or python-gdcm",
    "1.2.840.10008.1.2.4.20": "pylibjpeg with pylibjpeg-openjpeg",
}
"""Start of the UID of a compressed transfer syntax → packages that decode it."""


class Layout(NamedTuple):
    """The sides of what a file holds."""

    frames: int
    rows: int
    columns: int
    samples: int  # 1 of gray and of palettes, 3 of color


def is_dicom(path: Path) -> bool:
    """Whether a file is named as DICOM or, as archives name them by numbers, begins as such."""
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    return not suffix.strip(".0123456789") and is_marked(path)


def is_marked(path: Path) -> bool:
    """Whether a file begins as DICOM does."""
    with path.open("rb") as file:
        return file.read(_MARK_AT + len(_MARK))[_MARK_AT:] == _MARK


def read_header(path: Path, with_pixels: bool = False) -> Any:
    """The elements that `TAGS` names, as the library's dataset; pixels stay encoded."""
    if not is_marked(path):
        raise ValueError("it is not a DICOM file: byte 128 does not begin 'DICM'")
    pydicom = import_extra("pydicom", "dicom", repr(path.name))
    reader = import_extra("pydicom.filereader", "dicom", repr(path.name))
    syntax = text(reader.read_file_meta_info(path), "TransferSyntaxUID")
    if not re.fullmatch("[0-9.]{1,64}", syntax):  # the library would show what stands there instead
        raise ValueError("it does not state how its pixels are stored (TransferSyntaxUID)")
    if syntax == _DEFLATED:
        raise ValueError("it is deflated as a whole, which is not read; convert it to Explicit VR Little Endian")
    header = pydicom.dcmread(path, stop_before_pixels=not with_pixels, specific_tags=list(TAGS))
    layout_of(header)
    return header


def layout_of(header: Any) -> Layout:
    """The sides; `ValueError` unless it states an image that can be read and is not too large."""
    [frames, *_] = numbers(header, "NumberOfFrames") or [1]
    rows, columns = number(header, "Rows", 0), number(header, "Columns", 0)
    samples = number(header, "SamplesPerPixel", 1)
    if min(frames, rows, columns) < 1:
        raise ValueError("it holds no image, as reports and directories do")
    if samples not in (1, 3):
        raise ValueError(f"it has {samples} samples per pixel, of which 1 and 3 are possible")
    if text(header, "PhotometricInterpretation") not in MEANINGS:  # may hold anything in a damaged file, so not shown
        raise ValueError(f"its photometric interpretation is none of {', '.join(MEANINGS)}")
    stored, high = number(header, "BitsStored", 0), number(header, "HighBit", -1)
    if stored and high >= 0 and high != stored - 1:
        raise ValueError(f"its {stored} bits end at bit {high}, where other data may follow; convert the file")
    layout = Layout(int(frames), rows, columns, samples)
    refuse_huge(math.prod(layout) * np.dtype(np.float64).itemsize)
    return layout


def stored_values(header: Any, first_frame: bool = False) -> tuple[Array, str]:
    """Numbers as stored, `(F, H, W)` or `(F, H, W, 3)`, and their photometric interpretation; YBR becomes RGB."""
    pixels = import_extra("pydicom.pixels", "dicom", "a DICOM file")
    syntax = header.file_meta.TransferSyntaxUID
    layout = layout_of(header)
    try:
        decoder = pixels.get_decoder(syntax)
        is_available = decoder.is_available
    except NotImplementedError:
        raise ValueError(f"its pixels are stored as {syntax.name}, which cannot be read; convert the file") from None
    if not is_available:
        raise ValueError(f"its pixels are stored as {syntax.name}; to read it, install {_packages(syntax)}.")
    index = 0 if first_frame else None
    try:
        values, found = decoder.as_array(header, index=index, raw=False, allow_excess_frames=False)
    except Exception as error:  # decoders raise any exception on a broken file
        advice = f" Where the file is whole, it is read with {_packages(syntax)}." if syntax.is_compressed else ""
        raise ValueError(f"its pixels cannot be decoded: {reason(error)}{advice}") from error
    frames = 1 if first_frame else layout.frames
    color = (layout.samples,) if layout.samples > 1 else ()
    return values.reshape(frames, layout.rows, layout.columns, *color), str(found["photometric_interpretation"])


def _packages(syntax: str) -> str:
    """The packages that decode a transfer syntax."""
    starts = [start for start in _DECODERS if syntax.startswith(start)]
    return _DECODERS[max(starts, key=len)] if starts else "python-gdcm"


def rescale_of(header: Any, frame: int) -> tuple[float, float]:
    """Slope and intercept from stored numbers to quantities, such as Hounsfield units."""
    item = frame_item(header, frame, "PixelValueTransformationSequence") or header
    [slope, *_] = numbers(item, "RescaleSlope") or [1.0]
    [intercept, *_] = numbers(item, "RescaleIntercept") or [0.0]
    return slope, intercept


def quantities(header: Any, values: Array) -> Array:
    """Stored numbers `(F, H, W)` as quantities; float64 where float32 would lose something."""
    table = item_of(header, "ModalityLUTSequence")
    if table is not None:
        return Lookup.of(table).of_values(values).astype(np.float32)
    rescales = [rescale_of(header, frame) for frame in range(len(values))]
    if set(rescales) == {(1.0, 0.0)}:
        return wide(values)
    exact = np.empty(values.shape)
    for frame, (slope, intercept) in enumerate(rescales):
        exact[frame] = values[frame] * slope + intercept
    narrow = exact.astype(np.float32)
    return narrow if np.array_equal(narrow, exact) else exact
