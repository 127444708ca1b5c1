"""Volumes from DICOM: a file of several frames, or a folder with the slices of one series."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hybrid_lightning.data.inputs.dicom_files import (
    SUFFIXES,
    is_dicom,
    layout_of,
    quantities,
    read_header,
    stored_values,
)
from hybrid_lightning.data.inputs.dicom_header import frame_item, numbers, text
from hybrid_lightning.data.inputs.numpy_files import refuse_huge
from hybrid_lightning.data.table import Array
from hybrid_lightning.files import is_regular_file

_MOST_FILES = 10_000  # in the folder of a series
_SAME_PLACE = 1e-3  # mm
_UNEVEN = 0.25  # share of the usual distance by which another one may differ
_NOISE = 1e-2  # of direction cosines, as files round them
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


class Plane(NamedTuple):
    """Where a slice lies: in mm, x to the left, y to the back, z to the head."""

    name: str
    position: Array  # of the first pixel
    across: Array  # direction in which columns follow each other
    down: Array  # direction in which rows do

    @property
    def normal(self) -> Array:
        """The direction through the slice."""
        return np.cross(self.across, self.down)


def files_of_series(folder: Path) -> list[Path]:
    """The DICOM files of a folder, sorted by name; `ValueError` if there are none or too many."""
    found = []
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            if count >= _MOST_FILES:
                raise ValueError(f"it is a folder of more than {_MOST_FILES} files")
            path = Path(entry.path)
            if not _is_hidden(entry.name) and is_regular_file(path) and is_dicom(path):
                found.append(path)
    if not found:
        raise ValueError(f"it is a folder without DICOM files ({', '.join(SUFFIXES)})")
    return sorted(found)


def _is_hidden(name: str) -> bool:
    """Whether a file is hidden, or the index of a disk."""
    return name.startswith(".") or name.upper() == "DICOMDIR"


def stated_shape(path: Path) -> tuple[int, ...]:
    """Channels if there are several, slices as they are stored, rows and columns, from the first header."""
    files = files_of_series(path) if path.is_dir() else [path]
    layout = layout_of(read_header(files[0]))
    slices = len(files) if len(files) > 1 else layout.frames
    channels = (layout.samples,) if layout.samples > 1 else ()
    return (*channels, slices, layout.rows, layout.columns)


def read_volume(path: Path) -> Array:
    """`(D, H, W)` or `(3, D, H, W)`: quantities, turned so that slices are axial and x, y, z grow as in RAS+."""
    files = files_of_series(path) if path.is_dir() else [path]
    if len(files) == 1:
        header = read_header(files[0], with_pixels=True)
        planes = _planes_of_frames(header)
        order = in_order(planes)
        volume = _values(header)
        if planes:
            volume = volume[order]
    else:
        planes = _planes_of_files(files)
        order = in_order(planes)
        volume = np.concatenate([_values(read_header(files[place], with_pixels=True)) for place in order])
    if planes:
        volume = turned(volume, planes[order[0]])
    return np.ascontiguousarray(np.moveaxis(volume, -1, 0) if volume.ndim == 4 else volume)


def remarks_on(path: Path) -> list[str]:
    """What of a file or folder a volume does not show."""
    if path.is_dir():
        with os.scandir(path) as entries:
            shown = [entry.name for entry in entries if not _is_hidden(entry.name)]
        others = len(shown) - len(files_of_series(path))
        return ["are folders with other files too, which are not read"] if others else []
    header = read_header(path)
    is_cine = layout_of(header).frames > 1 and not _planes_of_frames(header)
    return ["state no place of their frames, which stay in the order of the file"] if is_cine else []


def _values(header: Any) -> Array:
    """The quantities of a file, `(F, H, W)`, or its colors, `(F, H, W, 3)`."""
    values, meaning = stored_values(header)
    if values.ndim == 4:
        return values.astype(np.float32)
    if meaning == "PALETTE COLOR":
        raise ValueError("its numbers stand for the colors of a palette, which are no volume; read it as 'image'")
    return quantities(header, values)


def _planes_of_files(files: Sequence[Path]) -> list[Plane]:
    """Where the slices of a folder lie; `ValueError` unless they are of one series and one size."""
    planes = []
    first = None
    for file in files:
        header = read_header(file)
        layout, series = layout_of(header), text(header, "SeriesInstanceUID")
        if layout.frames > 1:
            raise ValueError(f"{file.name!r} in it has {layout.frames} frames; name that file itself in the table")
        first = first or (file.name, layout, series)
        for here, there, what in ((series, first[2], "series"), (layout, first[1], "size")):
            if here != there:
                raise ValueError(
                    f"its files {first[0]!r} and {file.name!r} are not of one {what}; give each {what} a folder of its "
                    f"own"
                )
        plane = _plane(repr(file.name), header, header)
        if plane is None:
            raise ValueError(f"{file.name!r} in it does not state where its slice lies (ImagePositionPatient)")
        planes.append(plane)
    refuse_huge(len(files) * math.prod(layout) * np.dtype(np.float64).itemsize)
    return planes


def _planes_of_frames(header: Any) -> list[Plane]:
    """Where the frames of a file lie; none if it does not say, as a film does not."""
    planes = []
    frames = layout_of(header).frames
    for frame in range(frames):
        position = frame_item(header, frame, "PlanePositionSequence")
        orientation = frame_item(header, frame, "PlaneOrientationSequence")
        if frames == 1:
            position, orientation = position or header, orientation or header
        plane = None if position is None or orientation is None else _plane(f"frame {frame}", position, orientation)
        if plane is not None:
            planes.append(plane)
    if planes and len(planes) < frames:
        raise ValueError(f"it states where {len(planes)} of its {frames} frames lie")
    return planes


def _plane(name: str, position: Any, orientation: Any) -> Plane | None:
    """The place that two items state; None if they do not."""
    corner = numbers(position, "ImagePositionPatient")
    cosines = numbers(orientation, "ImageOrientationPatient")
    if not corner or not cosines:
        return None
    if len(corner) != 3 or len(cosines) != 6:
        raise ValueError(f"the place of {name} has {len(corner)} and {len(cosines)} numbers, not 3 and 6")
    across, down = np.array(cosines[:3]), np.array(cosines[3:])
    lengths = np.array([across @ across, down @ down])
    if np.abs(lengths - 1).max() > _NOISE or abs(across @ down) > _NOISE:
        raise ValueError(f"the directions of {name} are not two perpendicular ones of length 1")
    return Plane(name, np.array(corner), across, down)


def in_order(planes: Sequence[Plane]) -> list[int]:
    """Their order along the normal; `ValueError` unless they are parallel, at equal distances, each at its own."""
    if len(planes) < 2:
        return list(range(len(planes)))
    first = planes[0]
    for plane in planes:
        if max(np.abs(plane.across - first.across).max(), np.abs(plane.down - first.down).max()) > _NOISE:
            raise ValueError(f"its slices {first.name} and {plane.name} are not parallel; take out such as a localizer")
    places = np.array([plane.position @ first.normal for plane in planes])
    order = np.argsort(places, kind="stable")
    steps = np.diff(places[order])
    usual = float(np.median(steps))
    for step, before, after in zip(steps, order, order[1:], strict=False):
        names = f"{planes[before].name} and {planes[after].name}"
        if step < _SAME_PLACE:
            raise ValueError(f"its slices {names} lie at the same place; keep one of them, or give each time a folder")
        if abs(step - usual) > _UNEVEN * usual:
            raise ValueError(
                f"its slices {names} are {step:.3g} mm apart, and most {usual:.3g} mm; one may be missing between them"
            )
    return [int(place) for place in order]


def turned(volume: Array, plane: Plane) -> Array:
    """`(slices, rows, columns, ...)` whose first slice lies in `plane` → z, y, x, which grow as in RAS+."""
    directions = np.stack([plane.normal, plane.down, plane.across]) * _LPS_TO_RAS
    left = np.abs(directions)
    axes = [0, 0, 0]  # of the volume, which become x, y, z
    for _ in range(3):  # the clearest first, as slices may be oblique
        axis, world = np.unravel_index(left.argmax(), left.shape)
        axes[world] = int(axis)
        left[axis, :] = left[:, world] = -1
    flips = tuple(axis for world, axis in enumerate(axes) if directions[axis, world] < 0)
    found: Array = np.flip(volume, flips).transpose(axes[2], axes[1], axes[0], *range(3, volume.ndim))
    return found
