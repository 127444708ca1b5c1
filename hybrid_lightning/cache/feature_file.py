"""Tensors in files that are mapped into memory: values, then a description with their checksum.

A mapped file is locked for as long as its tensor lives, in any process, so that `remove_unused` leaves it alone.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hybrid_lightning.cache.fingerprints import bytes_of
from hybrid_lightning.files import is_regular_file, lock

_ABOUT = 512  # bytes at the end of a file
_BLOCK = 2**24  # bytes
_DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)


def create(path: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros in a new file, without a description; `OSError` if the disk has no room for them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = math.prod(shape) * dtype.itemsize
    with path.open("w+b") as file:
        try:
            # a write to a mapped file would kill the process where the disk is full
            os.posix_fallocate(file.fileno(), 0, size + _ABOUT)
        except OSError:
            path.unlink()
            raise
        return _mapped(file, shape, dtype, mmap.ACCESS_WRITE)


def attach(path: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The tensor that another process has created, in the same memory."""
    with path.open("r+b") as file:
        return _mapped(file, shape, dtype, mmap.ACCESS_WRITE)


def finish(tensor: Tensor, unfinished: Path, path: Path) -> None:
    """Describes a tensor of `create` that has been filled in, and gives its file the name `path`."""
    dtype = str(tensor.dtype)
    about = {
        "shape": list(tensor.shape),
        "dtype": dtype.removeprefix("torch."),
        "checksum": _checksum(tensor),
    }
    text = json.dumps(about)
    with unfinished.open("r+b") as file:
        file.seek(-_ABOUT, os.SEEK_END)
        file.write(text.ljust(_ABOUT).encode())
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read(path: Path, rows: int, is_checked: bool) -> Tensor:
    """A tensor with this number of rows from a file; `ValueError` if it is not what was written."""
    if path.exists() and not is_regular_file(path):  # a pipe would wait for a writer
        raise ValueError("it is not a file")
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        if length < _ABOUT:
            raise ValueError("its length is wrong")
        file.seek(-_ABOUT, os.SEEK_END)
        text = file.read()
        about = json.loads(text)
        shape = about["shape"]
        dtype = getattr(torch, about["dtype"])
        if dtype not in _DTYPES or not _are_sizes(shape) or shape[:1] != [rows]:
            raise ValueError("its description is of something else")
        if length != math.prod(shape) * dtype.itemsize + _ABOUT:
            raise ValueError("its length is wrong")
        tensor = _mapped(file, shape, dtype, mmap.ACCESS_COPY)
    if is_checked and _checksum(tensor) != about["checksum"]:
        raise ValueError("its checksum is wrong")
    return tensor


def remove_unused(folder: Path, pattern: str) -> None:
    """Deletes the files that no living process has mapped, such as those of a killed one."""
    for path in folder.glob(pattern):
        # in use, gone by now, or on a disk that knows no locks
        with contextlib.suppress(OSError), path.open("r+b") as file:
            lock(file)
            path.unlink()


def _mapped(
    file: BinaryIO,
    shape: Sequence[int],
    dtype: torch.dtype,
    access: int,
) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.zeros(tuple(shape), dtype=dtype)
    with contextlib.suppress(OSError):
        # what is mapped keeps the file open, and with it the lock
        lock(file, shared=True)
    values = mmap.mmap(file.fileno(), count * dtype.itemsize, access=access)
    flat = torch.frombuffer(values, dtype=dtype, count=count)
    return flat.view(tuple(shape))


def _are_sizes(shape: Any) -> bool:
    """Whether it is a list of whole numbers from 0."""
    if not isinstance(shape, list):
        return False
    return all(type(size) is int and size >= 0 for size in shape)


def _checksum(tensor: Tensor) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    values = bytes_of(tensor)
    for start in range(0, len(values), _BLOCK):
        end = start + _BLOCK
        hasher.update(values[start:end])
    return hasher.hexdigest()
