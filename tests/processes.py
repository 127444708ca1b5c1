"""Python processes for tests: one that hangs says where, and takes its children with it."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*words: str, cwd: Path = ROOT, seconds: int = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``python words`` with one thread and our modules, and waits for it.

    Args:
        words: Of the command line.
        cwd: Folder to run it in.
        seconds: Limit, after which all its processes print their tracebacks and are killed.
        environment: More variables.
    """
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
    command = [sys.executable, *words]
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, **ours, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"still running after {seconds} s\n{out[-4000:]}\n{err[-12000:]}") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # another rank, if one has failed
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def succeed(*words: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same; fails with the ends of its output unless the exit status is 0."""
    done = python(*words, cwd=cwd, **environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done
