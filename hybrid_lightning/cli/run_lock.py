"""Who owns a run's folder: one process at a time writes into it."""

import contextlib
import os
import re
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import IO

from lightning.pytorch.utilities import rank_zero_only

from hybrid_lightning.errors import ConfigError, writing
from hybrid_lightning.files import lock

_NAME = ".lock"
_PATIENCE = 15.0  # seconds in which the data workers of a process that was killed notice it, and let go


def is_first_rank() -> bool:
    """Whether this is the first process of a run, known from its environment before any has been started."""
    return getattr(rank_zero_only, "rank", 0) == 0


class RunLock:
    """Holds a run's folder until it is released or the process ends; only the first rank asks for it.

    Raises:
        ConfigError: If another process holds it; the message says which.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[str] | None = None
        self._process = os.getpid()
        deadline = time.monotonic() + _PATIENCE
        if is_first_rank():
            folder.mkdir(parents=True, exist_ok=True)
            while self._file is None:
                self._file = self._locked(deadline)

    def _locked(self, deadline: float) -> IO[str] | None:
        """The locked file; None if it has to be tried again."""
        path = self.folder / _NAME
        with writing(path, "Look what stands in its place."):
            file = open(path, "a+", encoding="utf-8", opener=_opened_itself)  # noqa: SIM115  open for as long as it is held
        try:
            lock(file)
        except BlockingIOError:
            with file:
                file.seek(0)
                owner = file.read(200).strip() or "another process"
            if _has_died(owner) and time.monotonic() < deadline:
                time.sleep(0.2)
                return None
            raise ConfigError(
                f"{str(self.folder)!r} is being written by {owner!r}. Wait for its end, or end it; a run without "
                f"--resume makes a folder of its own.",
                "--resume",
            ) from None
        except OSError:  # a system, or a disk, without locks
            return file
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            file.close()  # its owner has removed it meanwhile
            return None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        file.flush()
        return file

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Lets others have the folder; does nothing in a fork of the owner."""
        if self._file is not None and self._process == os.getpid():
            with contextlib.suppress(OSError):  # the folder may be gone
                (self.folder / _NAME).unlink()
            self._file.close()
            self._file = None


def _opened_itself(path: str, flags: int) -> int:
    """Opens a file, but not what a link in its place names, which would be emptied."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _has_died(owner: str) -> bool:
    """Whether what a lock says of its owner names a process of this machine that is no more."""
    found = re.match(r"process (\d+) on (\S+)", owner)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # of another user
        return False
    return False
