"""Python processes for tests: one that hangs says where, and takes its children with it.

They are forks of a process that has imported Lightning already (`tests.zygote`), which all workers of a test session
share, unless a real interpreter is asked for.
"""

import atexit
import contextlib
import fcntl
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
LIMIT = 1800
"""Seconds; only there so that a process that hangs ends, also on a machine that is much slower."""
GRACE = 60.0
"""Seconds that other ranks have after one has failed."""
ALONE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
SHARED = "HYBRID_TESTS_ZYGOTE"
"""Variable with the folder of the zygote's socket, for programs that tests start and that fork from it."""
place: Path | None = None
"""Folder that the workers of a test session share."""
_zygotes: list[subprocess.Popen[bytes]] = []
"""Started by this process; they end by themselves."""


class Ended:
    """Stands for a `subprocess.Popen` whose command was run in this process, and ended with `status`."""

    status: int

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def wait(self) -> int:
        return self.status

    def terminate(self) -> None:
        pass


class Forked:
    """A fork of the zygote, to be used as a `subprocess.Popen`."""

    def __init__(self, words: list[str], folder: Path, environment: dict[str, str], files: list[int]) -> None:
        session()
        request = {"words": words, "folder": str(folder), "environment": environment}
        self._socket = connected()
        line = json.dumps(request).encode() + b"\n"
        socket.send_fds(self._socket, [line[:1]], files)
        self._socket.sendall(line[1:])
        self._received = b""
        self.pid = self._number(None)
        self.returncode: int | None = None

    def _number(self, timeout: float | None) -> int:
        """What the zygote says next."""
        self._socket.settimeout(timeout)
        while b"\n" not in self._received:
            data = self._socket.recv(64)
            assert data, "the zygote has ended; its error is in the output of the tests"
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return int(line)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            try:
                self.returncode = self._number(
                    None if timeout is None else max(timeout, 1e-6)
                )  # 0 would mean another thing
            except TimeoutError:
                raise subprocess.TimeoutExpired("fork", timeout or 0) from None
            self._socket.close()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Running:
    """A process with its output; its group is killed at the end of the ``with``."""

    def __init__(self, *words: str, cwd: Path = ROOT, fresh: bool = False, **environment: str) -> None:
        self.words = [str(word) for word in words]
        everything = {**os.environ, **ALONE, **environment}
        with contextlib.ExitStack() as stack:
            self.files = [stack.enter_context(tempfile.TemporaryFile()) for _ in ("out", "err")]
            if fresh:
                out, err = self.files
                command = [sys.executable, *self.words]
                self.process: Any = subprocess.Popen(
                    command, cwd=cwd, env=everything, stdout=out, stderr=err, start_new_session=True
                )
            else:
                numbers = [file.fileno() for file in self.files]
                self.process = Forked(self.words, Path(cwd).absolute(), everything, numbers)
            self.stack = stack.pop_all()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill(signal.SIGKILL)  # another rank, too, if one has failed
        self.process.wait()
        self.stack.close()

    def kill(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def texts(self) -> list[str]:
        """What it has written to stdout and stderr; read so that it can go on to write."""
        numbers = [file.fileno() for file in self.files]
        return [os.pread(number, os.fstat(number).st_size, 0).decode(errors="replace") for number in numbers]

    def give_up(self, seconds: float) -> None:
        """Kills it, and raises an error with its output and where it was."""
        self.kill(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        out, err = self.texts()
        raise AssertionError(f"still running after {seconds} s\n{out[-4000:]}\n{err[-12000:]}")

    def done(self) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(self.words, self.process.returncode, *self.texts())


def python(
    *words: str, cwd: Path = ROOT, seconds: float = LIMIT, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs ``python words`` with one thread and our modules, and waits for it.

    Args:
        words: Of the command line.
        cwd: Folder to run it in.
        seconds: Limit, after which all its processes print their tracebacks and are killed.
        fresh: In a new interpreter, for a test of how one starts, ends or imports; otherwise in a fork.
        environment: More variables.
    """
    with Running(*words, cwd=cwd, fresh=fresh, **environment) as running:
        try:
            running.process.wait(seconds)
        except subprocess.TimeoutExpired:
            running.give_up(seconds)
        return running.done()


def succeed(*words: str, cwd: Path = ROOT, fresh: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same; fails with the ends of its output unless the exit status is 0."""
    done = python(*words, cwd=cwd, fresh=fresh, **environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def ranks(
    count: int, *words: str, cwd: Path = ROOT, seconds: float = LIMIT, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Runs ``python words`` once for each of several ranks, as a cluster would start them, and waits for all.

    Lightning takes them as they are and starts none itself. One that fails ends the others after a while.
    """
    shared = {"WORLD_SIZE": str(count), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    with contextlib.ExitStack() as stack:
        running = []
        for rank in map(str, range(count)):
            own = {**shared, "RANK": rank, "LOCAL_RANK": rank, **environment}
            running.append(stack.enter_context(Running(*words, cwd=cwd, **own)))
        wait_for_all(running, seconds)
        return [one.done() for one in running]


def wait_for_all(running: list[Running], seconds: float) -> None:
    """Waits until all have ended, or until one has failed and the others had time to see it."""
    deadline, failed = time.monotonic() + seconds, False
    while waiting := [one for one in running if one.process.poll() is None]:
        if not failed and any(one.process.returncode for one in running):
            failed, deadline = True, min(deadline, time.monotonic() + GRACE)
        if time.monotonic() > deadline:
            if not failed:
                waiting[0].give_up(seconds)
            waiting[0].kill(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            waiting[0].process.wait(0.05)


def succeed_on(count: int, *words: str, cwd: Path = ROOT, **environment: str) -> list[str]:
    """The same; fails unless each rank ends well. Returns the ranks' stdout."""
    done = ranks(count, *words, cwd=cwd, **environment)
    ends = [f"rank {rank}:\n{one.stdout[-2000:]}{one.stderr[-4000:]}" for rank, one in enumerate(done)]
    assert not any(one.returncode for one in done), "\n".join(ends)
    return [one.stdout for one in done]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@functools.cache
def session() -> socket.socket:
    """A connection that keeps the zygote until this process ends; the first one starts it."""
    with (folder() / "zygote.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            return connected()
        except (FileNotFoundError, ConnectionRefusedError):
            start_zygote()
            return connected()


@functools.cache
def folder() -> Path:
    """The folder of the socket, whose path must not be long."""
    if SHARED in os.environ:
        return Path(os.environ[SHARED])
    if place is not None and len(str(place)) < 80:
        return place
    own = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own


def connected() -> socket.socket:
    with contextlib.ExitStack() as unless_connected:
        client = unless_connected.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(str(folder() / "zygote"))
        unless_connected.pop_all()
        return client


def start_zygote() -> None:
    path = folder() / "zygote"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(128)
        number = listening.fileno()
        zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.zygote", str(number)],
            cwd=ROOT,
            env={**os.environ, **ALONE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[number],
            start_new_session=True,
        )
        _zygotes.append(zygote)
