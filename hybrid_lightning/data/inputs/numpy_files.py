"""Arrays from ``.npy`` and ``.npz`` files of anybody: numbers only, never objects, never more than a file states."""

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

_LARGEST = 4 * 2**30
"""Bytes of one sample; a small compressed file can state any size."""

Array = np.ndarray[Any, Any]


class Header(NamedTuple):
    """What an array says about itself."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]


def is_numpy(path: Path) -> bool:
    """Whether the name of a file says that it holds arrays."""
    return path.suffix in (".npy", ".npz")


def read_array(path: Path, name: str | None = None) -> Array:
    """An array as float32, in memory.

    Args:
        path: The file; what it is, its first bytes say.
        name: Which array of an ``.npz`` file; None if there is one.

    Raises:
        ValueError: If it is no such file, does not hold numbers, or is incomplete.
    """
    with _opened(path, name) as (stream, size):
        header = _header(stream, size)
        flat = np.frombuffer(stream.read(math.prod(header.shape) * header.dtype.itemsize), header.dtype)
    array = flat.reshape(header.shape, order="F" if header.fortran_order else "C")
    with np.errstate(over="ignore"):  # too large for float32: becomes infinite, and is refused as such
        return array.astype(np.float32, order="C")


def stated_shape(path: Path, name: str | None = None) -> tuple[int, ...]:
    """The shape of an array, after the same checks, without its numbers."""
    with _opened(path, name) as (stream, size):
        return _header(stream, size).shape


@contextmanager
def _opened(path: Path, name: str | None) -> Iterator[tuple[IO[bytes], int]]:
    """One array's bytes, and how many they are with their header."""
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        if start == b"\x93NUMPY":
            yield file, os.fstat(file.fileno()).st_size
        elif start[:4] == b"PK\x03\x04":
            with zipfile.ZipFile(file) as archive:
                member = archive.getinfo(_member(archive, name))
                with archive.open(member) as stream:
                    yield stream, member.file_size
        else:
            raise ValueError("it is neither an .npy nor an .npz file")


def _member(archive: zipfile.ZipFile, name: str | None) -> str:
    names = [one.removesuffix(".npy") for one in archive.namelist() if one.endswith(".npy")]
    if name is None and len(names) != 1:
        raise ValueError(f"it holds the arrays {names[:12]}; say which one with 'name'")
    if name is not None and name not in names:
        raise ValueError(f"it holds the arrays {names[:12]}, and not the one that 'name' says, {name!r}")
    return f"{name or names[0]}.npy"


def _header(stream: IO[bytes], size: int) -> Header:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format is not one of plain numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = Header(*read(stream))
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects (pickle), which could run code; save an array of numbers instead")
    if header.dtype.kind not in "biuf":
        raise ValueError(f"it holds {header.dtype}, not numbers")
    if min(header.shape, default=1) < 1:
        raise ValueError(f"it is empty: its shape is {header.shape}")
    wanted, there = math.prod(header.shape) * header.dtype.itemsize, size - stream.tell()
    if wanted > there:
        raise ValueError(f"it is incomplete: {wanted} bytes belong to shape {header.shape}, and {there} are there")
    refuse_huge(wanted)
    return header


def refuse_huge(size: int) -> None:
    """Raises `ValueError` if a sample has too many bytes."""
    if size > _LARGEST:
        raise ValueError(f"it holds {size / 2**30:.0f} GiB, more than a sample may have ({_LARGEST // 2**30} GiB)")
