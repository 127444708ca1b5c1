"""Where the members of tar shards lie: their headers are read once, and kept in a file beside the shards."""

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from hybrid_lightning.data.table_files import read_arrow
from hybrid_lightning.errors import ConfigError, counted, reason
from hybrid_lightning.files import is_regular_file, whole_file

if TYPE_CHECKING:
    import pyarrow

INDEX = "shards.index.parquet"
"""The file's name. It is taken as it is where size and time of a shard are those it was made of, and else made anew."""
TEXTS = ("cls", "txt", "text", "json")
"""Last suffixes of members that are read into the index, as cells; all others are files."""
_THREADS = 8  # shards at once: on a shared file system one waits for each header
_LONGEST_TEXT = 2**20  # bytes
_LONGEST_END = 2**20  # bytes behind the last member, which are empty blocks of 512
_BLOCK = 512  # bytes, of which tar archives are made
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}
_NAMES = ("key", "extension", "offset", "bytes", "text")


class ShardIndex(NamedTuple):
    """The members of one shard, those of a sample one after the other."""

    path: Path
    size: int  # bytes
    changed: int  # nanoseconds, the time of the last change
    members: "pyarrow.Table"
    """Columns ``key`` of the sample, ``extension``, ``offset`` and ``bytes`` of the content, and ``text`` or null."""


class Member(NamedTuple):
    """A row of `ShardIndex.members`."""

    key: str
    extension: str
    offset: int
    bytes: int
    text: str | None


def read_indices(paths: Sequence[Path]) -> list[ShardIndex]:
    """The index of each shard, from the file beside it if it holds one, and else from its headers, which is kept.

    Raises:
        ConfigError: If a shard is damaged, compressed, empty, or holds a member twice.
    """
    found: list[ShardIndex] = []
    by_folder: dict[Path, list[Path]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, []).append(path)
    known: dict[Path, ShardIndex] = {}
    for folder, own in by_folder.items():
        stored = _stored(folder)
        missing = [path for path in own if path not in stored]
        if missing:
            _tell(f"data: reading the headers of {counted(len(missing), 'shard')} in {str(folder)!r}")
            with ThreadPoolExecutor(_THREADS) as pool:
                made = list(pool.map(index_of, missing))
            stored |= {one.path: one for one in made}
            _store(folder, stored)
        known |= stored
    found += [known[path] for path in paths]
    return found


def index_of(path: Path) -> ShardIndex:
    """The index of a shard, from its headers."""
    import pyarrow

    place = path.stat()
    try:
        members = list(_members(path, place.st_size))
    except ConfigError:
        raise
    except Exception as error:  # tarfile raises also MemoryError and RecursionError on a broken header
        raise ConfigError(f"the shard {str(path)!r} is damaged: {reason(error)} Fetch or write it again.") from error
    if not members:
        raise ConfigError(
            f"the shard {str(path)!r} holds no samples: of a sample 0001 the members are named such as 0001.jpg and "
            f"0001.cls."
        )
    _refuse_repeated(path, members)
    columns = [pyarrow.array(column, kind) for column, kind in zip(zip(*members, strict=True), _kinds(), strict=True)]
    return ShardIndex(path, place.st_size, place.st_mtime_ns, pyarrow.table(dict(zip(_NAMES, columns, strict=True))))


def _kinds() -> "list[pyarrow.DataType]":
    """Of the columns of an index."""
    import pyarrow

    text = pyarrow.large_string()  # of which a column may be longer than 2 GiB
    return [text, pyarrow.string(), pyarrow.int64(), pyarrow.int64(), text]


