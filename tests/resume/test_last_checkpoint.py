import csv
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hybrid_lightning import ConfigError, LastCheckpoint
from hybrid_lightning.resume.requeue import requeue_job
from tests.processes import ALONE, ranks
from tests.resume.signals import FailAt, SignalAt
from tests.small import changed, command, write
from tests.tiny import Foreign, batches, hybrid, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def with_callback(kind: str, changes=None, **arguments) -> dict:
    """A config of 6 batches per epoch with a callback that ends the run."""
    callback = {"class_path": f"tests.resume.signals.{kind}", "init_args": arguments}
    options = {"trainer.limit_train_batches": 6, "trainer.callbacks": [callback]}
    return changed({**options, **(changes or {})})


def last(folder: Path) -> dict:
    return torch.load(folder / "runs/small/version_0/checkpoints/last.ckpt", weights_only=True)


def steps(folder: Path, column: str) -> list[int]:
    with (folder / "runs/small/version_0/metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row.get(column)]


# SIGTERM


@pytest.mark.parametrize(("batch", "step"), [(0, 1), (2, 2), (3, 2)])
def test_on_sigterm_the_step_is_finished_and_saved(batch, step, folder, capsys):
    config = with_callback("SignalAt", {"trainer.accumulate_grad_batches": 2}, batch=batch)
    assert command("fit", config=config) == 143
    line = f"terminated at step {step}: saved runs/small/version_0/checkpoints/last.ckpt; continue with --resume auto"
    assert line in capsys.readouterr().out.splitlines()
    saved = last(folder)
    assert saved["global_step"] == step
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 2 * step
    assert steps(folder, "train/loss") == list(range(step))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("moment", [{"batch": 5}, {"validation": 0}])
def test_at_the_end_of_an_epoch_its_validation_is_not_lost(moment, exact, folder, capsys):
    """With exact resume the next process makes it; else this one finishes it."""
    config = with_callback("SignalAt", {"trainer.max_epochs": 2}, **moment)
    config["trainer"]["callbacks"].append({"class_path": "ExactResume", "init_args": {"enabled": exact}})
    assert command("fit", config=config) == 143
    assert "terminated at step 6" in capsys.readouterr().out
    assert steps(folder, "val/loss") == ([] if exact else [5])
    del config["trainer"]["callbacks"][0]
    assert command("fit", "--resume", "auto", config=config) == 0
    assert steps(folder, "val/loss") == [5, 11]
    assert steps(folder, "train/loss") == list(range(12))


@pytest.mark.parametrize("exact", [True, False])
def test_a_signal_in_the_last_validation_leaves_the_test_to_the_next_process(exact, folder):
    config = with_callback("SignalAt", {"test_after_fit": "best"}, validation=0)
    config["trainer"]["callbacks"].append({"class_path": "ExactResume", "init_args": {"enabled": exact}})
    assert command("fit", config=config) == 143
    assert steps(folder, "test/loss") == []
    assert last(folder)["global_step"] == 6
    del config["trainer"]["callbacks"][0]
    for _ in range(2):
        assert command("fit", "--resume", "auto", config=config) == 0
        assert steps(folder, "test/loss") == [6]
        assert steps(folder, "val/loss") == [5]
    assert last(folder)["global_step"] == 6


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("moment", [{"batch": 1}, {"validation": 0}])
def test_within_an_epoch_no_validation_is_lost(moment, exact, folder):
    config = with_callback("SignalAt", {"trainer.val_check_interval": 2}, **moment)
    config["trainer"]["callbacks"].append({"class_path": "ExactResume", "init_args": {"enabled": exact}})
    assert command("fit", config=config) == 143
    assert last(folder)["global_step"] == 2
    assert steps(folder, "val/loss") == ([] if exact else [1])
    del config["trainer"]["callbacks"][0]
    assert command("fit", "--resume", "auto", config=config) == 0
    assert steps(folder, "val/loss") == [1, 3, 5]
    assert steps(folder, "train/loss") == list(range(6))


def test_a_module_of_somebody_else_is_saved_from_python(folder, capsys):
    callbacks = [LastCheckpoint(dirpath=folder), SignalAt(batch=3)]
    with pytest.raises(SIGTERMException) as ended:
        trainer(enable_checkpointing=True, callbacks=callbacks, max_epochs=2).fit(Foreign(), batches())
    assert ended.value.code == 143
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    resumed = trainer(enable_checkpointing=True, callbacks=[LastCheckpoint(dirpath=folder)], max_epochs=2)
    resumed.fit(Foreign(), batches(), ckpt_path=folder / "last.ckpt", weights_only=True)
    assert resumed.global_step == 10


def test_an_earlier_handler_of_the_signal_is_called_and_comes_back(folder):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("earlier"))
    try:
        assert command("fit", config=with_callback("SignalAt", batch=1)) == 143
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == ["earlier", "earlier"]


