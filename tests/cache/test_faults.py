"""What a user sees when files of features are damaged, cannot be written, or are shared."""

import csv
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Running, python, ranks, succeed_on
from tests.small import changed, write

RUN = Path("runs/small/version_0")
CACHE = RUN / "feature_cache_0"
FIT = ("-m", "hybrid_lightning", "fit", "--config", "small.yaml")
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")
MODULE = '''
import os, pathlib, shutil, signal, time
from lightning.pytorch import Callback
from torch import nn

CACHE = pathlib.Path("runs/small/version_0/feature_cache_0")


class Wide(nn.Module):
    """Gives 16 kB a sample."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(768, 8)

    def forward(self, image):
        if pathlib.Path("wait").exists() and list(CACHE.glob("*.part")):
            pathlib.Path("filling").touch()
            time.sleep(1000)
        return self.first(image.flatten(1)).repeat(1, 500)


class Fault(Callback):
    def on_train_start(self, trainer, pl_module):
        if pathlib.Path("block").exists():
            CACHE.parent.mkdir(parents=True, exist_ok=True)
            CACHE.touch()

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2 and pathlib.Path("vanish").exists():
            shutil.rmtree(CACHE)
        if trainer.current_epoch == 2 and pathlib.Path("die").exists():
            trainer.strategy.barrier()
            os.kill(os.getpid(), signal.SIGKILL)
'''


def prepare(folder: Path, fault: str = "", mode: bool = True) -> None:
    """A config whose frozen part has 7 MB of features, in files."""
    callbacks: list[dict[str, Any]] = [
        {"class_path": "own.Fault"},
        {"class_path": "hybrid_lightning.GradualUnfreezing", "init_args": {"unfreeze": {"image": "never"}}},
        {"class_path": "hybrid_lightning.FrozenFeatureCache", "init_args": {"mode": mode, "memory": 0}},
    ]
    options = {
        "init.parts": {"image": {"module": "own.Wide", "unfreeze": "never"}},
        "init.cache": False,
        "trainer.callbacks": callbacks,
        "trainer.max_epochs": 4,
        "seed_everything": 1,
    }
    (folder / "own.py").write_text(MODULE)
    write(changed(options), folder / "small.yaml")
    if fault:
        (folder / fault).touch()


def fit(folder: Path, *words: str) -> str:
    """What it has printed."""
    done = python(*FIT, *words, cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def losses(folder: Path) -> list[float]:
    with (folder / RUN / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def lines(printed: str) -> list[str]:
    return re.findall("cache: .*", printed)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses without a cache."""
    folder = tmp_path_factory.mktemp("live")
    prepare(folder, mode=False)
    fit(folder)
    return losses(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder whose `runs` has room for checkpoints, but not for features."""
    runs = tmp_path / "runs"
    runs.mkdir()
    mounting = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(runs)], capture_output=True)
    if mounting.returncode:
        pytest.skip("mounting needs rights that this user lacks")
    yield tmp_path
    subprocess.run(["umount", "-l", str(runs)], check=True)


def test_features_in_files_give_the_losses_of_a_live_fit_and_leave_nothing(tmp_path: Path, live: list[float]) -> None:
    prepare(tmp_path)
    [line] = lines(fit(tmp_path))
    assert "computed once, instead of 4 times" in line
    assert losses(tmp_path) == pytest.approx(live, abs=1e-5)
    assert not (tmp_path / CACHE).exists()


def test_a_full_disk_makes_the_part_live_with_one_line(small_disk: Path, live: list[float]) -> None:
    prepare(small_disk)
    printed = fit(small_disk)
    assert lines(printed) == ["cache: image stays live: OSError: [Errno 28] No space left on device."]
    assert losses(small_disk) == live
    assert not list((small_disk / "runs").rglob("*.part"))


def test_a_folder_that_cannot_be_written_makes_the_part_live_with_one_line(tmp_path: Path, live: list[float]) -> None:
    prepare(tmp_path, "block")
    [line] = lines(fit(tmp_path))
    assert line.startswith("cache: image stays live: FileExistsError: ")
    assert losses(tmp_path) == live


