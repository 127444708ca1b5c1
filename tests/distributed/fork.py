"""Runs ``python words`` in a fork of the zygote, for launchers that start programs: ``python fork.py words``.

It imports the standard library alone, so that a rank that torchrun or srun has started costs 0.1 s in place of 10.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.processes import Forked


def main(words: list[str]) -> int:
    """Returns the exit status; ends by the signal that has ended the fork."""
    fork = Forked(words, Path.cwd(), dict(os.environ), [1, 2])

    def pass_on(number: int, frame: Any) -> None:
        os.kill(fork.pid, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, pass_on)
    status = fork.wait()
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
