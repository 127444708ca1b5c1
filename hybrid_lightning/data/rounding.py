"""What float32 keeps of numbers: about seven digits, which is nothing where they are large beside their spread."""

import numpy as np

from hybrid_lightning.data.table import Array

_MOST_LOST = 0.01  # share of neighbors that may become equal
_NOISE = 1e-14  # differences below this share of a value are rounding errors of float64


def wide(array: Array) -> Array:
    """The array in float32 if that keeps all of its values, otherwise in float64."""
    fits = array.dtype.itemsize <= 2 or array.dtype == np.float32
    return array.astype(np.float32 if fits else np.float64, copy=False)


def as_float32(array: Array) -> Array:
    """The array in float32; `ValueError` if numbers that differ become equal, as time stamps do, or infinite.

    Neighbors along the longest axis are compared, so that it takes one pass.
    """
    with np.errstate(over="ignore"):
        rounded: Array = array.astype(np.float32, copy=False)
    infinite = int(np.isinf(rounded).sum())
    if infinite:
        raise ValueError(f"{infinite} of its values are infinite, or too large for float32; correct the file")
    if array.dtype == np.float32 or array.size < 2:
        return rounded
    longest = int(np.argmax(array.shape))
    exact = np.moveaxis(array, longest, 0)
    steps = np.abs(np.diff(exact, axis=0))
    differ = steps > _NOISE * np.abs(exact[1:])
    lost = differ & (np.diff(np.moveaxis(rounded, longest, 0), axis=0) == 0)
    if lost.sum() > _MOST_LOST * differ.sum():
        first = tuple(np.argwhere(lost)[0])
        before, after = float(exact[first]), float(exact[1:][first])
        raise ValueError(
            f"its numbers are large beside their differences, so that float32 would make {before} and the one after "
            f"it, {after}, equal. Take their mean or a start off, or use other units"
        )
    return rounded
