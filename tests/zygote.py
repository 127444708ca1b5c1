"""A process that has imported Lightning once and forks for every program that a test wants to run.

An interpreter that imports Lightning costs 6 to 10 s of CPU time before it does anything; a fork of this one costs
0.1 s. A fork is as a new interpreter that has imported the same, except that what the environment decides when an
interpreter starts or when a library is imported (hash seed, ``-X`` options, numbers of threads of numpy) is this
process's own.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIBRARIES = ("lightning.pytorch", "torch._dynamo", "torch.distributed.fsdp", "sklearn.datasets")
"""Imported beside our package, because most programs need them."""
PYTHON = "HYBRID_TESTS_PYTHON"
"""Variable with the interpreter that a fork starts others with, such as Lightning its ranks."""


@dataclass
class Request:
    """What to run; the rest of a line of JSON that `tests.processes` writes."""

    words: list[str]
    folder: str
    environment: dict[str, str]
    files: list[int] = field(default_factory=list)


class Server:
    """Forks at each request, and tells the client how its process ended; ends when the last client has left.

    A client that leaves before its process has ended takes it along.
    """

    def __init__(self, listening: socket.socket) -> None:
        self.listening = listening
        self.selector = selectors.DefaultSelector()
        self.clients: set[socket.socket] = set()
        self.running: dict[int, socket.socket] = {}
        self.wakes, self.woken = socket.socketpair()
        for end in (self.wakes, self.woken, listening):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.woken.fileno(), warn_on_full_buffer=False)
        self.selector.register(listening, selectors.EVENT_READ)
        self.selector.register(self.wakes, selectors.EVENT_READ)

    def serve(self) -> Request | None:
        """Returns a request in the process that has to run it, and nothing in this one, at its end."""
        while True:
            for key, _ in self.selector.select():
                request = self._answer(key.fileobj)
                if request is not None:
                    return request
            if not self.clients and not self._late_client():
                return None

    def _answer(self, source: Any) -> Request | None:
        if source is self.listening:
            self._accept()
        elif source is self.wakes:
            self._reap()
        elif source in self.clients:
            return self._read(source)
        return None

    def _accept(self) -> None:
        client, _ = self.listening.accept()
        client.setblocking(True)
        self.clients.add(client)
        self.selector.register(client, selectors.EVENT_READ)

    def _late_client(self) -> bool:
        """Whether somebody came while the last one left; from here on, nobody else can."""
        Path(self.listening.getsockname()).unlink(missing_ok=True)
        with contextlib.suppress(BlockingIOError):
            self._accept()
        return bool(self.clients)

    def _read(self, client: socket.socket) -> Request | None:
        data, files = b"", []
        with contextlib.suppress(ConnectionResetError):  # it was killed before it read how its process has ended
            data, files, _, _ = socket.recv_fds(client, 65536, 2)
        if not data:
            self._leave(client)
            return None
        while not data.endswith(b"\n"):
            data += client.recv(65536)
        request = Request(**json.loads(data), files=files)
        number = os.fork()
        if number == 0:
            self._forget()
            return request
        for file in files:
            os.close(file)
        self.running[number] = client
        self._tell(client, number)
        return None

    def _leave(self, client: socket.socket) -> None:
        for number, owner in self.running.items():
            if owner is client:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(number, signal.SIGKILL)
        self.selector.unregister(client)
        self.clients.remove(client)
        client.close()

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self.wakes.recv(65536)
        while self.running:
            number, status = os.waitpid(-1, os.WNOHANG)
            if not number:
                return
            client = self.running.pop(number)
            if client in self.clients:
                self._tell(client, os.waitstatus_to_exitcode(status))

    def _tell(self, client: socket.socket, number: int) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(f"{number}\n".encode())

    def _forget(self) -> None:
        """In the fork: leaves everything to the server."""
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for end in (*self.clients, self.listening, self.wakes, self.woken):
            end.close()


def import_all() -> None:
    """Imports the libraries and every module of the package, as far as they are installed."""
    package = importlib.import_module("hybrid_lightning")
    modules = [module.name for module in pkgutil.walk_packages(package.__path__, "hybrid_lightning.")]
    for name in (*LIBRARIES, *modules):
        if not name.endswith("__main__"):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("hybrid_lightning"):
                    raise


def become(request: Request) -> None:
    """Makes this process what a new interpreter would be in this folder, with these files and this environment."""
    for number, file in enumerate(request.files, start=1):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request.folder)
    here = entries_of_path()
    os.environ.clear()
    os.environ.update(request.environment)
    sys.path[: 1 + len(here)] = ["", *entries_of_path()]
    sys.executable = os.environ.get(PYTHON, sys.executable)
    importlib.invalidate_caches()
    # a shell that started the tests in the background has the signal ignored, which is inherited
    signal.signal(signal.SIGINT, signal.default_int_handler)
    set_libraries()


def entries_of_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def set_libraries() -> None:
    """Sets what the libraries read from the environment, or draw, when they are imported."""
    import numpy as np
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    np.random.seed()
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # in the order of Lightning
    ranks = [os.environ[name] for name in names if name in os.environ]
    rank_zero_only.rank = int(ranks[0]) if ranks else 0
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def run(words: list[str]) -> None:
    """Runs ``python words``."""
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path[0] = str(Path.cwd())
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).absolute().parent)
        runpy.run_path(words[0], run_name="__main__")


class End:
    """Ends the interpreter after all other functions for its end, before it takes every module apart, for 0.4 s."""

    status: int | None = None

    def note(self, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            code = error.code if error.code is not None else 0
            self.status = code & 0xFF if isinstance(code, int) else 1
        elif not isinstance(error, KeyboardInterrupt):  # after which an interpreter ends itself by the signal
            self.status = 1

    def __call__(self) -> None:
        if self.status is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.status)


def main() -> None:
    """Serves on the socket that this process has inherited under the given number."""
    end = End()
    atexit.register(end)  # the first of all, and therefore the last
    listening = socket.socket(fileno=int(sys.argv[1]))
    import_all()
    gc.collect()
    gc.freeze()  # forks share its memory
    request = Server(listening).serve()
    if request is None:
        return
    try:
        become(request)
        run(request.words)
        end.status = 0
    except BaseException as error:
        end.note(error)
        raise


if __name__ == "__main__":
    main()
