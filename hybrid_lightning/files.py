"""Files that appear whole or not at all."""

import csv
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".part"  # what a file's name ends with while it is being written


def is_regular_file(path: str | Path) -> bool:
    """Whether a file is there that ends: no folder, pipe, socket or device; False for a name that no file can have."""
    try:
        return stat.S_ISREG(Path(path).stat().st_mode)
    except (OSError, ValueError):  # such as a name of more than 255 letters, or one with a zero byte
        return False


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; False for a name that none can have."""
    try:
        return stat.S_ISDIR(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False


def holds_files_alone(folder: str | Path) -> bool:
    """Whether what lies in a folder are files and folders: a program that opens a pipe waits for its other end."""
    return all(is_regular_file(path) or path.is_dir() for path in Path(folder).iterdir())


def exists(path: str | Path) -> bool:
    """Whether something is there; False for a name that no file can have."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def lock(file: IO[Any], shared: bool = False) -> None:
    """Locks a file for as long as it, or what is mapped of it, is open; others may share a `shared` lock.

    Raises:
        BlockingIOError: If another process holds it; a shared lock waits instead.
        OSError: Where there are no locks of files.
    """
    if fcntl is None:
        raise OSError("this system has no locks of files")
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Gives a temporary name in the folder of `path`; what was written there takes the place of `path` in one step."""
    # A process that is killed leaves the old file, or none, and perhaps a file ending in `TEMPORARY`. After an error in
    # the block nothing is left.
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_csv(path: str | Path, names: Iterable[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table as UTF-8 text, with the names of its columns in the first line; None becomes an empty cell."""
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(list(names))
        writer.writerows(rows)


def remove_leftovers(folder: Path) -> None:
    """Removes the files and folders that killed processes left unfinished in a folder, but not in those below it."""
    for path in list(folder.glob(f"*{TEMPORARY}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
