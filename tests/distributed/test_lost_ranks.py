"""No rank waits for ever: one that fails, is killed, hangs or logs other keys ends the others, with a line."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor, nn

from hybrid_lightning.distributed import lost_rank as lost_rank_module
from hybrid_lightning.distributed.lost_rank import lost_rank
from tests.processes import ROOT, Running, python, ranks
from tests.small import changed, write

LIMIT = 60.0
"""Seconds within which the others have ended, on a machine with other work."""
TWO = {"trainer.devices": 2, "trainer.strategy": "ddp", "trainer.max_epochs": 3}


def callback(kind: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"tests.resume.signals.{kind}", "init_args": arguments}


def fit_with(folder: Path, *callbacks: dict[str, Any], **changes: Any) -> list[subprocess.CompletedProcess[str]]:
    """A run on two ranks; `ranks` kills one that is still there a minute after the other has failed."""
    config = changed({**TWO, "trainer.callbacks": list(callbacks), **changes})
    write(yaml.safe_dump(config), folder / "small.yaml")
    done = ranks(2, "-m", "hybrid_lightning", "fit", "small.yaml", cwd=folder)
    assert not any(one.returncode == -signal.SIGKILL for one in done[:1]), done[0].stderr[-4000:]
    return done


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.exhaustive)])
def test_a_rank_that_fails_ends_the_other_with_a_line(rank, tmp_path):
    done = fit_with(tmp_path, callback("FailAt", batch=2, rank=rank))
    assert [one.returncode for one in done] == [1, 1]
    assert "RuntimeError: failed" in done[rank].stderr
    assert "error: another process of the run has ended, or did not come in time: " in done[1 - rank].stderr
    assert "--resume auto" in done[1 - rank].stderr
    assert "Traceback" not in done[1 - rank].stderr


@pytest.mark.parametrize(
    ("text", "is_lost"),
    [
        ("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242", True),
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv operation to complete", True),
        ("NCCL error: remote process exited or there was a network error", True),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3, OpType=ALLREDUCE)", True),
        ("Distributed package doesn't have NCCL built in", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
        ("DataLoader timed out after 5 seconds", False),
    ],
)
def test_what_another_process_has_caused_is_told_from_what_is_wrong_here(text, is_lost):
    assert (lost_rank(RuntimeError(text)) is not None) is is_lost


@pytest.mark.exhaustive
def test_a_rank_that_is_killed_ends_the_other_with_a_line(tmp_path):
    done = fit_with(tmp_path, callback("SignalAt", batch=2, rank=1, name="SIGKILL"))
    assert [one.returncode for one in done] == [1, -signal.SIGKILL]
    assert "error: another process of the run has ended" in done[0].stderr


@pytest.mark.exhaustive
def test_a_rank_that_hangs_is_waited_for_as_long_as_the_timeout_says(tmp_path):
    strategy = yaml.safe_load((ROOT / "configs/cluster/several_nodes.yaml").read_text())["trainer"]["strategy"]
    strategy["init_args"]["timeout"] = "0:00:10"
    started = time.monotonic()
    done = fit_with(tmp_path, callback("SlowBatches", seconds=40, rank=1), **{"trainer.strategy": strategy})
    assert time.monotonic() - started < LIMIT + 60
    assert done[0].returncode == 1
    assert "did not come in time" in done[0].stderr


def test_a_key_that_one_rank_alone_logs_is_named_on_all_of_them(tmp_path):
    done = fit_with(tmp_path, callback("LogOn", rank=1))
    assert [one.returncode for one in done] == [2, 2], done[0].stderr[-4000:]
    for one in done:
        assert "the ranks have logged different values" in one.stderr
        assert "on_validation_batch_end: val/lonely: not there on rank 0, logged as number" in one.stderr


def test_uneven_last_batches_end_as_a_fit(tmp_path):
    """Neither the samples of training nor those of validation are a multiple of two batches."""
    done = fit_with(tmp_path, **{"trainer.limit_train_batches": 1.0, "data.init_args.batch_size": 25})
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-4000:]


@pytest.mark.exhaustive
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_lightning_has_started_ends_with_the_first_process(number, tmp_path):
    config = changed({**TWO, "trainer.callbacks": [callback("SlowBatches", seconds=0.2)], "trainer.max_epochs": 500})
    write(yaml.safe_dump(config), tmp_path / "small.yaml")
    with Running("-m", "hybrid_lightning", "fit", "small.yaml", cwd=tmp_path, fresh=True) as running:
        metrics = tmp_path / "runs/small/version_0/checkpoints/last.ckpt"
        while not metrics.exists():
            assert running.process.poll() is None, running.texts()
            time.sleep(0.2)
        [child] = children(running.process.pid)
        running.process.send_signal(number)
        running.process.wait(LIMIT)
        deadline = time.monotonic() + LIMIT
        while is_running(child) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not is_running(child)
        assert running.process.returncode == (143 if number == signal.SIGTERM else -number)


@pytest.mark.exhaustive
@pytest.mark.parametrize("launcher", ["torchrun", "lightning"])
def test_each_launcher_ends_all_when_one_is_killed(launcher, tmp_path):
    config = changed({**TWO, "trainer.callbacks": [callback("SignalAt", batch=2, rank=1, name="SIGKILL")]})
    write(yaml.safe_dump(config), tmp_path / "small.yaml")
    words = ["-m", "hybrid_lightning", "fit", "small.yaml"]
    if launcher == "torchrun":
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]
    done = python(*words, cwd=tmp_path, seconds=2 * LIMIT, fresh=True)  # starting takes most of it
    assert done.returncode not in (0, None)
    assert "error: another process of the run has ended" in done.stderr


def test_a_process_that_shuts_down_after_the_first_one_tells_no_error(monkeypatch, capsys):
    ended: list[int] = []
    monkeypatch.setattr(lost_rank_module, "_GRACE", 0.05)
    monkeypatch.setattr(lost_rank_module, "_ended", threading.Event())
    monkeypatch.setattr(os, "_exit", ended.append)
    nobody = -1
    lost_rank_module._watch(nobody)
    assert ended == [1]
    assert "the first process of the run has ended" in capsys.readouterr().err
    lost_rank_module.command_has_ended()
    lost_rank_module._watch(nobody)
    assert ended == [1]
    assert capsys.readouterr().err == ""


def children(parent: int) -> list[int]:
    """The fits that a process has started."""
    numbers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(number) for number in numbers if b"hybrid_lightning" in Path(f"/proc/{number}/cmdline").read_bytes()]


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_first_rank_of_a_node_fetches_and_the_others_wait(tmp_path):
    parts = {"image": {"module": f"{__name__}.Fetched", "weights": "pretrained", "unfreeze": "always"}}
    done = fit_with(tmp_path, **{"init.parts": parts, "trainer.max_epochs": 1})
    assert [one.returncode for one in done] == [0, 0], done[1].stderr[-4000:]
    assert (tmp_path / "fetched.txt").read_text() == "started ended found "


class Fetched(nn.Module):
    """Pretrained weights that take some seconds to fetch, unless they are there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))

    def load_pretrained(self) -> None:
        path = Path("fetched.txt")
        if path.exists() and "ended" in path.read_text():
            note(path, "found ")
            return
        note(path, "started ")
        time.sleep(2)
        note(path, "ended ")


def note(path: Path, word: str) -> None:
    with path.open("a") as file:
        file.write(word)
