"""Signals that tell a run to end: noted when they come, acted on at the end of the step."""

import os
import signal
import sys
import threading
from collections.abc import Iterable
from typing import Any

REQUEUE = getattr(signal, "SIGUSR1", None)  # what SLURM sends before the time of a job is up; not on Windows
_HANGUP = getattr(signal, "SIGHUP", None)  # the terminal, or the connection to it, was closed


class ToldToEnd:
    """Notes whether this process has been told to end, by SIGTERM, SIGHUP or, within a SLURM job, SIGUSR1."""

    def __init__(self) -> None:
        self.is_told = False
        self.by_requeue = False  # by the signal before the end of a SLURM job's time
        self._earlier: dict[int, Any] = {}
        self._terminals: list[int] = []

    def remember_handlers(self) -> None:
        """Notes who hears the signals now; to be called before Lightning sets handlers of its own."""
        self.is_told = self.by_requeue = False
        self._earlier = {}
        for number in (signal.SIGTERM, _HANGUP, REQUEUE):
            if number is not None:
                self._earlier[number] = signal.getsignal(number)
        self._terminals = _terminals((sys.stdout, sys.stderr))

    def listen(self) -> None:
        """Hears the signals from now on. Lightning puts the earlier handlers back after the run."""
        if threading.current_thread() is not threading.main_thread():
            return
        signal.signal(signal.SIGTERM, self._note)
        # nohup and the like ignore the hangup, which has to stay so
        if _HANGUP in self._earlier and self._earlier[_HANGUP] != signal.SIG_IGN:
            signal.signal(_HANGUP, self._note)
        if REQUEUE in self._earlier and "SLURM_JOB_ID" in os.environ:
            signal.signal(REQUEUE, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.is_told = True
        self.by_requeue = self.by_requeue or number == REQUEUE
        if number == _HANGUP:
            _write_nowhere(self._terminals)
        earlier = self._earlier.get(number)
        if callable(earlier) and number != REQUEUE:  # that of the command line would end the process here and now
            earlier(number, frame)


def _terminals(streams: Iterable[Any]) -> list[int]:
    """The file numbers of those streams that write to a terminal."""
    found = []
    for stream in streams:
        try:
            if os.isatty(stream.fileno()):
                found.append(stream.fileno())
        except (OSError, ValueError, AttributeError):  # replaced by something that is no file
            continue
    return found


def _write_nowhere(numbers: Iterable[int]) -> None:
    """Replaces terminals that are gone: what a progress bar prints there would end the run before it saves."""
    for number in numbers:
        if not os.isatty(number):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