def _members(path: Path, size: int) -> Iterator[Member]:
    """The members that belong to samples; folders, hidden files and those without an extension do not."""
    with path.open("rb") as file:
        start = file.read(2)
        if start in _COMPRESSED:
            raise ConfigError(
                f"the shard {str(path)!r} is compressed with {_COMPRESSED[start]}, so that no sample of it can be read "
                f"alone. Decompress it: images and sounds are compressed in themselves."
            )
        end, last = 0, "its beginning"
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (info := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # they take a kilobyte each
                end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK if info.isreg() else info.offset_data
                last = repr(info.name)
                if info.size < 0 or end > size:
                    raise tarfile.ReadError(f"it ends within {last}")
                key, extension = split_name(info.name)
                if not extension or info.isdir():
                    continue
                if not info.isreg() or info.sparse is not None:
                    raise tarfile.ReadError(f"{last} is a link or the like, not a plain file")
                info.name.encode()  # raises ValueError for a name that is not in UTF-8
                text = _text(file, info) if extension.rpartition(".")[2] in TEXTS else None
                yield Member(key, extension, info.offset_data, info.size, text)
        file.seek(end)
        rest = file.read(_LONGEST_END)
        if len(rest) < _BLOCK or rest.strip(b"\0"):
            what = "something else than a member" if rest.strip(b"\0") else "no end of the archive"
            raise tarfile.ReadError(f"behind {last} there is {what}, so that samples may be missing")


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member's name, which part at the first dot: ``a/0001.seg.png`` → a/0001, seg.png.

    The extension is in small letters; it is empty for a hidden file, and for a name without one.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    if not stem or (stem.startswith("__") and stem.endswith("__")):
        return name, ""
    return f"{folder}{slash}{stem}", extension.lower()


def _text(file: IO[bytes], info: tarfile.TarInfo) -> str:
    """The text of a member; of JSON in one line."""
    if info.size > _LONGEST_TEXT:
        raise tarfile.ReadError(f"{info.name!r} has {info.size} bytes, and a text at most {_LONGEST_TEXT}")
    place = file.tell()
    file.seek(info.offset_data)
    content = file.read(info.size)
    file.seek(place)
    try:
        text = content.decode("utf-8-sig")
        if info.name.lower().endswith(".json"):
            text = json.dumps(_object(text), ensure_ascii=False)
            text.encode()  # raises ValueError for half of a pair of surrogates, which is no letter
    except (ValueError, RecursionError) as error:  # those of Unicode and JSON are ValueErrors
        raise tarfile.ReadError(f"{info.name!r} cannot be read as text: {reason(error)}") from None
    return text


def _object(text: str) -> Mapping[str, object]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError('it is not an object, such as {"label": "cat"}')
    return value


def _refuse_repeated(path: Path, members: Sequence[Member]) -> None:
    """Raises `ConfigError` if a sample has two members of one name, or its members lie apart."""
    seen: set[str] = set()
    before: str | None = None
    own: set[str] = set()
    for member in members:
        if member.key != before:
            if member.key in seen:
                raise ConfigError(
                    f"the shard {str(path)!r} holds the key {member.key!r} twice, with other samples between. Give "
                    f"each sample a key of its own, and write its members one after the other."
                )
            seen.add(member.key)
            before, own = member.key, set()
        if member.extension in own:
            name = f"{member.key}.{member.extension}"
            raise ConfigError(f"the shard {str(path)!r} holds the member {name!r} twice.")
        own.add(member.extension)


def _stored(folder: Path) -> dict[Path, ShardIndex]:
    """The indices that are kept in a folder, of shards that are as they were; nothing of a file that is damaged."""
    import pyarrow

    path = folder / INDEX
    if not is_regular_file(path):
        return {}
    try:
        table, _, _ = read_arrow(path)
        return _parted(folder, table)
    except (ConfigError, pyarrow.ArrowException, KeyError, ValueError, TypeError) as error:
        _tell(f"data: {str(path)!r} is not used and made anew: {reason(error)}")
        return {}


def _parted(folder: Path, table: "pyarrow.Table") -> dict[Path, ShardIndex]:
    """The rows of each shard, which lie one after the other."""
    encoded = table.column("shard").combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    found = {}
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
        name = str(encoded.dictionary[int(codes[start])].as_py())
        path = folder / name
        if Path(name).name != name or not is_regular_file(path):
            continue
        size, changed = (int(table.column(column)[start].as_py()) for column in ("shard_bytes", "changed"))
        place = path.stat()
        if (place.st_size, place.st_mtime_ns) == (size, changed):
            members = table.slice(start, end - start).select(list(_NAMES)).cast(_schema())
            _check_places(members, size)
            found[path] = ShardIndex(path, size, changed, members)
    return found


def _schema() -> "pyarrow.Schema":
    import pyarrow

    return pyarrow.schema(list(zip(_NAMES, _kinds(), strict=True)))


def _check_places(members: "pyarrow.Table", size: int) -> None:
    """Raises `ValueError` unless all members lie within their shard."""
    offsets, lengths = (members.column(name).to_numpy() for name in ("offset", "bytes"))
    is_within = (offsets >= 0) & (lengths >= 0) & (lengths <= size) & (offsets <= size - lengths)
    if not is_within.all() or members.column("key").null_count or members.column("extension").null_count:
        raise ValueError("it names places outside of a shard")


def _store(folder: Path, indices: Mapping[Path, ShardIndex]) -> None:
    """Keeps indices in their folder, if it can be written."""
    import pyarrow
    import pyarrow.parquet

    tables = []
    for index in indices.values():
        table = index.members
        for name, value in (("shard", index.path.name), ("shard_bytes", index.size), ("changed", index.changed)):
            table = table.append_column(name, pyarrow.repeat(value, len(table)))
        tables.append(table)
    try:
        with whole_file(folder / INDEX) as temporary:
            pyarrow.parquet.write_table(pyarrow.concat_tables(tables), temporary, compression="zstd")
    except OSError as error:
        _tell(
            f"data: the index of {str(folder)!r} cannot be kept, so that each start reads all headers: {reason(error)}"
        )


def _tell(line: str) -> None:
    """Prints a line, on the first rank."""
    from lightning.pytorch.utilities import rank_zero_info  # here, because `init` needs no Lightning

    rank_zero_info(line)
