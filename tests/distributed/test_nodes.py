"""Two nodes, each a network namespace with a torchrun of its own: together, with one killed, and with the cable cut."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import nodes as namespaces
from tests.distributed.launchers import of_forks, torchrun_on
from tests.distributed.nodes import LOOPBACK, Nodes
from tests.processes import Running, free_port, succeed_on, wait_for_all
from tests.small import changed, write

EXHAUSTIVE = pytest.mark.exhaustive
LIMIT = 60.0
"""Seconds within which both nodes have ended, on a machine with other work."""
TIMEOUT = 10
"""Seconds that a rank waits for another, where a test says so."""
LOST = "error: another process of the run has ended, or did not come in time: "
STEPS = 12
FIT = {
    "init.parts.stem.unfreeze": "3 steps",
    "trainer.limit_train_batches": STEPS // 2,
    "trainer.max_epochs": 2,
    "trainer.gradient_clip_val": 0.5,
    "trainer.strategy": "ddp",
}
ON_TWO_NODES = {**FIT, "trainer.devices": 1, "trainer.num_nodes": 2}
WORDS = ("-m", "hybrid_lightning", "fit", "small.yaml", "--save_every", "4 steps", "--resume", "auto")


@pytest.fixture
def joined() -> Iterator[Nodes]:
    """Two namespaces, where they are permitted."""
    if reason := namespaces.missing():
        pytest.skip(reason)
    with namespaces.joined() as nodes:
        yield nodes


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Two namespaces, or two launchers on the loopback interface."""
    with contextlib.nullcontext(LOOPBACK) if namespaces.missing() else namespaces.joined() as found:
        yield found


def callback(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"tests.resume.signals.{kind}", "init_args": arguments}


KILLED = [callback("SignalAt", batch=8, rank=1, name="SIGKILL")]
"""The second rank dies in its 9th batch, after the checkpoint of step 8; a run that goes on from it has 4."""


@contextlib.contextmanager
def started(nodes: Nodes, folder: Path, restarts: int = 0) -> Iterator[list[Running]]:
    """A torchrun on each node, with the same folder."""
    port = free_port()
    environment = {**of_forks(), "GLOO_SOCKET_IFNAME": nodes.interface}
    with contextlib.ExitStack() as stack:
        commands = [torchrun_on(nodes, node, port, *WORDS, restarts=restarts) for node in (0, 1)]
        yield [stack.enter_context(Running(*words, cwd=folder, **environment)) for words in commands]


def run(nodes: Nodes, folder: Path, changes: dict[str, Any], restarts: int = 0) -> tuple[list[int], list[str]]:
    """Statuses of both torchruns, and what each node has written to stderr."""
    write(changed({**ON_TWO_NODES, **changes}), folder / "small.yaml")
    with started(nodes, folder, restarts) as both:
        wait_for_all(both, 5 * LIMIT)
        return [one.process.returncode for one in both], [one.texts()[1] for one in both]


def end(folder: Path) -> dict[str, Any]:
    """The last checkpoint of the only run."""
    [last] = folder.glob("runs/small/*/checkpoints/last.ckpt")
    content: dict[str, Any] = torch.load(last, weights_only=True)
    return content


def assert_equal_to_one_machine(folder: Path, place: Path) -> None:
    """That a run has ended as one of two ranks on one machine, which is never stopped."""
    place.mkdir()
    write(changed({**FIT, "trainer.devices": 2}), place / "small.yaml")
    succeed_on(2, *WORDS, cwd=place)
    found, wanted = end(folder), end(place)
    assert found["global_step"] == wanted["global_step"] == STEPS
    for name, value in wanted["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    moments = (each["optimizer_states"][0]["state"] for each in (found, wanted))
    torch.testing.assert_close(*moments, rtol=0, atol=0)


def test_a_fit_on_two_nodes_is_bit_by_bit_that_of_two_ranks_on_one(nodes: Nodes, tmp_path: Path) -> None:
    statuses, said = run(nodes, tmp_path, {})
    assert statuses == [0, 0], "\n".join(said)[-6000:]
    assert "GLOBAL_RANK: 1, MEMBER: 2/2" in said[1]
    assert_equal_to_one_machine(tmp_path, tmp_path / "one machine")


@EXHAUSTIVE
def test_a_killed_process_ends_both_nodes_and_the_same_command_goes_on_exactly(nodes: Nodes, tmp_path: Path) -> None:
    began = time.monotonic()
    statuses, said = run(nodes, tmp_path, {"trainer.callbacks": KILLED})
    assert time.monotonic() - began < LIMIT
    assert statuses == [1, 1], "\n".join(said)[-6000:]
    assert LOST in said[0]
    assert "Signal 9 (SIGKILL)" in said[1]
    assert end(tmp_path)["global_step"] < STEPS
    statuses, said = run(nodes, tmp_path, {"trainer.callbacks": KILLED})
    assert statuses == [0, 0], "\n".join(said)[-6000:]
    assert_equal_to_one_machine(tmp_path, tmp_path / "one machine")


@EXHAUSTIVE
def test_torchrun_starts_a_killed_run_again_which_goes_on_exactly(nodes: Nodes, tmp_path: Path) -> None:
    # a node that starts again before the other has noticed meets nobody, which takes a restart more (torch 2.13)
    statuses, said = run(nodes, tmp_path, {"trainer.callbacks": KILLED}, restarts=3)
    assert statuses == [0, 0], "\n".join(said)[-6000:]
    assert min(said[0].count("MEMBER: 1/2"), said[1].count("MEMBER: 2/2")) >= 2
    assert_equal_to_one_machine(tmp_path, tmp_path / "one machine")


@EXHAUSTIVE
def test_a_cut_cable_ends_both_nodes_when_the_timeout_is_over(joined: Nodes, tmp_path: Path) -> None:
    strategy = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"timeout": f"0:00:{TIMEOUT}"}}
    slow = {"trainer.callbacks": [callback("SlowBatches", seconds=0.3)], "trainer.max_epochs": 100}
    write(changed({**ON_TWO_NODES, **slow, "trainer.strategy": strategy}), tmp_path / "small.yaml")
    with started(joined, tmp_path) as (first, second):
        last = tmp_path / "runs/small/version_0/checkpoints/last.ckpt"
        wait_until(last.exists, 5 * LIMIT)
        joined.cut()
        wait_until(lambda: all(LOST in one.texts()[1] for one in (first, second)), TIMEOUT + LIMIT / 2)
        assert first.process.wait(LIMIT) == 1
        # its torchrun alone is left: it waits for an answer of the first node's, for more than 5 minutes (torch 2.13)
        wait_until(lambda: len(joined.processes(1)) <= 1, LIMIT)


def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "not within the time"
        time.sleep(0.2)
