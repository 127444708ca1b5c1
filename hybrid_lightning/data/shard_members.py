"""Members of tar shards in place of files: their bytes are read from where the index says that they lie."""

import io
import os
import re
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from hybrid_lightning.data.shard_index import ShardIndex

if TYPE_CHECKING:
    import pyarrow

Array = np.ndarray[Any, Any]
_AT_ONCE = 2**16  # bytes up to which a member is read as a whole
_LONGEST_SUFFIX = 32  # letters
_MOST_OPEN = 64  # shards of a table in a process, of which a system often allows 1024 files


class OpenShard:
    """A shard that is open for reading, and closed when nobody refers to it."""

    def __init__(self, index: ShardIndex) -> None:
        self._path = index.path
        self._file = os.open(index.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        place = os.fstat(self._file)
        if (place.st_size, place.st_mtime_ns) != (index.size, index.changed):
            raise ValueError(f"the shard {str(index.path)!r} has changed since the run began; start it again")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, offset: int, size: int) -> bytes:
        """Some bytes, from any thread, and in a process that was forked."""
        if not hasattr(os, "pread"):  # on Windows
            with self._path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        content = os.pread(self._file, size, offset)
        while 0 < len(content) < size:  # a system gives at most 2 GiB at once
            more = os.pread(self._file, size - len(content), offset + len(content))
            if not more:
                break
            content += more
        return content


class ShardFiles:
    """The shards of a table, of which those that were read last stay open in each process."""

    def __init__(self, indices: Sequence[ShardIndex]) -> None:
        # without the members, as it is sent to workers
        self._indices = [index._replace(members=None) for index in indices]
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": OrderedDict()}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """The content of a member."""
        found = self._open.pop(shard, None) or OpenShard(self._indices[shard])
        self._open[shard] = found
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
        content = found.read(offset, size)
        if len(content) < size:
            raise ValueError(f"the shard ends after {len(content)} of its {size} bytes")
        return content


class _Stream(io.RawIOBase):
    """A member as a stream of bytes."""

    def __init__(self, files: ShardFiles, place: tuple[int, int, int]) -> None:
        self._files, (self._shard, self._offset, self._size) = files, place
        self._at = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place, within the member or behind it."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Reads the next bytes, up to the member's end."""
        count = max(0, min(len(buffer), self._size - self._at))
        buffer[:count] = self._files.read(self._shard, self._offset + self._at, count)
        self._at += count
        return count


class MemberFile:
    """A member, with what the readers of files ask of a path; it is written to a file only for those who need one."""

    def __init__(self, files: ShardFiles, place: tuple[int, int, int], name: str) -> None:
        self._files, self._place, self._name = files, place, name
        self._written: str | None = None

    @property
    def name(self) -> str:
        """The member's name without folders."""
        return self._name.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """What follows the last dot, with it."""
        return f".{self.name.rpartition('.')[2]}"

    def read_bytes(self) -> bytes:
        """The content."""
        return self._files.read(*self._place)

    def open(self, mode: str = "r", encoding: str | None = None) -> IO[Any]:
        """The content as a stream, of bytes in mode ``rb``; of a large member what is asked for alone is read."""
        is_small = self._place[2] <= _AT_ONCE
        stream: Any = (
            io.BytesIO(self.read_bytes()) if is_small else io.BufferedReader(_Stream(self._files, self._place))
        )
        return stream if "b" in mode else io.TextIOWrapper(stream, encoding)

    def stat(self) -> SimpleNamespace:
        """The size."""
        return SimpleNamespace(st_size=self._place[2])

    def is_dir(self) -> bool:
        """False."""
        return False

    def resolve(self) -> "MemberFile":
        """Itself; two members of a table are different files."""
        return self

    def __str__(self) -> str:
        return self._name

    def __fspath__(self) -> str:
        if self._written is None:
            # a reader may need the suffix; what else a name holds may be no part of a path
            suffixes = re.sub(r"[^\w.]", "_", f".{self.name.partition('.')[2]}")[-_LONGEST_SUFFIX:]
            number, self._written = tempfile.mkstemp(suffix=suffixes)
            with os.fdopen(number, "wb") as file:
                file.write(self.read_bytes())
        return self._written

    def close(self) -> None:
        """Removes the file, if one was written."""
        if self._written is not None:
            Path(self._written).unlink(missing_ok=True)
            self._written = None


class Members:
    """The members of one extension, a row per sample.

    Args:
        files: The shards.
        places: Shard, offset and bytes of each row's member, `(rows, 3)` int64.
        names: What the rows' cells hold.
    """

    def __init__(self, files: ShardFiles, places: Array, names: "pyarrow.Array") -> None:
        self._files, self._places, self._names = files, places, names

    def or_else(self, other: "Members") -> "Members":
        """The members of rows that have one, and those of another extension in the other rows."""
        import pyarrow.compute as compute

        is_there = np.asarray(self._names.is_valid(), dtype=bool)[:, None]
        places = np.where(is_there, self._places, other._places)
        return Members(self._files, places, compute.coalesce(self._names, other._names))

    def path(self, row: int) -> Path:
        """The member of a row; stands for a path, as far as readers of files ask."""
        shard, offset, size = self._places[row].tolist()
        return cast(Path, MemberFile(self._files, (shard, offset, size), str(self._names[row].as_py())))


@contextmanager
def closing_member(path: Path) -> Iterator[Path]:
    """The path of a file; of a member, what was written for it is removed in the end."""
    try:
        yield path
    finally:
        if isinstance(cast(object, path), MemberFile):
            cast(MemberFile, path).close()


def source_of(path: Path) -> Path | IO[bytes]:
    """What a library reads a file from: its path, or of a member the bytes, for which no file has to be written."""
    return path.open("rb") if isinstance(cast(object, path), MemberFile) else path
