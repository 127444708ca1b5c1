"""Arrays from ``.npy`` and ``.npz`` files of anybody: numbers only, never objects, never more than a file states."""

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from hybrid_lightning.data.inputs.base import check_name
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.rounding import wide
from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import check_choice

_LARGEST = 4 * 2**30  # bytes of one sample; a small compressed file can state any size


class NumpyInput(FileInput):
    """Files of which some may be ``.npy`` or ``.npz``."""

    def __init__(self, key: str, column: str, name: Any, gaps: Any, train: Any, eval: Any) -> None:
        super().__init__(key, column, train, eval)
        self.name = None if name is None else check_name(name, "name")
        self.gaps = check_choice(gaps, "gaps", ("refuse", "zero"))


def is_numpy(path: Path) -> bool:
    """Whether the suffix of a file is one of numpy's."""
    return path.suffix.lower() in (".npy", ".npz")


def read_array(path: Path, name: str | None = None) -> Array:
    """An array, float64 where float32 cannot hold its numbers, from a file whose first bytes decide on its format."""
    with _opened(path, name) as (stream, size):
        _check_header(stream, size)
        stream.seek(0)
        array = np.lib.format.read_array(stream, allow_pickle=False)
    return np.ascontiguousarray(wide(array))


def stated_shape(path: Path, name: str | None = None) -> tuple[int, ...]:
    """The shape of an array, after the same checks, without its numbers."""
    with _opened(path, name) as (stream, size):
        return _check_header(stream, size)


def without_gaps(array: Array, gaps: str) -> Array:
    """The array with nan as 0 if `gaps` is ``zero``; `ValueError` if there are others, or infinite values."""
    finite = np.isfinite(array)
    if finite.all():
        return array
    infinite = int(np.isinf(array).sum())
    if infinite:
        raise ValueError(f"{infinite} of its values are infinite; correct the file")
    if gaps == "refuse":
        raise ValueError(f"{int((~finite).sum())} of its values are nan; correct the file, or write 'gaps: zero'")
    filled: Array = np.where(finite, array, array.dtype.type(0))
    return filled


@contextmanager
def _opened(path: Path, name: str | None) -> Iterator[tuple[IO[bytes], int]]:
    """The bytes of one array, and their number with the header."""
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        if start == b"\x93NUMPY":
            yield file, path.stat().st_size
        elif start[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                member = archive.getinfo(_member(archive, name))
                with archive.open(member) as stream:
                    yield stream, member.file_size
        else:
            raise ValueError("it is neither an .npy nor an .npz file")  # such as a pickle


def _member(archive: zipfile.ZipFile, name: str | None) -> str:
    names = [one.removesuffix(".npy") for one in archive.namelist() if one.endswith(".npy")]
    if name is None and len(names) != 1:
        raise ValueError(f"it holds the arrays {names[:12]}; choose one with 'name'")
    if name is not None and name not in names:
        raise ValueError(f"it holds the arrays {names[:12]}, and not {name!r}, which 'name' demands")
    return f"{name or names[0]}.npy"


def _check_header(stream: IO[bytes], size: int) -> tuple[int, ...]:
    """The shape that the header states; `ValueError` unless it is of numbers that a file of `size` bytes can hold."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    else:  # 3.0 is for names of fields, which arrays of numbers do not have
        raise ValueError(f"version {version} of the format is not one of plain numbers")
    if dtype.hasobject:
        raise ValueError("it holds Python objects (pickle), which could run code; save an array of numbers instead")
    if dtype.kind not in "biuf":
        is_complex = dtype.kind == "c"
        advice = "; store real and imaginary part, or magnitude and phase, as channels" if is_complex else ""
        raise ValueError(f"it holds {dtype}, not numbers{advice}")
    if min(shape, default=1) < 1:
        raise ValueError(f"it is empty: its shape is {shape}")
    stated = math.prod(shape) * dtype.itemsize
    present = size - stream.tell()
    if stated > present:
        raise ValueError(f"it is incomplete: {stated} bytes belong to shape {shape}, and {present} are there")
    refuse_huge(math.prod(shape) * wide(np.empty(0, dtype)).itemsize)  # small types grow to float32
    return shape


def refuse_huge(size: int) -> None:
    """Raises `ValueError` if a sample would have too many bytes."""
    if size > _LARGEST:
        raise ValueError(f"it holds {size / 2**30:.0f} GiB, more than a sample may have ({_LARGEST // 2**30} GiB)")
