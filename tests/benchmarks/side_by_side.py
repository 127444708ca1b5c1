"""Starts a benchmark again as processes beside each other, each with the environment of a rank; no benchmark itself.

It imports nothing but the standard library, so that it adds nothing to what a process is measured to hold.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def started(
    words: Sequence[str], ranks: int, threads: int, processes: int | None = None, output: int | None = None
) -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes of this interpreter with these words, one per rank unless there are to be others; none outlives it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
    place |= {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "WORLD_SIZE": str(ranks)}
    running: list[subprocess.Popen[str]] = []
    try:
        for index in range(ranks if processes is None else processes):
            own = {"LOCAL_RANK": str(index % ranks), "RANK": str(index % ranks)}
            environment = {**os.environ, **place, **own}
            running.append(subprocess.Popen([sys.executable, *words], env=environment, stdout=output, text=True))
        yield running
    finally:
        for process in running:
            process.kill()
