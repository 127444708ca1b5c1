"""Sharded checkpoints: a folder to which each rank writes its local shards, read without running code from a file."""

import io
import math
import pickle
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.tensor as sharded
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from hybrid_lightning.errors import listing
from hybrid_lightning.files import TEMPORARY, is_regular_file

REST = "meta.pt"  # file in the folder that holds all that is not sharded
OLD = ".old"  # what the name of a folder ends with while a new one takes its place
_PLACE = "sharded_tensor"
_SHARDS = "shards"  # key of `REST`: file of shards → checksum; older folders have none
_END = 65536  # bytes at the end of an archive, in which its list of contents lies
_HARMLESS = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(n for n, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}


class _Unpickler(pickle.Unpickler):
    """Makes nothing but the records that `torch.distributed.checkpoint` writes about tensors."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _HARMLESS.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} is not a record of tensors")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Reads the records of a folder with `_Unpickler`; torch's own reader would run code from the file."""

    checksums: Any = None  # of the files of shards, if the folder states them

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        metadata = _read_record(Path(self.path))
        for record in (metadata.storage_data or {}).values():
            name = str(record.relative_path)
            if Path(name).name != name:
                raise pickle.UnpicklingError(f"{name!r} is not a file of this folder")
            _verify_record(Path(self.path) / name, record.offset, record.length)
        if self.checksums is not None:
            _refuse_other_shards(_checksums(Path(self.path), metadata), self.checksums)
        stored = sum(record.length for record in (metadata.storage_data or {}).values())
        for name, entry in metadata.state_dict_metadata.items():
            if not isinstance(entry, TensorStorageMetadata):
                continue
            if _bytes_of(entry) > stored:
                raise OSError(f"its record is damaged: {name!r} would have {_bytes_of(entry)} bytes")
            if not _is_covered(entry):
                raise OSError(f"a shard of {name!r} is missing, or reaches beyond it")
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


def _read_record(folder: Path) -> Metadata:
    """What a folder says about its shards; nothing of it has been checked."""
    path = folder / ".metadata"
    if not is_regular_file(path):  # a pipe would never end
        raise OSError(f"the record of its shards is missing: there is no file {path.name!r}")
    with path.open("rb") as file:
        metadata = _Unpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise pickle.UnpicklingError(f"a {type(metadata).__name__} is not the record of a checkpoint")
    return metadata


def _checksums(folder: Path, metadata: Metadata) -> dict[str, int]:
    """File of shards → checksum of those of its tensors, which stand at the end of each; little is read."""
    found: dict[str, int] = {}
    records = (metadata.storage_data or {}).values()
    for record in sorted(records, key=lambda record: (str(record.relative_path), record.offset)):
        name = str(record.relative_path)
        with (folder / name).open("rb") as file:
            skipped = max(0, record.length - _END)
            file.seek(record.offset + skipped)
            end = io.BytesIO(file.read(record.length - skipped))
        with zipfile.ZipFile(end) as archive:
            own = [entry.CRC for entry in archive.infolist()]
        found[name] = zlib.crc32(repr(own).encode(), found.get(name, 0))
    return found


def _refuse_other_shards(found: Mapping[str, int], stated: Any) -> None:
    """Raises OSError if a file of shards is whole, and not the one that was written with this folder."""
    if not isinstance(stated, Mapping):
        raise OSError("the checksums of its shards are damaged.")
    other = [name for name, checksum in found.items() if stated.get(name) != checksum]
    if other:
        raise OSError(f"{listing(other)} was written with another checkpoint, such as one of another step.")


def _bytes_of(record: TensorStorageMetadata) -> int:
    return math.prod(record.size) * record.properties.dtype.itemsize


def _is_covered(stated: TensorStorageMetadata) -> bool:
    """Whether the shards of a tensor lie within it, with as many values; what none covers would be left to chance."""
    values = 0
    for chunk in stated.chunks:
        if len(chunk.offsets) != len(stated.size) or len(chunk.sizes) != len(stated.size):
            return False
        for start, length, side in zip(chunk.offsets, chunk.sizes, stated.size, strict=True):
            if start < 0 or length < 0 or start + length > side:
                return False
        values += math.prod(chunk.sizes)
    return values == math.prod(stated.size)