@pytest.mark.parametrize("requeue", [True, False])
def test_the_handlers_of_a_requeued_slurm_job_stay(requeue, folder, monkeypatch):
    for key, value in {"NTASKS": "1", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    callbacks = [LastCheckpoint(dirpath=folder), SignalAt(batch=1)]
    plugins = [SLURMEnvironment(auto_requeue=requeue)]
    runner = trainer(enable_checkpointing=True, callbacks=callbacks, plugins=plugins, max_epochs=1)
    with pytest.raises(SIGTERMException):
        runner.fit(hybrid(), batches())
    assert (folder / "last.ckpt").is_file() is not requeue


# Other signals


def test_a_hangup_saves_as_sigterm_does(folder, capsys):
    assert command("fit", config=with_callback("SignalAt", batch=3, name="SIGHUP")) == 143
    assert "terminated at step 4: saved" in capsys.readouterr().out
    assert last(folder)["global_step"] == 4
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL


def test_a_hangup_that_is_ignored_stays_ignored(folder):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert command("fit", config=with_callback("SignalAt", batch=3, name="SIGHUP")) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert last(folder)["global_step"] == 6


@pytest.mark.exhaustive
def test_a_terminal_that_is_gone_does_not_end_the_fit_before_it_has_saved(tmp_path):
    """A progress bar writes to it after the hangup, before the checkpoint is saved."""
    config = with_callback("SlowBatches", seconds=0.2)
    config["trainer"] |= {"enable_progress_bar": True, "max_epochs": 50}
    write(yaml.safe_dump(config))
    main_end, terminal = pty.openpty()
    words = [sys.executable, "-m", "hybrid_lightning", "fit", "small.yaml"]
    environment = {**os.environ, **ALONE}
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    ) as fit:
        os.close(terminal)
        seen = b""
        while b"2/6" not in seen:
            seen += os.read(main_end, 4096)
        os.close(main_end)
        fit.send_signal(signal.SIGHUP)
        assert fit.wait(60) == 143
    assert last(tmp_path)["global_step"] >= 1


@pytest.fixture
def slurm(folder, monkeypatch):
    """A SLURM job of one task, with a `scontrol` that writes down its words."""
    variables = {"NTASKS": "1", "NNODES": "1", "JOB_ID": "4242", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for key, value in variables.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    programs = folder / "programs"
    programs.mkdir()
    scontrol = programs / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "$@" >> scontrol.txt\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return scontrol


def end_of(folder: Path) -> dict:
    saved = last(folder)
    return {"weights": saved["state_dict"], "optimizer": saved["optimizer_states"][0]["state"]}


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_equal(value, other[key])
    else:
        assert torch.equal(one, other)


@pytest.mark.usefixtures("slurm")
def test_a_slurm_job_whose_time_is_up_is_queued_again_and_ends_as_one_that_never_stopped(folder, capsys):
    resume = ("--resume", "auto")
    config = with_callback("SignalAt", {"trainer.max_epochs": 2}, batch=3, name="SIGUSR1")
    for step in (4, 8):  # 4 steps of the process that starts
        assert command("fit", *resume, config=config) == 143
        out = capsys.readouterr().out
        assert f"terminated at step {step}: saved" in out
        assert "resubmitted: SLURM job 4242 is queued again" in out
        assert last(folder)["global_step"] == step
    del config["trainer"]["callbacks"]
    assert command("fit", *resume, config=config) == 0
    assert (folder / "scontrol.txt").read_text().splitlines() == ["requeue 4242"] * 2
    assert [path.name for path in folder.glob("runs/small/*")] == ["version_0"]
    assert steps(folder, "train/loss") == list(range(12))
    requeued = end_of(folder)
    shutil.rmtree(folder / "runs")
    assert command("fit", config=config) == 0
    assert_equal(requeued, end_of(folder))


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize("hook", ["setup", "on_test_start"])
def test_outside_of_training_the_job_is_queued_again_too(hook, folder, capsys):
    resume = ("--resume", "auto", "--test_after_fit", "best")
    handler = signal.getsignal(signal.SIGUSR1)
    config = with_callback("RequeueIn", hook=hook)
    assert command("fit", *resume, config=config) == 143
    assert "terminated outside of training: resubmitted: SLURM job 4242" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGUSR1) == handler
    del config["trainer"]["callbacks"]
    assert command("fit", *resume, config=config) == 0
    assert steps(folder, "train/loss") == list(range(6))
    assert steps(folder, "test/loss") == [6]


@pytest.mark.usefixtures("slurm")
def test_a_fit_that_would_not_continue_is_saved_and_not_queued_again(folder, capsys):
    assert command("fit", config=with_callback("SignalAt", batch=3, name="SIGUSR1")) == 143
    assert "not resubmitted: start the run with --resume auto" in capsys.readouterr().out
    assert last(folder)["global_step"] == 4
    assert not (folder / "scontrol.txt").exists()


