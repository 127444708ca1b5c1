"""Kind 8: a run folder without an owner, and a table and checkpoints that are cut differently."""

import csv
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.hostile.harness import Box, case
from tests.small import changed

FOLDER = Path("runs/small/version_0")
RESUME = ("fit", "--config", "small.yaml", "--resume", "auto", "--trainer.max_epochs", "4")


def table(folder: Path = FOLDER) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{name: text for name, text in row.items() if text} for row in csv.DictReader(file)]


@case(8, "fit --resume auto", "twice at a time")
def two_resumes_at_a_time(box: Box) -> None:
    box.start_from("fitted")
    slow = {"class_path": "tests.hostile.callbacks.Slow"}
    config = changed({"trainer.callbacks": [slow], "trainer.enable_progress_bar": False})
    Path("small.yaml").write_text(yaml.safe_dump(config))
    tolds = box.together([RESUME, RESUME])
    assert sorted(told.code for told in tolds) == [0, 2], tolds
    [refused] = [told for told in tolds if told.code == 2]
    box.says(refused, "is being written by 'process [0-9]+ on .* since")
    steps = [row["step"] for row in table() if "train/loss" in row]
    assert steps == [str(step) for step in range(12)], steps


@case(8, "fit --resume FOLDER", "while the first run runs in it")
def resume_of_a_fit_that_runs(box: Box) -> None:
    slow = {"class_path": "tests.hostile.callbacks.Slow"}
    config = changed({"trainer.callbacks": [slow], "trainer.enable_progress_bar": False})
    Path("small.yaml").write_text(yaml.safe_dump(config))
    late = ("fit", "--config", "small.yaml", "--resume", str(FOLDER))
    tolds = box.together([RESUME, late], WAIT_FOR=["", str(FOLDER / "checkpoints")])
    assert [told.code for told in tolds] == [0, 2], tolds
    box.says(tolds[1], "is being written by 'process")


@case(8, "new runs", "several at a time")
def new_runs_at_a_time(box: Box) -> None:
    box.start_from("fitted")
    shutil.rmtree("runs")
    tolds = box.together([("fit", "--config", "small.yaml")] * 3)
    assert {told.code for told in tolds} <= {0, 2}
    finished = [told for told in tolds if told.code == 0]
    folders = {told.out.strip().splitlines()[-1] for told in finished}
    assert finished
    assert len(folders) == len(finished), folders


@case(8, "lock", "left by a process that was killed")
def lock_of_a_dead_process(box: Box) -> None:
    box.start_from("fitted")
    (FOLDER / ".lock").write_text("process 1 on nowhere since 1970\n")
    box.accepted(*RESUME)
    assert not (FOLDER / ".lock").exists()


@case(8, "lock", "held, with no word of its owner")
def lock_without_a_name(box: Box) -> None:
    box.start_from("fitted")
    with (FOLDER / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = sorted(path.name for path in FOLDER.rglob("*"))
        box.refused(*RESUME, says="is being written by 'another process'")
    assert sorted(path.name for path in FOLDER.rglob("*")) == before


@case(8, "lock", "text of an owner that moves the cursor")
def lock_with_escape_sequences(box: Box) -> None:
    box.start_from("fitted")
    with (FOLDER / ".lock").open("w") as file:
        file.write("\x1b[2J\x07 nobody\n")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        box.refused(*RESUME, says="is being written by")


@case(8, "lock", "a folder in its place")
def lock_that_is_a_folder(box: Box) -> None:
    box.start_from("fitted")
    (FOLDER / ".lock").mkdir()
    box.refused(*RESUME, says="lock")


@case(8, "evaluation", "while a run holds the folder")
def test_beside_a_fit(box: Box) -> None:
    box.start_from("fitted")
    with (FOLDER / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        box.accepted("test", "--config", "small.yaml", "--ckpt_path", "last")


def killed_and_continued(place: str, mechanism: str, **options: Any) -> Callable[[Callable[[], int]], None]:
    """Registers a place (batches trained before the process is killed) after which nothing may be lost or doubled."""

    def register(batch: Callable[[], int]) -> None:
        def run(box: Box) -> None:
            settings = {"trainer.max_epochs": 3, "trainer.limit_train_batches": 6, "save_every": "1 steps"}
            trainer = {f"trainer.{name}": value for name, value in options.items()}
            config = changed({**settings, **trainer, "trainer.enable_progress_bar": False})
            Path("whole.yaml").write_text(yaml.safe_dump(config))
            box.accepted("fit", "--config", "whole.yaml", "--name", "small")
            whole = table()
            shutil.rmtree("runs")
            kill = {"class_path": "tests.hostile.callbacks.Kill", "init_args": {"batches": batch()}}
            config["trainer"]["callbacks"] = [kill]
            Path("small.yaml").write_text(yaml.safe_dump(config))
            with_kill = ("fit", "--config", "small.yaml", "--resume", "auto")
            ended = box.command(*with_kill)
            assert ended.code == 77, ended
            box.accepted("fit", "--config", "whole.yaml", "--name", "small", "--resume", "auto")
            ours = table()
            for row in (*whole, *ours):
                row.pop("train/loss", None)  # a mean since the last log, of which a new process has not seen all
            assert ours == whole, [row for row in (*whole, *ours) if (row in whole) != (row in ours)]

        run.__name__ = batch.__name__
        case(8, place, mechanism)(run)

    return register


@killed_and_continued(
    "metrics.csv", "killed after a validation in an open window", accumulate_grad_batches=4, val_check_interval=3
)
def killed_in_a_window() -> int:
    return 4


@killed_and_continued("metrics.csv", "killed after a validation at a step", val_check_interval=3)
def killed_after_a_validation() -> int:
    return 4


@killed_and_continued(
    "metrics.csv", "killed at an epoch's end in a window of another length", accumulate_grad_batches=4
)
def killed_in_the_second_epoch() -> int:
    return 7


@killed_and_continued(
    "metrics.csv",
    "killed between validations that no epoch divides",
    accumulate_grad_batches=3,
    val_check_interval=5,
    check_val_every_n_epoch=None,
)
def killed_across_epochs() -> int:
    return 11
