"""How the ranks of a test are started: as users start them, but in forks of the zygote."""

import sys
from pathlib import Path

from tests.distributed import slurm
from tests.distributed.nodes import Nodes
from tests.processes import SHARED, folder, session, succeed, succeed_on
from tests.zygote import PYTHON

LAUNCHERS = ("plain", "torchrun", "srun")
"""Lightning itself; a torchrun of this machine; an srun that stands in for SLURM's."""
FORK = (sys.executable, "-m", "tests.distributed.fork")
"""In place of ``python`` in the command of a launcher."""


def of_forks() -> dict[str, str]:
    """Variables with which `FORK` finds the zygote."""
    session()
    return {SHARED: str(folder())}


def forking_python(place: Path) -> dict[str, str]:
    """Variables by which a fork of the zygote takes a program in `place` for Python, which forks once more."""
    program = place / "python"
    program.write_text(f'#!/bin/sh\nexec {" ".join(FORK)} "$@"\n')
    program.chmod(0o755)
    return {**of_forks(), PYTHON: str(program)}


def start(launcher: str, count: int, place: Path, *words: str) -> None:
    """Runs ``python words`` on so many ranks, and fails unless all end well.

    Args:
        launcher: One of `LAUNCHERS`, or ``ranks``: a process for each, with the variables of a cluster.
        count: Of the ranks.
        place: A folder for programs.
        words: Of the command line.
    """
    if launcher == "ranks":
        succeed_on(count, *words)
    elif launcher == "plain":
        succeed(*words, **forking_python(place))
    elif launcher == "torchrun":
        options = ("--standalone", "--nproc_per_node", str(count), "--no-python")
        succeed("-m", "torch.distributed.run", *options, *FORK, *words, **of_forks())
    else:
        srun = place / "srun"
        srun.write_text(slurm.SRUN)
        succeed(str(srun), *FORK, *words, **of_forks(), **slurm.job(count))


def torchrun_on(nodes: Nodes, node: int, port: str, *words: str, restarts: int = 0) -> list[str]:
    """The words after ``python`` of a node's torchrun, which starts one process on each of two nodes."""
    options = ["--nnodes", "2", "--nproc_per_node", "1", "--max_restarts", str(restarts), "--rdzv_backend", "c10d"]
    options += ["--rdzv_endpoint", f"{nodes.addresses[0]}:{port}", "--local_addr", nodes.addresses[node]]
    # torchrun looks for the address of the endpoint behind the host's name, which both nodes share here
    options += ["--rdzv_conf", f"is_host={node == 0}", "--no-python"]
    run = nodes.words(node, *words)
    return nodes.words(node, "-m", "torch.distributed.run", *options, *FORK, *run)