def test_a_job_that_slurm_does_not_take_back_is_told(slurm, folder, capsys):
    slurm.write_text("#!/bin/sh\necho 'Requested operation is disabled' >&2; exit 1\n")
    config = with_callback("SignalAt", batch=3, name="SIGUSR1")
    assert command("fit", "--resume", "auto", config=config) == 143
    out = capsys.readouterr().out
    assert "not resubmitted: scontrol requeue 4242 ended with code 1: Requested operation is disabled" in out
    assert last(folder)["global_step"] == 4


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "resubmitted: SLURM job 7_3"),
        ({"SLURM_JOB_ID": "7; rm"}, "'7; rm' is not the number of a SLURM job"),
        ({"PATH": ""}, "not resubmitted: scontrol requeue 4242: "),
    ],
)
@pytest.mark.usefixtures("slurm")
def test_the_job_is_named_as_slurm_names_it(variables, words, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert requeue_job().startswith(words) or words in requeue_job()


# Saving between the ends of epochs


@pytest.mark.parametrize(
    ("every", "options", "failing_batch", "saved"),
    [
        ("2 steps", {}, 5, 4),
        ("0.5 epochs", {}, 5, 3),
        ("50%", {}, 5, 3),
        ("1 step", {"trainer.accumulate_grad_batches": 2}, 5, 2),
        ("2 steps", {"trainer.val_check_interval": 2}, 5, 4),
        ("4 steps", {"trainer.max_epochs": 2}, 8, 8),
        ("4 steps", {"trainer.max_epochs": 2}, 7, 6),
        (None, {"trainer.max_epochs": 2}, 11, 6),
    ],
)
def test_last_is_saved_as_often_as_wanted_and_at_the_end_of_each_epoch(every, options, failing_batch, saved, folder):
    config = with_callback("FailAt", {**options, "save_every": every}, batch=failing_batch)
    with pytest.raises(RuntimeError, match="failed"):
        command("fit", config=config)
    assert last(folder)["global_step"] == saved
    assert steps(folder, "train/loss")[:saved] == list(range(saved))


def test_a_step_that_was_saved_is_logged_once(folder):
    assert command("fit", "--save_every", "1 steps", config=changed({"trainer.max_epochs": 2})) == 0
    assert steps(folder, "train/loss") == steps(folder, "lr/stem") == list(range(6))
    assert steps(folder, "val/loss") == [2, 5]


def test_saving_within_an_epoch_continues_the_accumulation_where_it_was(folder):
    """A checkpoint within a window of accumulated batches would lose their gradients."""
    failing = with_callback("FailAt", {"save_every": "1 step", "trainer.accumulate_grad_batches": 3}, batch=5)
    with pytest.raises(RuntimeError, match="failed"):
        command("fit", config=failing)
    with pytest.raises(RuntimeError, match="failed"):
        command(
            "fit", "--resume", "auto", config=with_callback("FailAt", {"trainer.accumulate_grad_batches": 3}, batch=1)
        )
    assert last(folder)["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] == 3


@pytest.mark.parametrize(
    ("every", "words"),
    [("3", "not a duration"), ("0 steps", "less than a step"), ("2 validations", "cannot be turned into steps")],
)
def test_an_impossible_duration_is_refused(every, words, capsys):
    assert command("fit", "--save_every", every) == 2
    err = capsys.readouterr().err
    assert "save_every" in err
    assert words in err
    if every == "3":
        with pytest.raises(ConfigError, match="save_every"):
            LastCheckpoint(every)


# Two ranks


@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_leave_at_the_same_step_whichever_gets_the_signal_and_continue(rank, folder):
    config = with_callback("SignalAt", {"trainer.max_epochs": 2}, batch=3, rank=rank)
    config["trainer"] |= {"devices": 2, "strategy": "ddp", "limit_train_batches": 5}
    out = fit_on_two_ranks(folder, config, status=143)
    assert out.count("terminated at step 4: saved") == 1
    assert last(folder)["global_step"] == 4
    del config["trainer"]["callbacks"]
    out = fit_on_two_ranks(folder, config, status=0)
    assert out.count("continues from last.ckpt, step 4") == 1
    assert [path.name for path in (folder / "runs/small").iterdir()] == ["version_0"]
    assert last(folder)["global_step"] == 10
    assert steps(folder, "train/loss") == list(range(10))
    assert steps(folder, "val/loss") == [4, 9]


def fit_on_two_ranks(folder: Path, config: dict, status: int) -> str:
    """Output of both; the first has to end with the status, the second with 0, and both without a traceback."""
    words = ["fit", "--config", write(yaml.safe_dump(config)), "--resume", "auto"]
    done = ranks(2, "-m", "hybrid_lightning", *words, cwd=folder)
    errors = "".join(one.stderr[-4000:] for one in done)
    assert [one.returncode for one in done] == [status, 0], errors
    assert "Traceback" not in errors
    return "".join(one.stdout for one in done)


def test_failing_callbacks_fail():
    with pytest.raises(RuntimeError, match="failed"):
        trainer(callbacks=[FailAt(2)]).fit(hybrid(), batches())
