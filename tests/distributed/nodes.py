"""Two "machines" on one: network namespaces joined by a cable that can be cut; ``python -m tests.distributed.nodes``.

As a program it enters a namespace and runs ``python words`` there: ``-m tests.distributed.nodes NAMESPACE -m module``.
"""

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import zygote

INTERFACE = "cable"
_FOLDER = Path("/run/netns")
_PREFIX = "hybrid"  # then the number of the process that has made it, and 0 or 1
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


@dataclass(frozen=True)
class Nodes:
    """Where processes of two nodes run.

    Args:
        addresses: Of each node, at which the other one reaches it.
        interface: Name of the network interface of both.
        namespaces: Of each node; empty where both are the machine itself.
    """

    addresses: tuple[str, str]
    interface: str
    namespaces: tuple[str, ...] = ()

    def words(self, node: int, *words: str) -> list[str]:
        """The words after ``python`` that run others on a node."""
        return ["-m", __name__, self.namespaces[node], *words] if self.namespaces else [*words]

    def processes(self, node: int) -> list[int]:
        """Those that run in the namespace of a node."""
        return [int(number) for number in _ip("netns", "pids", self.namespaces[node]).split()]

    def cut(self) -> None:
        """Takes the cable away: nothing arrives any more, and nobody is told."""
        _ip("-n", self.namespaces[0], "link", "set", INTERFACE, "down")


LOOPBACK = Nodes(("127.0.0.1", "127.0.0.1"), "lo")


@functools.cache
def missing() -> str | None:
    """Why two namespaces cannot be had here; None where they can."""
    if shutil.which("ip") is None:
        return "there is no 'ip' command (iproute2)"
    try:
        with joined():
            return None
    except subprocess.CalledProcessError as error:
        return f"network namespaces are not permitted here: {error.stderr.strip()}"


@contextlib.contextmanager
def joined() -> Iterator[Nodes]:
    """Two namespaces with a cable between them, deleted at the end, with those of sessions that were killed."""
    _delete_left_over()
    names = (f"{_PREFIX}-{os.getpid()}-0", f"{_PREFIX}-{os.getpid()}-1")
    nodes = Nodes(("10.99.0.1", "10.99.0.2"), INTERFACE, names)
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", INTERFACE, "netns", names[0], "type", "veth", "peer", "name", INTERFACE, "netns", names[1])
        for name, address in zip(names, nodes.addresses, strict=True):
            _ip("-n", name, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in (INTERFACE, "lo"):
                _ip("-n", name, "link", "set", interface, "up")
        yield nodes
    finally:
        for name in names:
            _delete(name)


def _delete_left_over() -> None:
    for path in _FOLDER.glob(f"{_PREFIX}-*-[01]"):
        if not Path("/proc", path.name.split("-")[1]).exists():
            _delete(path.name)


def _delete(name: str) -> None:
    """Deletes a namespace, and with it its end of the cable."""
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], capture_output=True, check=True, text=True).stdout


def enter(namespace: str) -> None:
    """Moves this process to the network of a namespace, before it has other threads."""
    library = ctypes.CDLL(None, use_errno=True)
    with (_FOLDER / namespace).open() as file:
        if library.setns(file.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


if __name__ == "__main__":
    enter(sys.argv[1])
    zygote.run(sys.argv[2:])
