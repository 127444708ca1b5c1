"""Arrays and volumes: a file per sample → a tensor."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.inputs.checks import check_choice, check_column, check_size
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.inputs.numpy_files import Array, is_numpy, read_array, refuse_huge, stated_shape
from hybrid_lightning.errors import ConfigError, check_number

GAPS = ("refuse", "zero")


class ArrayInput(FileInput):
    """An array per sample, ``.npy`` or ``.npz``, as it is: `(...)`, float32. A single number becomes `(1,)`.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        array: Name of the column of paths.
        name: Which array of ``.npz`` files; None if they hold one.
        gaps: What nan becomes: ``refuse`` stops with an error, ``zero`` makes it 0.
        train: Transforms of each training sample, see `make_transforms`.
        eval: Transforms of each sample otherwise.
    """

    def __init__(
        self,
        key: str,
        where: str,
        array: Any,
        name: Any = None,
        gaps: Any = "refuse",
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, where, check_column(array, f"{where}.array"), train, eval)
        self.name = None if name is None else check_column(name, f"{where}.name")
        self.gaps = check_choice(gaps, f"{where}.gaps", GAPS)

    def load(self, path: Path, training: bool) -> Tensor:
        """`(...)`, float32."""
        return torch.from_numpy(np.atleast_1d(without_gaps(read_array(path, self.name), self.gaps)))

    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """The array's shape."""
        return stated_shape(path, self.name) or (1,)


class VolumeInput(FileInput):
    """A volume per sample: `(C, D, H, W)`, float32.

    ``.npy`` and ``.npz`` files hold `(D, H, W)` or `(C, D, H, W)`. NIfTI files (extra ``nifti``) hold x, y, z and, if
    there is one, a fourth dimension, which becomes the channels; their axes are turned so that x runs to the right, y
    to the front and z to the head (RAS+), and D, H, W are z, y, x, so that slices are axial.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        volume: Name of the column of paths.
        size: Depth, height and width in voxels; one number stands for all. Where a volume shrinks, voxels are means
            over areas, where it grows, they are interpolated (trilinear). None leaves volumes as they are, which then
            have to be equally large within a batch.
        scale: ``none``; ``unit``: each volume from its lowest to its highest value becomes 0 to 1; ``standard``: each
            channel of each volume gets mean 0 and standard deviation 1; ``[low, high]``: a window, such as
            [-1000, 400] of Hounsfield units, becomes 0 to 1, and what is outside is cut.
        name: Which array of ``.npz`` files; None if they hold one.
        gaps: What nan becomes: ``refuse`` stops with an error, ``zero`` makes it 0, before it is scaled.
        train: Transforms of each training sample, see `make_transforms`.
        eval: Transforms of each sample otherwise.
    """

    def __init__(
        self,
        key: str,
        where: str,
        volume: Any,
        size: Any = None,
        scale: Any = "none",
        name: Any = None,
        gaps: Any = "refuse",
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, where, check_column(volume, f"{where}.volume"), train, eval)
        self.size = check_size(size, f"{where}.size", ("depth", "height", "width"))
        self.scale = _check_scale(scale, f"{where}.scale")
        self.name = None if name is None else check_column(name, f"{where}.name")
        self.gaps = check_choice(gaps, f"{where}.gaps", GAPS)

    def load(self, path: Path, training: bool) -> Tensor:
        """`(C, D, H, W)`, float32."""
        array = read_array(path, self.name) if is_numpy(path) else self._read_nifti(path)
        if array.ndim not in (3, 4):
            raise ValueError(f"its shape {array.shape} is neither (D, H, W) nor (C, D, H, W)")
        volume = torch.from_numpy(without_gaps(array, self.gaps))
        return scaled(resized(volume if volume.ndim == 4 else volume[None], self.size), self.scale)

    def _read_nifti(self, path: Path) -> Array:
        """`(D, H, W)` or `(C, D, H, W)`."""
        nibabel = self._nibabel(path)
        image = nibabel.load(path)
        refuse_huge(4 * math.prod(image.shape))
        data = image.get_fdata(dtype=np.float32, caching="unchanged")
        if data.ndim not in (3, 4):
            raise ValueError(f"its shape {data.shape} is neither (x, y, z) nor (x, y, z, channels)")
        turned = nibabel.orientations.apply_orientation(data, nibabel.io_orientation(image.affine))
        return np.ascontiguousarray(turned.T)

    def _nibabel(self, path: Path) -> Any:
        if not path.name.endswith((".nii", ".nii.gz")):
            raise ValueError("its name ends in none of .npy, .npz, .nii and .nii.gz")
        try:
            import nibabel
        except ModuleNotFoundError:
            raise ConfigError(
                f"{self.where}: {path.name!r} is read with nibabel, which is missing. Install it with: "
                f"pip install 'hybrid_lightning[nifti]'"
            ) from None
        return nibabel

    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """The shape as stored."""
        if is_numpy(path):
            return stated_shape(path, self.name)
        return tuple(int(side) for side in self._nibabel(path).load(path).shape)


def without_gaps(array: Array, gaps: str) -> Array:
    """An array without nan, see the option ``gaps``.

    Raises:
        ValueError: If there are nan that are refused, or infinite values.
    """
    finite = np.isfinite(array)
    if finite.all():
        return array
    if np.isinf(array).any():
        raise ValueError(f"{int(np.isinf(array).sum())} of its values are infinite; correct the file")
    if gaps == "refuse":
        raise ValueError(f"{int((~finite).sum())} of its values are nan; correct the file, or write 'gaps: zero'")
    filled: Array = np.where(finite, array, array.dtype.type(0))
    return filled


def resized(volume: Tensor, size: list[int] | None) -> Tensor:
    """`(C, D, H, W)` → `(C, *size)`: means over areas along sides that shrink, trilinear along those that grow."""
    if size is None or list(volume.shape[1:]) == size:
        return volume
    depth, height, width = (min(side, wanted) for side, wanted in zip(volume.shape[1:], size, strict=True))
    shrunk = functional.adaptive_avg_pool3d(volume, (depth, height, width))
    return functional.interpolate(shrunk[None], size, mode="trilinear", align_corners=False)[0]


def scaled(volume: Tensor, scale: str | tuple[float, float]) -> Tensor:
    """`(C, D, H, W)` on the scale that the option ``scale`` says; a constant one becomes 0."""
    if isinstance(scale, tuple):
        low, high = scale
        return ((volume - low) / (high - low)).clamp(0, 1)
    if scale == "unit":
        lowest, highest = volume.aminmax()
        return (volume - lowest) / (highest - lowest).clamp(min=1e-12)
    if scale == "standard":
        std, mean = torch.std_mean(volume, dim=(1, 2, 3), keepdim=True, correction=0)
        return (volume - mean) / torch.where(std > 1e-12, std, 1.0)
    return volume


def _check_scale(scale: Any, where: str) -> str | tuple[float, float]:
    if isinstance(scale, list | tuple) and len(scale) == 2:
        check_number(scale[0], where, -np.inf)
        check_number(scale[1], where, scale[0], above_low=True)
        return float(scale[0]), float(scale[1])
    choice: str = check_choice(scale, where, ("none", "unit", "standard"))
    return choice
