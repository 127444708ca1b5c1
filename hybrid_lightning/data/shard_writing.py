"""A manifest with its files as tar shards, in the form of WebDataset."""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybrid_lightning.data.inputs import members_of
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.manifest import ManifestDataModule
from hybrid_lightning.data.shard_table import BETWEEN
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import TEMPORARY

_SEED = 0  # of the order in which training rows are written


class WrittenShards(NamedTuple):
    """What was written."""

    patterns: dict[str, str]  # split → pattern
    samples: dict[str, int]  # split → number of samples
    columns: dict[str, str]  # column of the manifest → column of the shards


def write_shards(data: ManifestDataModule, folder: str | Path, samples: int) -> WrittenShards:
    """Writes a folder of shards, of which each has so many samples, those of training in random order.

    A sample has a member per file, ``<row>.<input>.jpg``, as it is on disk, and ``<row>.json`` with the other cells of
    its inputs, its target, its id and the column of ``split_by``. The folder appears whole or not at all.

    Raises:
        ConfigError: If there is such a folder, a file is missing, or an input has several files in a cell.
    """
    place = Path(folder)
    if place.exists():
        raise ConfigError(f"{str(folder)!r} is there already. Name another folder.", "--output")
    writer = _Writer(data)
    counts = {split: len(dataset) for split, dataset in data.datasets.items() if len(dataset)}
    temporary = place.with_name(f"{place.name}{TEMPORARY}")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    try:
        for split in counts:
            _write_split(writer, temporary, split, data.datasets[split].rows, samples)
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return WrittenShards({split: f"{place}/{split}-*.tar" for split in counts}, counts, writer.columns())


def _write_split(writer: "_Writer", folder: Path, split: str, rows: Tensor, samples: int) -> None:
    """Writes the rows of a split, those of training in random order, so that shards of a sorted manifest are alike."""
    if split == "train":
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(_SEED))]
    shards = torch.split(rows, samples)
    digits = len(str(len(shards) - 1))
    for number, own in enumerate(shards):
        writer.write(folder / f"{split}-{number:0{digits}}.tar", own.tolist())


class _Writer:
    """Writes rows of a manifest into shards."""

    def __init__(self, data: ManifestDataModule) -> None:
        samples = next(iter(data.datasets.values())).samples
        self._files: dict[str, FileInput] = {}
        self._names: dict[str, set[str]] = {}  # column of files → extensions that were written
        cells = [*(data.target.columns if data.target else ()), data.id, data.split_rule.group_column]
        for key, entry in members_of(samples.entries).items():
            if not isinstance(entry, FileInput):
                cells += entry.columns
                continue
            if entry.separator is not None:
                raise ConfigError("a cell has several files, which a member cannot. Use a column each.", entry.where)
            self._files[re.sub(r"\W", "_", key.lower())] = entry
        self._table = data.table
        self._cells = list(dict.fromkeys(name for name in cells if name is not None))

    def write(self, path: Path, rows: list[int]) -> None:
        """Writes one shard."""
        with tarfile.open(path, "w") as archive:
            for row in rows:
                for extension, content in self._members(row):
                    info = tarfile.TarInfo(f"{row:09}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))

    def _members(self, row: int) -> Iterator[tuple[str, bytes]]:
        for name, entry in self._files.items():
            column = entry.columns[0]
            if self._table.texts(column)[row].as_py() is None:
                continue
            with entry.file_of(row) as path:
                if path.is_dir():
                    raise ConfigError(f"row {row}: {path.name!r} is a folder, which no member can be.")
                content = path.read_bytes()
            extension = f"{name}.{path.name.partition('.')[2].lower()}"
            self._names.setdefault(column, set()).add(extension)
            yield extension, content
        yield "json", json.dumps(_fields(self._table, self._cells, row), default=str).encode()

    def columns(self) -> dict[str, str]:
        """Column of the manifest → column of the shards."""
        of_files = {column: BETWEEN.join(sorted(names)) for column, names in self._names.items()}
        return {**of_files, **{column: f"json.{column}" for column in self._cells}}


def _fields(table: Table, columns: list[str], row: int) -> Mapping[str, Any]:
    """The cells of a row that are not empty."""
    cells = {column: table.values(column)[row].as_py() for column in columns}
    return {column: cell for column, cell in cells.items() if cell is not None and cell == cell}
