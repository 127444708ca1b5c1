"""Features of all samples of a split: in memory up to a budget, beyond it in files that are mapped into memory."""

import contextlib
import hashlib
import json
import math
import os
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

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
        self.folder, self.budget = folder, budget
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
        self._kept[key], self._is_file[key] = tensor, True
        return tensor

    def allocate(self, key: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Zeros to be filled in; `OSError` if the disk has no room for them."""
        size = math.prod(shape) * dtype.itemsize
        self._is_file[key] = self._held() + size > self.budget
        if not self._is_file[key]:
            return torch.zeros(tuple(shape), dtype=dtype)
        path = self._unfinished(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            # a write to a mapped file would kill the process where the disk is full
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        return _mapped(path, shape, dtype, shared=True)

    def keep(self, key: str, tensor: Tensor) -> None:
        """Keeps a tensor of `allocate` that has been filled in."""
        self._kept[key] = tensor
        if not self._is_file[key]:
            return
        path = self._path(key)
        about = {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "checksum": _checksum(tensor),
        }
        with self._unfinished(key).open("r+b") as file:
            os.fsync(file.fileno())
        with whole_file(_about(path)) as temporary:
            temporary.write_text(json.dumps(about), encoding="utf-8")
        self._unfinished(key).replace(path)

    def forget(self, keys: Iterable[str]) -> None:
        """Gives up what is kept, or was to be filled in, under these keys, and removes its files."""
        for key in keys:
            self._kept.pop(key, None)
            if self._is_file.pop(key, False):
                self._remove(self._path(key))
                self._unfinished(key).unlink(missing_ok=True)

    def keep_only(self, keys: Collection[str]) -> None:
        """Forgets everything else, and leaves no empty folder."""
        self.forget([key for key in self._is_file if key not in keys])
        # it may hold files of another run
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _held(self) -> int:
        """Bytes in memory."""
        in_memory = [tensor for key, tensor in self._kept.items() if not self._is_file[key]]
        return sum(tensor.numel() * tensor.element_size() for tensor in in_memory)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _unfinished(self, key: str) -> Path:
        # another run in the same folder may be filling in the same features
        return self.folder / f"{key}{_SUFFIX}.{os.getpid()}-{id(self)}{TEMPORARY}"

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        _about(path).unlink(missing_ok=True)


def _about(path: Path) -> Path:
    return path.with_suffix(".json")


def _read(path: Path, rows: int) -> Tensor:
    """A tensor with this number of rows from a file; `ValueError` if it is not what was written."""
    about = json.loads(_about(path).read_text(encoding="utf-8"))
    shape, dtype = about["shape"], getattr(torch, about["dtype"])
    are_sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    if not are_sizes or not isinstance(dtype, torch.dtype) or shape[:1] != [rows]:
        raise ValueError("its description is of something else")
    if path.stat().st_size != max(math.prod(shape) * dtype.itemsize, 1):
        raise ValueError("its length is wrong")
    tensor = _mapped(path, shape, dtype, shared=False)
    if _checksum(tensor) != about["checksum"]:
        raise ValueError("its checksum is wrong")
    return tensor


def _mapped(path: Path, shape: Sequence[int], dtype: torch.dtype, shared: bool) -> Tensor:
    count = math.prod(shape)
    if not count:
        return torch.zeros(tuple(shape), dtype=dtype)
    return torch.from_file(str(path), shared=shared, size=count, dtype=dtype).view(tuple(shape))


def _checksum(tensor: Tensor) -> str:
    hasher = hashlib.blake2b(digest_size=16)
    values = bytes_of(tensor)
    for start in range(0, len(values), _BLOCK):
        hasher.update(values[start : start + _BLOCK])
    return hasher.hexdigest()
