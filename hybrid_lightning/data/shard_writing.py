"""A manifest with its files as tar shards, in the form of WebDataset."""

import glob
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybrid_lightning.data.inputs import members_of
from hybrid_lightning.data.inputs.dicom_files import is_dicom
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.manifest import ManifestDataModule
from hybrid_lightning.data.shard_index import TEXTS
from hybrid_lightning.data.shard_table import BETWEEN
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.files import TEMPORARY

_SEED = 0  # of the order in which training rows are written


class WrittenShards(NamedTuple):
    """What was written."""

    patterns: dict[str, str]  # split → pattern
    samples: dict[str, int]  # split → number of samples
    columns: dict[str, str]  # column of the manifest → column of the shards


def write_shards(data: ManifestDataModule, folder: str | Path, samples: int) -> WrittenShards:
    """Writes a folder of shards, of which each has so many samples, those of training in random order.

    A sample has a member per file, ``<row>.<input>.jpg`` with the bytes that are on disk, and ``<row>.json`` with the
    other cells of its inputs, its target, its id and the column of ``split_by``. The folder appears whole or not at
    all.

    Raises:
        ConfigError: If there is such a folder, a file is missing, or an input has several files in a cell.
    """
    place = Path(folder)
    if place.exists():
        raise ConfigError(f"{str(folder)!r} is there already. Name another folder.", "--output")
    writer = _Writer(data)
    counts = {split: len(dataset) for split, dataset in data.datasets.items() if len(dataset)}
    temporary = place.with_name(f"{place.name}.{os.getpid()}{TEMPORARY}")
    temporary.mkdir(parents=True)
    try:
        for split in counts:
            _write_split(writer, temporary, split, data.datasets[split].rows, samples)
        temporary.rename(place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    folder_pattern = glob.escape(str(place))
    return WrittenShards({split: f"{folder_pattern}/{split}-*.tar" for split in counts}, counts, writer.columns())


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
        self._files: dict[str, tuple[FileInput, Array]] = {}  # name in extensions → input, and which rows lack a file
        self._names: dict[str, set[str]] = {}  # column of files → extensions that were written
        self._table = data.table
        cells = [*(data.target.columns if data.target else ()), data.id, data.split_rule.group_column]
        for key, entry in members_of(samples.entries).items():
            if not isinstance(entry, FileInput):
                cells += entry.columns
                continue
            if entry.separator is not None:
                raise ConfigError("a cell has several files, which a member cannot. Use a column each.", entry.where)
            if entry.columns[0] in self._names:  # of another input as well
                continue
            self._names[entry.columns[0]] = set()
            name = re.sub(r"\W", "_", key.lower())
            while name in self._files:  # of a column that differs in such a letter
                name += "_"
            self._files[name] = (entry, entry.empty(self._table))
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
        for name, (entry, is_empty) in self._files.items():
            if is_empty[row]:
                continue
            with entry.file_of(row) as path:
                if path.is_dir():
                    raise ConfigError(f"row {row}: {path.name!r} is a folder, which no member can be.")
                content, extension = path.read_bytes(), f"{name}{_ending(path)}"
            if extension.rpartition(".")[2] in TEXTS:
                raise ConfigError(
                    f"row {row}: {path.name!r} would be read as a cell, as all members that end in "
                    f"{listing(TEXTS)} are. Save it as another kind of file, such as .csv or .npy.",
                    entry.where,
                )
            self._names[entry.columns[0]].add(extension)
            yield extension, content
        yield "json", json.dumps(_fields(self._table, self._cells, row), default=str).encode()

    def columns(self) -> dict[str, str]:
        """Column of the manifest → column of the shards."""
        found = {column: BETWEEN.join(sorted(names)) for column, names in self._names.items()}
        for column in self._cells:
            found[f"{column} as text" if column in found else column] = f"json.{column}"
        return found


def _ending(path: Path) -> str:
    """What readers tell a file's kind by: its last suffix, and what stands before .gz; numbers end only DICOM files."""
    suffixes = [suffix.lower() for suffix in Path(path.name).suffixes]
    if suffixes[-1:] == [".gz"]:
        return "".join(suffixes[-2:])
    last = suffixes[-1] if suffixes else ""
    if last.strip(".0123456789"):
        return last
    return ".dcm" if is_dicom(path) else ""


def _fields(table: Table, columns: list[str], row: int) -> Mapping[str, Any]:
    """The cells of a row that are not empty."""
    cells = {column: table.cell(column, row) for column in columns}
    return {column: cell for column, cell in cells.items() if cell is not None and cell == cell}
