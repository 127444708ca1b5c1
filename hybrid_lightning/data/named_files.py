"""Whether a file is one that a manifest or its cells name, so that writing it would lose it."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hybrid_lightning.data.inputs import members_of
from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.shard_index import INDEX
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError

Identity = tuple[int, int]
"""The device and the number of a file, which are the same under all its names."""


class NamedFiles:
    """What a command asks a DataModule before it writes a file."""

    path: str
    predict_path: str | None

    def names_file(self, path: Path) -> bool:
        """Whether a cell of the manifest, or of that of ``predict_path``, names this file, which is there."""
        for place in ("path", "predict_path"):
            manifest = getattr(self, place)
            if manifest is None:
                continue
            try:
                table = self._table(manifest, f"data.{place}")
                if is_named(path, table, members_of(self._unbound_inputs(table)).values()):
                    return True
            except ConfigError:  # a command that needs no manifest of the training has none, and others tell it
                continue
        return False

    def _table(self, path: str, place: str) -> Table:
        raise NotImplementedError

    def _unbound_inputs(self, table: Table) -> dict[str, Input]:
        raise NotImplementedError


def is_named(path: Path, table: Table, entries: Iterable[Input]) -> bool:
    """Whether cells of a table name an existing file, or the folder in which it lies as one of a series."""
    if table.shards is not None:
        return path.name == INDEX  # no table can take the name of a shard
    own = {_identity(path), _identity(path.parent)}
    for entry in entries:
        if not isinstance(entry, FileInput):
            continue
        entry.bind(table)
        for number in entry.numbers(np.arange(len(table))).tolist():
            identity = _identity(entry.path(number))
            if identity is not None and identity in own:
                return True
    return False


def _identity(path: Path) -> Identity | None:
    """None where there is nothing, or its name is no path."""
    try:
        found = os.stat(path)  # noqa: PTH116  a call of Path.stat takes twice as long
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
