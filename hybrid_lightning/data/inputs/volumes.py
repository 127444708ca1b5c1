"""Arrays and volumes: a file per sample → a tensor."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.inputs.base import Value, check_name
from hybrid_lightning.data.inputs.dicom_files import is_dicom
from hybrid_lightning.data.inputs.dicom_series import read_volume, remarks_on
from hybrid_lightning.data.inputs.dicom_series import stated_shape as shape_of_series
from hybrid_lightning.data.inputs.files import check_size
from hybrid_lightning.data.inputs.numpy_files import (
    NumpyInput,
    is_numpy,
    read_array,
    refuse_huge,
    stated_shape,
    without_gaps,
)
from hybrid_lightning.data.rounding import as_float32, wide
from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import check_choice, check_number
from hybrid_lightning.files import is_folder
from hybrid_lightning.importing import import_extra

_HEADER_OF_VERSION_2 = 540  # bytes
_LARGEST_EXTENSION = 2**26  # bytes
_NOISE = 1e-12  # share of the mean below which a deviation is a rounding error


class ArrayInput(NumpyInput):
    """An array per sample, ``.npy`` or ``.npz``, as it is: `(...)`, float32. A single number becomes `(1,)`.

    Args:
        array: Name of the column of paths.
        name: Which array of ``.npz`` files; None if they hold one.
        gaps: What nan becomes: ``refuse`` stops with an error, ``zero`` makes it 0.
        train: Transforms of each training sample, see `make_steps`.
        eval: Transforms of each sample otherwise.
    """

    def __init__(
        self, key: str, array: Any, name: Any = None, gaps: Any = "refuse", train: Any = (), eval: Any = ()
    ) -> None:
        super().__init__(key, check_name(array, "array"), name, gaps, train, eval)

    def load(self, path: Path, training: bool) -> Tensor:
        """`(...)`, float32."""
        array = without_gaps(read_array(path, self.name), self.gaps)
        return torch.from_numpy(as_float32(np.atleast_1d(array)))

    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """The array's shape."""
        return stated_shape(path, self.name) or (1,)


class VolumeInput(NumpyInput):
    """A volume per sample: `(C, D, H, W)`, float32.

    ``.npy`` and ``.npz`` files hold `(D, H, W)` or `(C, D, H, W)`. NIfTI files (extra ``nifti``) hold x, y, z and, if
    there is one, a fourth dimension, which becomes the channels; their axes are turned so that x runs to the right, y
    to the front and z to the head (RAS+), and D, H, W are z, y, x, so that slices are axial.

    DICOM (extra ``dicom``) is a file, or a folder with the slices of one series, ordered by their place in the patient,
    not by name. Numbers are rescaled as the files say, such as to Hounsfield units, and axes turned as those of NIfTI.
    Slices that are missing, double, not parallel, or of several series are errors; a tilted gantry is not corrected.

    Args:
        volume: Name of the column of paths.
        size: Depth, height and width in voxels; one number stands for all. Where a volume shrinks, voxels are means
            over areas, where it grows, they are interpolated (trilinear). None leaves volumes as they are, which then
            have to be equally large within a batch.
        scale: ``none``; ``unit``: each volume from its lowest to its highest value becomes 0 to 1; ``standard``: each
            channel of each volume gets mean 0 and standard deviation 1; ``[low, high]``: a window, such as
            [-1000, 400] of Hounsfield units, becomes 0 to 1, and what is outside is cut.
        name: Which array of ``.npz`` files; None if they hold one.
        gaps: What nan becomes: ``refuse`` stops with an error, ``zero`` makes it 0, before it is scaled.
        train: Transforms of each training sample, see `make_steps`.
        eval: Transforms of each sample otherwise.
    """

    def __init__(
        self,
        key: str,
        volume: Any,
        size: Any = None,
        scale: Any = "none",
        name: Any = None,
        gaps: Any = "refuse",
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, check_name(volume, "volume"), name, gaps, train, eval)
        self.size = check_size(size, ("depth", "height", "width"))
        self.scale = _check_scale(scale)

    def load(self, path: Path, training: bool) -> Tensor:
        """`(C, D, H, W)`, float32."""
        array = self._array(path)
        if array.ndim not in (3, 4):
            raise ValueError(f"its shape {array.shape} is neither (D, H, W) nor (C, D, H, W)")
        volume = torch.from_numpy(without_gaps(array, self.gaps))
        if volume.ndim == 3:
            volume = volume[None]
        value = scaled(resized(volume, self.size), self.scale)  # in float64 where float32 would lose something
        return torch.from_numpy(as_float32(value.numpy()))

    def _array(self, path: Path) -> Array:
        if is_numpy(path):
            return read_array(path, self.name)
        if is_nifti(path):
            return _read_nifti(path)
        _refuse_other(path)
        return read_volume(path)

    def is_there(self, path: Path) -> bool:
        """Whether there is such a file, or folder of a series."""
        return super().is_there(path) or is_folder(path)

    def remarks(self, path: Path, value: Value) -> list[str]:
        """What of DICOM a batch does not show, beside what is odd of any file."""
        of_dicom = [] if is_numpy(path) or is_nifti(path) else remarks_on(path)
        return [*super().remarks(path, value), *of_dicom]

    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """The shape as stored."""
        if is_numpy(path):
            return stated_shape(path, self.name)
        if not is_nifti(path):
            _refuse_other(path)
            return shape_of_series(path)
        _, image = _opened(path)
        return tuple(int(side) for side in image.shape)


