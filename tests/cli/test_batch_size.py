"""``--batch_size_total``: a global batch is divided evenly, what fits is found, and a run that goes on keeps it."""

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator
from torch import Tensor, nn
from torch.distributed import TCPStore

from hybrid_lightning import ConfigError, DigitsDataModule
from hybrid_lightning.cli import batch_size, batch_size_trial
from hybrid_lightning.cli.batch_size import largest_divisor
from hybrid_lightning.cli.batch_size_trial import found_by_first, trial_config
from hybrid_lightning.cli.parser import parse
from tests.processes import free_port, ranks
from tests.small import changed, command, trainer, write

pytestmark = pytest.mark.usefixtures("folder")
DIVIDED = "batch_size_total: "


def saved(version: int = 0) -> dict[str, Any]:
    return yaml.safe_load(Path(f"runs/small/version_{version}/config.yaml").read_text())


def found(version: int = 0) -> tuple[int, int]:
    config = saved(version)
    return config["data"]["init_args"]["batch_size"], config["trainer"]["accumulate_grad_batches"]


def weights(version: int = 0) -> dict[str, Tensor]:
    path = f"runs/small/version_{version}/checkpoints/last.ckpt"
    return torch.load(path, weights_only=True)["state_dict"]


def line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().out.splitlines()
    return next(text.removeprefix(DIVIDED) for text in lines if text.startswith(DIVIDED))


@pytest.mark.parametrize(
    ("words", "divided", "values"),
    [
        ("64", "64 = 32 per device × 1 device × 2 batches per step", (32, 2)),
        ("20", "20 = 20 per device × 1 device × 1 batch per step", (20, 1)),
        ("90", "90 = 30 per device × 1 device × 3 batches per step", (30, 3)),
        ("64 --data.batch_size 8", "64 = 8 per device × 1 device × 8 batches per step", (8, 8)),
        ("64 --data.batch_size 64", "64 = 64 per device × 1 device × 1 batch per step", (64, 1)),
        ("64 --trainer.accumulate_grad_batches 2", "64 = 32 per device × 1 device × 2 batches per step", (32, 2)),
    ],
)
def test_a_total_is_divided_evenly_and_stands_in_the_saved_config(words, divided, values, capsys):
    assert command("fit", "--batch_size_total", *words.split()) == 0
    assert line(capsys) == divided
    assert found() == values
    assert saved()["batch_size_total"] == int(words.split()[0])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "61",
            "cannot be divided evenly over 1 device with batches of 2 to 32 samples. The nearest that can: 60 or 62.",
        ),
        ("20 --trainer.devices 3", "over 3 devices with batches of 2 to 32 samples. The nearest that can: 18 or 21."),
        ("60 --data.batch_size 16", "over 1 device with data.batch_size 16. The nearest that can: 48 or 64."),
        (
            "60 --data.batch_size 16 --trainer.devices 2",
            "over 2 devices with data.batch_size 16. The nearest that can: 32 or 64.",
        ),
        ("60 --trainer.accumulate_grad_batches 3", "accumulate_grad_batches: 3 is given as well as --batch_size_total"),
        ("5 --data.batch_size 1000000000000", "data.batch_size 1000000000000. No total up to 2147483647 can."),
        ("2147483647 --data.batch_size 2", "over 1 device with data.batch_size 2. The nearest that can: 2147483646."),
        ("0", "--batch_size_total: 0 is not a number"),
        ("60 --data.batch_size 0", "data.batch_size: 0 is not a number"),
        ("99999999999", "--batch_size_total: 99999999999 is not a number at least 1 and at most 2147483647"),
        ("many", "batch_size_total"),
    ],
)
def test_what_cannot_be_divided_or_is_given_twice_is_refused_before_a_run_begins(words, says, capsys):
    assert command("fit", "--batch_size_total", *words.split()) == 2
    assert says in capsys.readouterr().err
    assert not list(Path().glob("runs/small/*"))


def test_a_plan_counts_the_steps_of_the_total(capsys):
    assert command("plan", "--batch_size_total", "96", config=changed({"trainer.limit_train_batches": 6})) == 0
    assert "of an epoch: 2 steps" in capsys.readouterr().out


class Fixed(DigitsDataModule):
    """Data whose batches have a size of their own."""

    def __init__(self) -> None:
        super().__init__(classes=[0, 1, 2], size=16)


def test_data_without_a_batch_size_are_told_the_other_way(capsys):
    config = changed({"data": {"class_path": f"{__name__}.Fixed"}})
    assert command("fit", "--batch_size_total", "8", config=config) == 2
    assert "Fixed has no argument batch_size" in capsys.readouterr().err


