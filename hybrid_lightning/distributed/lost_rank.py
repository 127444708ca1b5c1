"""What a process of a run does and says when another one has ended."""

import os
import re
import sys
import threading
import time
from collections.abc import Mapping

from hybrid_lightning.errors import reason

_PARENT = "HYBRID_LIGHTNING_PARENT"
_PERIOD = 2.0  # seconds between two looks at the parent
_GRACE = 10.0  # seconds in which a process has done its work, too, if its parent had
_OF_COMMUNICATION = re.compile(r"gloo|NCCL|ProcessGroup|TCPStore|c10d|collective operation", re.IGNORECASE)
_OF_OTHERS = re.compile(
    r"closed|closure|reset by peer|broken pipe|timed out|timeout|refused|aborted|remote process", re.IGNORECASE
)

_ended = threading.Event()


def lost_rank(error: Exception) -> str | None:
    """What to tell of an error that another process has caused by its end, or by not coming; None for any other."""
    text = str(error)
    is_lost = _OF_COMMUNICATION.search(text) and _OF_OTHERS.search(text)
    if not isinstance(error, RuntimeError) or not is_lost:
        return None
    return (
        f"another process of the run has ended, or did not come in time: {reason(error)} What it wrote says why. "
        f"Continue from the last checkpoint with --resume auto."
    )


def name_parent() -> None:
    """Lets the processes that Lightning starts from this one know it."""
    os.environ[_PARENT] = str(os.getpid())


def is_started_by_lightning(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Lightning has started this process from another one of the same command."""
    return environment.get(_PARENT) == str(os.getppid()) and environment.get("LOCAL_RANK", "0") != "0"


def end_with_parent() -> None:
    """Ends this process some seconds after its parent, without which it would wait for half an hour under nccl."""
    # what torchrun and srun have started, they end themselves
    parent = os.getppid()
    _ended.clear()
    threading.Thread(target=_watch, args=(parent,), daemon=True, name="end_with_parent").start()


def command_has_ended() -> None:
    """From now on the end of the parent is no fault: this process only shuts down, which may take it longer."""
    _ended.set()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PERIOD)
    # a parent that has done its work may have been faster
    if _ended.wait(_GRACE):
        return
    print("error: the first process of the run has ended; so does this one", file=sys.stderr, flush=True)
    os._exit(1)