def test_a_folder_that_is_deleted_while_its_files_are_served_is_not_missed(tmp_path: Path, live: list[float]) -> None:
    prepare(tmp_path, "vanish")
    [line] = lines(fit(tmp_path))
    assert "computed once" in line
    assert losses(tmp_path) == pytest.approx(live, abs=1e-5)


def test_what_a_fill_that_was_killed_left_is_not_read_and_is_removed(tmp_path: Path, live: list[float]) -> None:
    prepare(tmp_path, "wait")
    with Running(*FIT, cwd=tmp_path) as running:
        deadline = time.monotonic() + 900  # seconds
        while not (tmp_path / "filling").exists():
            assert running.process.poll() is None, running.texts()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.kill(signal.SIGKILL)
        running.process.wait()
    (tmp_path / "wait").unlink()
    assert {path.suffix for path in (tmp_path / CACHE).iterdir()} == {".part"}
    [line] = lines(fit(tmp_path, "--resume", "auto"))
    assert "computed once" in line
    assert losses(tmp_path) == pytest.approx(live, abs=1e-5)
    assert not (tmp_path / CACHE).exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5000])


def keep(path: Path) -> None:
    pass


@pytest.mark.parametrize("damage", [keep, flip, cut])
def test_a_restart_takes_whole_files_and_computes_a_damaged_one_again(
    tmp_path: Path, damage: Any, live: list[float]
) -> None:
    prepare(tmp_path, "die")
    assert python(*FIT, cwd=tmp_path).returncode == -signal.SIGKILL
    (tmp_path / "die").unlink()
    damage(next((tmp_path / CACHE).glob("train-*.features")))
    printed = fit(tmp_path, "--resume", "auto")
    assert printed.count("is damaged and computed again") == (damage is not keep)
    assert losses(tmp_path) == pytest.approx(live, abs=1e-5)
    assert not (tmp_path / CACHE).exists()


def test_two_ranks_share_files_and_one_of_them_reports_a_damaged_one(tmp_path: Path) -> None:
    prepare(tmp_path, "die")
    for done in ranks(2, *FIT, *TWO, cwd=tmp_path):
        assert done.returncode == -signal.SIGKILL, done.stderr[-4000:]
    (tmp_path / "die").unlink()
    assert [path.name for path in (tmp_path / RUN).glob("feature_cache*")] == ["feature_cache_0"]
    assert sorted(path.name.split("-")[0] for path in (tmp_path / CACHE).iterdir()) == ["train", "val"]
    flip(next((tmp_path / CACHE).glob("train-*.features")))
    done = ranks(2, *FIT, *TWO, "--resume", "auto", cwd=tmp_path)
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-4000:]
    assert sum(one.stderr.count("is damaged and computed again") for one in done) == 1
    resumed = losses(tmp_path)
    assert not (tmp_path / CACHE).exists()
    whole = tmp_path / "whole"
    whole.mkdir()
    prepare(whole)
    succeed_on(2, *FIT, *TWO, cwd=whole)
    assert losses(whole) == resumed


AT_ONCE = """
import sys, time
from pathlib import Path
import lightning.pytorch as pl
from hybrid_lightning import FrozenFeatureCache, GradualUnfreezing
from tests.cache.fits import fit, task

class Meet(pl.Callback):
    def on_train_batch_start(self, *_):
        Path(sys.argv[1] + ".here").touch()
        while len(list(Path.cwd().glob("*.here"))) < 2:
            time.sleep(0.01)

cache = [GradualUnfreezing({"old": "never"}), FrozenFeatureCache(True, 0.0)]
print(fit(task(cache=False), callbacks=[*cache, Meet()]).losses)
"""


def test_two_runs_may_use_one_folder_at_once(tmp_path: Path) -> None:
    with Running("-c", AT_ONCE, "a", cwd=tmp_path) as one, Running("-c", AT_ONCE, "b", cwd=tmp_path) as other:
        assert [one.process.wait(900), other.process.wait(900)] == [0, 0], one.texts() + other.texts()
        assert one.texts()[0] == other.texts()[0] != ""
    assert not (tmp_path / "feature_cache_0").exists()
