"""The elements of a DICOM header that pixels need, from files of anybody."""

import math
from typing import Any, NamedTuple

import numpy as np

from hybrid_lightning.data.table import Array

_COLORS = ("Red", "Green", "Blue")
TAGS = (
    *("SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *(f"{color}PaletteColorLookupTableDescriptor" for color in _COLORS),
    *(f"{color}PaletteColorLookupTableData" for color in _COLORS),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
"""All that is read of a file."""


def raw(item: Any, keyword: str) -> Any:
    """The value of an element before the library converts it, which warns and shows what it does not understand."""
    return item.get_item(keyword).value if keyword in item else None


def text(item: Any, keyword: str) -> str:
    """The value of an element of letters; empty if there is none."""
    value = raw(item, keyword)
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace")
    return "" if value is None else str(value).strip(" \0")


def numbers(item: Any, keyword: str) -> list[float]:
    """The values of an element of decimal numbers; none if it is empty or not there."""
    value = raw(item, keyword)
    if isinstance(value, bytes):
        value = value.decode("ascii", "replace").strip(" \0").split("\\")
    values = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
    filled = [one for one in values if one is not None and str(one).strip()]
    try:
        found = [float(one) for one in filled]
    except ValueError:
        raise ValueError(f"its {keyword} is not a number") from None
    if not all(map(math.isfinite, found)):
        raise ValueError(f"its {keyword} is not finite")
    return found


def number(header: Any, keyword: str, default: int) -> int:
    """A whole number of an element."""
    value = header.get(keyword)
    return default if value is None else int(value)


def item_of(item: Any, keyword: str) -> Any:
    """The first item of a sequence; None if there is none."""
    sequence = item.get(keyword)
    return sequence[0] if sequence else None


def frame_item(header: Any, frame: int, keyword: str) -> Any:
    """What the functional groups of an enhanced file say of a frame, or of all frames; None if nothing."""
    own = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = item_of(header, "SharedFunctionalGroupsSequence")
    for group in (own[frame] if frame < len(own) else None, shared):
        found = None if group is None else item_of(group, keyword)
        if found is not None:
            return found
    return None


class Lookup(NamedTuple):
    """A table from stored numbers to others."""

    entries: Array
    first: int  # number of the first entry; those below it get the first, those above the last get the last
    bits: int  # of an entry

    @classmethod
    def of(cls, item: Any, prefix: str = "LUT") -> "Lookup":
        """The table of a sequence's item, or of the palette of a color."""
        descriptor = item.get(f"{prefix}Descriptor")
        if descriptor is None or len(descriptor) != 3:
            raise ValueError(f"its {prefix}Descriptor does not describe a table")
        count, first, bits = (int(value) for value in descriptor)
        count = count % 2**16 or 2**16  # may have been read as signed
        data = item.get(f"{prefix}Data")
        if isinstance(data, bytes):
            width = 1 if len(data) < 2 * count else 2
            entries = np.frombuffer(data, f"<u{width}", count=min(count, len(data) // width)).astype(np.int64)
        else:
            entries = np.atleast_1d(np.asarray([] if data is None else data, dtype=np.int64)) % 2**16
        if len(entries) < count or not 8 <= bits <= 16:
            raise ValueError(f"its {prefix}Data holds {len(entries)} of {count} entries of {bits} bits")
        return cls(entries[:count], first, bits)

    def of_values(self, values: Array) -> Array:
        """The entry of each number, which is rounded."""
        places = np.rint(values).astype(np.int64) - self.first
        found: Array = self.entries[places.clip(0, len(self.entries) - 1)]
        return found
