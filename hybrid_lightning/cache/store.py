"""Features of all samples of a split: in memory up to a budget, beyond it in files that are mapped into memory."""

import contextlib
import math
import os
import warnings
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hybrid_lightning.cache.feature_file import attach, create, finish, read, remove_unused
from hybrid_lightning.files import TEMPORARY

_SUFFIX = ".features"


class FeatureStore:
    """Tensors `(rows, ...)` by key; a key names everything that the values depend on.

    A file is complete under its name or not there at all, and is read only if its checksum is right.

    Args:
        folder: Where files lie; other runs may use it at the same time.
        budget: Bytes that may stay in the memory of this process; beyond them tensors are files.
        token: What names of unfinished files hold, the same for processes that share files; none for one alone.
        writes: Whether this process makes, checks and removes the files, or maps those of the process that does and
            that is asked to `find` or `allocate` the same keys before.
        has_all: Whether no other process writes files of its own for the same fit.
    """

    def __init__(
        self,
        folder: Path,
        budget: float,
        token: str = "",
        writes: bool = True,
        has_all: bool = False,
    ) -> None:
        self.folder = folder
        self.budget = budget
        self.writes = writes
        self.has_all = has_all
        self.verified: set[str] = set()
        """Keys whose values have been compared with a live forward."""
        self._token = token or f"{os.getpid()}-{id(self)}"
        self._kept: dict[str, Tensor] = {}
        self._sizes: dict[str, int] = {}  # bytes in memory, also of what is being filled in; 0 for files
        if writes:
            remove_unused(folder, f"*{_SUFFIX}*{TEMPORARY}")

    def find(self, key: str, rows: int) -> Tensor | None:
        """What has been kept under a key, here or in a file of an earlier process; None if there is nothing whole."""
        if key in self._kept:
            return self._kept[key]
        path = self._path(key)
        try:
            tensor = read(path, rows, is_checked=self.writes)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if self.writes:
                warnings.warn(f"cache: {path} is damaged and computed again ({error})", stacklevel=2)
                _remove(path)
            return None
        self._kept[key] = tensor
        self._sizes[key] = 0
        return tensor

    def allocate(
        self,
        key: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        """Zeros to be filled in; `OSError` if the disk has no room for them."""
        size = max(1, math.prod(shape) * dtype.itemsize)
        in_memory = sum(self._sizes.values())
        if in_memory + size <= self.budget:
            self._sizes[key] = size
            return torch.zeros(tuple(shape), dtype=dtype)
        self._sizes[key] = 0
        unfinished = self._unfinished(key)
        make = create if self.writes else attach
        return make(unfinished, shape, dtype)

    def keep(self, key: str, tensor: Tensor) -> None:
        """Keeps a tensor of `allocate` that has been filled in, by all processes if they share it."""
        self._kept[key] = tensor
        if self.writes and self.is_file(key):
            # if somebody has removed the folder, what is mapped lives on
            with contextlib.suppress(FileNotFoundError):
                finish(tensor, self._unfinished(key), self._path(key))

    def is_file(self, key: str) -> bool:
        """Whether the values under a key, allocated or kept, are in a file."""
        return not self._sizes[key]

    def forget(self, keys: Iterable[str]) -> None:
        """Gives up what is kept, or was to be filled in, under these keys, and removes its files."""
        for key in keys:
            self._kept.pop(key, None)
            size = self._sizes.pop(key, None)
            if size == 0 and self.writes:
                _remove(self._path(key))
                _remove(self._unfinished(key))

    def keep_only(self, keys: Collection[str]) -> None:
        """Forgets everything else; with nothing left, removes what killed runs left, and an empty folder."""
        others = self._sizes.keys() - set(keys)
        self.forget(others)
        if keys or not self.writes:
            return
        remove_unused(self.folder, f"*{_SUFFIX}*")
        # it may hold files of another run
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _unfinished(self, key: str) -> Path:
        # another run in the same folder may be filling in the same features
        return self.folder / f"{key}{_SUFFIX}.{self._token}{TEMPORARY}"


def _remove(path: Path) -> None:
    """Deletes a file; one that cannot be is no reason to end a run."""
    with contextlib.suppress(OSError):
        path.unlink()