def is_nifti(path: Path) -> bool:
    """Whether the suffix of a file is one of NIfTI's."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _refuse_other(path: Path) -> None:
    """Raises `ValueError` for a file that is not DICOM."""
    if not path.is_dir() and not is_dicom(path):
        raise ValueError("its name ends in none of .npy, .npz, .nii, .nii.gz and .dcm")


def _opened(path: Path) -> tuple[Any, Any]:
    """The library, and the image of a file whose numbers are not read yet."""
    nibabel = import_extra("nibabel", "nifti", repr(path.name))
    with nibabel.openers.ImageOpener(path) as file:
        start = file.read(_HEADER_OF_VERSION_2)
    is_second = _HEADER_OF_VERSION_2 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))
    kind = nibabel.Nifti2Header if is_second else nibabel.Nifti1Header
    header = kind(start[: kind.sizeof_hdr], check=False)
    # the library reads all before the numbers, however much it unpacks to
    if not header["vox_offset"] <= _LARGEST_EXTENSION:
        raise ValueError(f"its numbers begin at byte {header['vox_offset']}, behind more than a volume has to say")
    return nibabel, nibabel.load(path)


def _read_nifti(path: Path) -> Array:
    """`(D, H, W)` or `(C, D, H, W)`, float64 if float32 cannot hold what is stored."""
    nibabel, image = _opened(path)
    stored = image.get_data_dtype()
    if stored.kind not in "biuf":
        raise ValueError(
            f"it holds {stored}, not real numbers; store them as channels, such as magnitude and phase, or red, green "
            f"and blue"
        )
    wanted = wide(np.empty(0, stored)).dtype
    refuse_huge(wanted.itemsize * math.prod(image.shape))
    data = image.get_fdata(dtype=wanted, caching="unchanged")
    if data.ndim not in (3, 4):
        raise ValueError(f"its shape {data.shape} is neither (x, y, z) nor (x, y, z, channels)")
    to_ras = nibabel.orientations.io_orientation(image.affine)
    turned = nibabel.orientations.apply_orientation(data, to_ras)
    return np.ascontiguousarray(turned.T)  # slices come first, as in arrays of torch


def resized(volume: Tensor, size: list[int] | None) -> Tensor:
    """`(C, D, H, W)` → `(C, *size)`: means over areas along sides that shrink, trilinear along those that grow."""
    sides = list(volume.shape[1:])
    if size is None or sides == size:
        return volume
    depth, height, width = map(min, sides, size)
    shrunk = functional.adaptive_avg_pool3d(volume, (depth, height, width))
    return functional.interpolate(shrunk[None], size, mode="trilinear", align_corners=False)[0]


def scaled(volume: Tensor, scale: str | tuple[float, float]) -> Tensor:
    """`(C, D, H, W)` on the scale of the option ``scale``; a constant one becomes 0."""
    if isinstance(scale, tuple):
        low, high = scale
        return ((volume - low) / (high - low)).clamp(0, 1)
    if scale == "unit":
        lowest, highest = volume.aminmax()
        return (volume - lowest) / torch.where(highest > lowest, highest - lowest, 1.0)
    if scale == "standard":
        std, mean = torch.std_mean(volume, dim=(1, 2, 3), keepdim=True, correction=0)
        # relative: the rounding errors of a constant grow with it, and the unit may make all numbers small
        return (volume - mean) / torch.where(std > _NOISE * mean.abs(), std, 1.0)
    return volume  # "none"


def _check_scale(scale: Any) -> str | tuple[float, float]:
    if isinstance(scale, list | tuple) and len(scale) == 2:
        low, high = scale
        check_number(low, "scale", -np.inf)
        check_number(high, "scale", low, above_low=True)
        return float(low), float(high)
    choice: str = check_choice(scale, "scale", ("none", "unit", "standard"))
    return choice