def test_the_largest_divisor():
    assert [largest_divisor(number, most) for number, most in ((64, 32), (90, 32), (61, 32), (20, 32))] == [
        32,
        30,
        1,
        20,
    ]


# Runs that go on


def test_a_saved_config_repeats_its_run(capsys):
    assert command("fit", "--batch_size_total", "64") == 0
    assert command("fit", config=saved()) == 0
    assert found(0) == found(1)
    assert all(torch.equal(value, weights(1)[name]) for name, value in weights(0).items())


def test_a_run_that_goes_on_with_other_devices_keeps_its_total(folder):
    path = write(changed({"trainer.max_epochs": 1, "trainer.limit_train_batches": 4}))
    words = ["-m", "hybrid_lightning", "fit", "--config", path, "--resume", "auto", "--batch_size_total", "96"]
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
    done = ranks(2, *words, *two, "--data.batch_size", "24", cwd=folder)
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-4000:]
    assert found() == (24, 2)
    one = ("--trainer.devices", "1", "--trainer.strategy", "auto", "--trainer.max_epochs", "2")
    assert command("fit", "--resume", "auto", *one, config=saved()) == 0
    assert found() == (24, 4)
    # 2 steps of the first epoch, and 1 of 4 batches on one device
    last = torch.load("runs/small/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 3


# What fits is tried


class Short(nn.Module):
    """Has no memory for more than 8 samples."""

    sizes: list[int] = []  # noqa: RUF012  seen by all trials

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        Short.sizes.append(len(x))
        if self.training and len(x) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        # draws, so that a trial that left a trace would change the run
        return nn.functional.dropout(self.layer(x.flatten(1)), 0.5, self.training)


TRIED = {
    "init.parts": {"image": {"module": f"{__name__}.Short", "unfreeze": "1 steps"}},
    "init.cache": False,
    "trainer.max_epochs": 2,
}


@pytest.fixture
def tries(monkeypatch):
    """Lets a CPU be tried as a CUDA device is."""
    Short.sizes.clear()
    monkeypatch.setattr(batch_size, "CUDAAccelerator", CPUAccelerator)


@pytest.mark.usefixtures("tries")
def test_what_fits_is_found_by_halves_and_leaves_no_trace_in_the_fit(capsys):
    config = changed(TRIED)
    assert command("fit", "--batch_size_total", "64", config=config) == 0
    assert line(capsys) == "64 = 8 per device × 1 device × 8 batches per step"
    tried = [size for size in Short.sizes if size > 8]
    assert list(dict.fromkeys(tried))[:3] == [64, 32, 16]
    assert found() == (8, 8)
    explicit = ("--data.batch_size", "8", "--trainer.accumulate_grad_batches", "8")
    assert command("fit", *explicit, config=config) == 0
    first, second = weights(0), weights(1)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.usefixtures("tries")
def test_a_run_that_goes_on_does_not_try_again():
    config = changed(TRIED)
    assert command("fit", "--batch_size_total", "32", "--resume", "auto", config=config) == 0
    Short.sizes.clear()
    words = ("--batch_size_total", "32", "--resume", "auto", "--trainer.max_epochs", "3")
    assert command("fit", *words, config=config) == 0
    assert found() == (8, 4)
    assert 16 not in Short.sizes


def test_a_trial_trains_all_that_ever_trains_on_one_device_and_keeps_nothing():
    parts = {
        "pretrained": {"module": "ConvExtractor", "weights": "a.pt"},
        "stated": {"module": "ConvExtractor", "weights": "a.pt", "unfreeze": {"start": "10%", "every": "1 epochs"}},
        "kept": {"module": "ConvExtractor", "weights": "a.pt", "unfreeze": "never"},
        "drawn": {"module": "RandomConvolutions2d"},
        "untrained": {"module": "ConvExtractor"},
    }
    changes = {"init.parts": parts, "init.start": "probe", "trainer.devices": [2, 3], "trainer.strategy": "ddp"}
    config = parse(["fit", "--config", write(changed(changes))]).config
    before = config.clone()
    trial = trial_config(config, 16)
    schedules = {name: part.get("unfreeze") for name, part in trial.model.init_args.parts.items()}
    assert schedules == {
        "pretrained": "always",
        "stated": "always",
        "kept": "never",
        "drawn": None,
        "untrained": "always",
    }
    assert trial.data.init_args.batch_size == 16
    assert (trial.trainer.devices, trial.trainer.strategy, trial.trainer.logger) == ([2], "auto", False)
    assert trial.model.init_args.start == "default"
    assert config == before


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Lets every step of the part fail."""
    forward = Short.forward

    def fail(self: Short, x: Tensor) -> Tensor:
        if self.training:
            raise error
        return forward(self, x)

    monkeypatch.setattr(Short, "forward", fail)


@pytest.mark.usefixtures("tries")
def test_a_model_of_which_no_sample_fits_is_told(monkeypatch, capsys):
    failing(monkeypatch, torch.OutOfMemoryError("CUDA out of memory."))
    assert command("fit", "--batch_size_total", "4", config=changed(TRIED)) == 2
    assert "error: data: not even 1 sample fits" in capsys.readouterr().err


@pytest.mark.usefixtures("tries")
def test_an_error_of_another_kind_is_not_taken_for_memory_that_ran_out(monkeypatch):
    failing(monkeypatch, RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        command("fit", "--batch_size_total", "4", config=changed(TRIED))


@pytest.mark.usefixtures("tries")
def test_under_fsdp2_the_batch_has_to_be_given(capsys):
    assert command("fit", "--batch_size_total", "4", "--trainer.strategy", "fsdp2", config=changed(TRIED)) == 2
    assert "Give data.batch_size" in capsys.readouterr().err


def test_only_the_first_of_several_processes_tries(folder):
    code = (
        "import sys\n"
        "from lightning.pytorch import Trainer\n"
        "from hybrid_lightning.cli.batch_size_trial import found_by_first\n"
        "run = Trainer(accelerator='cpu', devices=2, strategy='ddp', logger=False, enable_checkpointing=False)\n"
        "print('found', found_by_first(lambda: 8 if run.global_rank == 0 else sys.exit(3), run))\n"
    )
    done = ranks(2, "-c", code, cwd=folder)
    assert [one.returncode for one in done] == [0, 0], done[1].stderr[-4000:]
    assert ["found 8" in one.stdout for one in done] == [True, True]


def test_what_was_found_before_a_process_was_started_holds_for_its_first_run_alone(monkeypatch):
    monkeypatch.setenv("HYBRID_LIGHTNING_BATCH_SIZE", f"{os.getppid()} 8")
    monkeypatch.setenv("LOCAL_RANK", "0")
    run = trainer()
    assert [found_by_first(lambda: 4, run), found_by_first(lambda: 4, run)] == [8, 4]


def test_a_port_that_is_taken_is_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("LOCAL_RANK", "0")
        monkeypatch.setenv("MASTER_PORT", str(port - 1))
        with pytest.raises(ConfigError, match=f"port {port}: .* Give data.batch_size"):
            found_by_first(lambda: 4, trainer(devices=2, strategy="ddp"))


@pytest.mark.parametrize(("devices", "first"), [("2,3", "2,"), ([2, 3], [2]), ("auto", 1), (4, 1), ("4", 1)])
def test_a_trial_takes_the_first_of_the_devices(devices, first):
    assert batch_size_trial._first_device(devices) == first


def test_a_trial_that_fails_is_told_to_those_who_wait():
    port = int(free_port())
    server = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    heard: list[str] = []

    def wait() -> None:
        try:
            batch_size_trial._heard_from_first(TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False))
        except ConfigError as error:
            heard.append(str(error))

    def fail() -> int:
        raise ValueError("no such file")

    waiting = threading.Thread(target=wait)
    waiting.start()
    with pytest.raises(ValueError, match="no such file"):
        batch_size_trial._told_by_first(fail, server, 1)
    waiting.join(20)
    assert heard == ["--batch_size_total: the first process could not find what fits: no such file."]


def test_a_trial_hears_no_signals_of_a_cluster(folder, monkeypatch):
    """Lightning's handler of SIGUSR1 would save the trial and queue the job again."""
    for name, value in {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "4242", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    heard = []
    monkeypatch.setattr(Hearing, "heard", heard)
    monkeypatch.setattr(batch_size_trial, "_Enough", Hearing)
    parsed = parse(["fit", "--config", write(changed())])
    assert batch_size_trial.largest_that_fits(parsed, 4, torch.device("cpu")) == 4
    assert heard == [signal.SIG_DFL]


class Hearing(batch_size_trial._Enough):
    """Notes what hears SIGUSR1 in a trial."""

    heard: ClassVar[list[Any]] = []

    def on_train_start(self, *_: Any) -> None:
        self.heard.append(signal.getsignal(signal.SIGUSR1))