def _verify_record(path: Path, start: int, length: int) -> None:
    """Raises OSError unless a tensor in a file of shards, an archive of `torch.save`, matches its checksums."""
    if not is_regular_file(path):
        raise OSError(f"a shard is missing or damaged: there is no file {path.name!r}")
    with path.open("rb") as file:
        file.seek(start)
        content = io.BytesIO(file.read(length))
    try:
        with zipfile.ZipFile(content) as archive:
            found = archive.testzip()
    except (zipfile.BadZipFile, ValueError) as error:
        raise OSError(f"a shard in {path.name!r} is damaged: {error}") from None
    if found is not None:
        raise OSError(f"a shard in {path.name!r} is damaged: its checksum is another.")


def write_folder(content: dict[str, Any], folder: Path) -> None:
    """Writes nested plain data with sharded tensors into a folder that appears whole or not at all."""
    # Collective: call it on every rank, with a folder that all of them see. Each rank writes its local shards, the
    # first one all the rest.
    tensors: dict[str, Tensor] = {}

    def take(value: Any, path: str) -> Any:
        if isinstance(value, DTensor):
            tensors[path] = value.detach()
            return {_PLACE: path}
        return value

    rest = _mapped(content, take)
    temporary = folder.with_name(folder.name + TEMPORARY)
    old = folder.with_name(folder.name + OLD)
    is_first = dist.get_rank() == 0
    if is_first:
        if old.is_dir() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
        temporary.mkdir(parents=True)
    dist.barrier()
    save(tensors, storage_writer=FileSystemWriter(temporary))
    if is_first:
        shards = _checksums(temporary, _read_record(temporary))
        torch.save({**rest, _SHARDS: shards}, temporary / REST)
        if folder.is_dir():
            folder.rename(old)  # a folder cannot be replaced in one go; one of the two is always there
        folder.unlink(missing_ok=True)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def read_folder(
    folder: Path, mesh: DeviceMesh | None = None, without: Collection[str] = (), tensors: bool = True
) -> dict[str, Any]:
    """What `write_folder` wrote on any number of ranks, without some keys; sharded tensors can be left unread."""
    # Tensors are sharded over the ranks of a mesh, along their first dimension, by a call on each of these; without a
    # mesh, this process alone reads full tensors. Raises `pickle.UnpicklingError` if a file holds anything that could
    # run code, and OSError if a shard is missing or damaged.
    content = torch.load(folder / REST, map_location="cpu", weights_only=True)
    checksums = content.pop(_SHARDS, None)
    content = {key: value for key, value in content.items() if key not in without}
    if not tensors:
        return content
    reader = _Reader(folder)
    reader.checksums = checksums
    records = reader.read_metadata().state_dict_metadata
    found: dict[str, Tensor] = {}

    def prepare(value: Any, path: str) -> Any:
        if isinstance(value, dict) and value.keys() == {_PLACE}:
            found[path] = _empty(records[path], mesh)
            return found[path]
        return value

    filled: dict[str, Any] = _mapped(content, prepare)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process")  # it is
            load(found, storage_reader=reader, no_dist=mesh is None)
    except CheckpointException as error:  # a BaseException, which would pass by all that handles errors of files
        failure, _ = next(iter(error.failures.values()))
        raise OSError(f"a shard is missing or damaged: {failure}") from None
    return filled


def _empty(record: Any, mesh: DeviceMesh | None) -> Tensor:
    if not isinstance(record, TensorStorageMetadata):
        raise pickle.UnpicklingError("an entry is not a tensor")
    if mesh is None:
        return torch.empty(record.size, dtype=record.properties.dtype)
    return sharded.empty(*record.size, dtype=record.properties.dtype, device_mesh=mesh, placements=[Shard(0)])


def _mapped(value: Any, change: Callable[[Any, str], Any], path: str = "") -> Any:
    """Nested dicts and lists with `change(value, path)` in place of each value that it changes."""
    changed = change(value, path)
    if changed is not value:
        return changed
    if isinstance(value, dict):
        return {key: _mapped(entry, change, f"{path}/{key}") for key, entry in value.items()}
    if isinstance(value, list):
        return [_mapped(entry, change, f"{path}/{index}") for index, entry in enumerate(value)]
    return value
