"""Features of all samples of a split: in memory up to a budget, beyond it in files that are mapped into memory."""

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid_lightning.cache.fingerprints import bytes_of
from hybrid_lightning.files import TEMPORARY, whole_file

_SUFFIX = ".features"
_BLOCK = 2**24  # bytes


class FeatureStore:
    """Tensors `(rows, ...)` by key; a key names everything that the values depend on.

    A file is complete under its name or not there at all, and is read only if its checksum is right.

    Args:
        folder: Where files lie; each process needs one of its own.
        budget: Bytes that may stay in memory; beyond them tensors are files.
    """

    def __init__(self, folder: Path, budget: float) -> None:
        self.folder = folder
        self.budget = budget
        self.verified: set[str] = set()
        """Keys whose values have been compared with a live forward."""
        self._kept: dict[str, Tensor] = {}
        self._is_file: dict[str, bool] = {}

    def find(self, key: str, rows: int) -> Tensor | None:
        """What has been kept under a key, here or in a file of an earlier process; None if there is nothing whole."""
        if key in self._kept:
            return self._kept[key]
        path = self._path(key)
        if not path.exists():
            return None
        try:
            tensor = _read(path, rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"cache: {path} is damaged and computed again ({error})", stacklevel=2)
            self._remove(path)
            return None
        self._kept[key] = tensor
        self._is_file[key] = True
        return tensor

    def allocate(
        self,
        key: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        """Zeros to be filled in; `OSError` if the disk has no room for them."""
        size = math.prod(shape) * dtype.itemsize
        total = self._held() + size
        self._is_file[key] = total > self.budget
        if not self._is_file[key]:
            return torch.zeros(tuple(shape), dtype=dtype)
        path = self._unfinished(key)
        folder = path.parent
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            # a write to a mapped file would kill the process where the disk is full
            length = max(size, 1)
            os.posix_fallocate(file.fileno(), 0, length)
        return _mapped(path, shape, dtype, shared=True)

    def keep(self, key: str, tensor: Tensor) -> None:
        """Keeps a tensor of `allocate` that has been filled in."""
        self._kept[key] = tensor
        if not self._is_file[key]:
            return
        path = self._path(key)
        unfinished = self._unfinished(key)
        dtype = str(tensor.dtype)
        about = {
            "shape": list(tensor.shape),
            "dtype": dtype.removeprefix("torch."),
            "checksum": _checksum(tensor),
        }
        text = json.dumps(about)
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())
        with whole_file(_about(path)) as temporary:
            temporary.write_text(text, encoding="utf-8")
        unfinished.replace(path)

    def forget(self, keys: Iterable[str]) -> None:
        """Gives up what is kept, or was to be filled in, under these keys, and removes its files."""
        for key in keys:
            self._kept.pop(key, None)
            was_file = self._is_file.pop(key, False)
            if was_file:
                path = self._path(key)
                self._remove(path)
                unfinished = self._unfinished(key)
                unfinished.unlink(missing_ok=True)

    def keep_only(self, keys: Collection[str]) -> None:
        """Forgets everything else, and leaves no empty folder."""
        others = [key for key in self._is_file if key not in keys]
        self.forget(others)
        # it may hold files of another run
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _held(self) -> int:
        """Bytes in memory."""
        size = 0
        for key, tensor in self._kept.items():
            if not self._is_file[key]:
                size += tensor.numel() * tensor.element_size()
        return size

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _unfinished(self, key: str) -> Path:
        # another run in the same folder may be filling in the same features
        return self.folder / f"{key}{_SUFFIX}.{os.getpid()}-{id(self)}{TEMPORARY}"

    def _remove(self, path: Path) -> None:
        about = _about(path)
        path.unlink(missing_ok=True)
        about.unlink(missing_ok=True)


def _about(path: Path) -> Path:
    return path.with_suffix(".json")


def _read(path: Path, rows: int) -> Tensor:
    """A tensor with this number of rows from a file; `ValueError` if it is not what was written."""
    text = _about(path).read_text(encoding="utf-8")
    about = json.loads(text)
    shape = about["shape"]
    dtype = getattr(torch, about["dtype"])
    is_dtype = isinstance(dtype, torch.dtype)
    if not is_dtype or not _are_sizes(shape) or shape[:1] != [rows]:
        raise ValueError("its description is of something else")
    size = math.prod(shape) * dtype.itemsize
    found = path.stat().st_size
    if found != max(size, 1):
        raise ValueError("its length is wrong")
    tensor = _mapped(path, shape, dtype, shared=False)
    if _checksum(tensor) != about["checksum"]:
        raise ValueError("its checksum is wrong")
    return tensor


def _are_sizes(shape: Any) -> bool:
    """Whether it is a list of whole numbers from 0."""
    if not isinstance(shape, list):
        return False
    return all(type(size) is int and size >= 0 for size in shape)


def _mapped(
    path: Path,
    shape: Sequence[int],
    dtype: torch.dtype,
    shared: bool,
) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.zeros(tuple(shape), dtype=dtype)
    values = torch.from_file(str(path), shared=shared, size=count, dtype=dtype)
    return values.view(tuple(shape))


def _checksum(tensor: Tensor) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    values = bytes_of(tensor)
    for start in range(0, len(values), _BLOCK):
        end = start + _BLOCK
        hasher.update(values[start:end])
    return hasher.hexdigest()
