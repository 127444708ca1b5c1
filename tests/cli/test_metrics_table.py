import csv
from pathlib import Path

import pytest
import torch

from hybrid_lightning.cli.metrics_table import RunLogger
from hybrid_lightning.errors import ConfigError
from tests.small import changed, command


def logger(folder, first_step: int = 0, kept: int = 0) -> RunLogger:
    return RunLogger(folder, "run", "version_0", first_step, kept)


def log(table: RunLogger, step: int, **values: float) -> None:
    table.log_metrics(values, step)
    table.save()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "version_0" / "metrics.csv"


def rows(path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if v} for row in csv.DictReader(path.read_text().splitlines())]


def test_a_continued_table_keeps_the_rows_before_the_step_and_gets_new_columns(tmp_path, path):
    first = logger(tmp_path)
    for step in range(4):
        log(first, step, a=step)
    again = logger(tmp_path, first_step=2)
    log(again, 2, a=20)
    log(again, 3, b=30)
    assert rows(path) == [
        {"a": "0", "step": "0"},
        {"a": "1", "step": "1"},
        {"a": "20", "step": "2"},
        {"b": "30", "step": "3"},
    ]
    assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("lost", range(1, 7))
def test_a_row_that_was_torn_is_dropped(lost, tmp_path, path):
    table = logger(tmp_path)
    for step in range(3):
        log(table, step, a=0.5)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    log(logger(tmp_path, first_step=9), 9, a=1)
    assert [row["step"] for row in rows(path)] == ["0", "1", "9"]


def test_a_run_that_starts_again_in_its_folder_starts_an_empty_table_and_keeps_the_old_one(tmp_path, path):
    log(logger(tmp_path), 0, a=1)
    for value in (2, 3):
        log(logger(tmp_path), 0, b=value)
    logger(tmp_path).experiment.save()
    assert {file.name: rows(file) for file in path.parent.iterdir()} == {
        "metrics.old_0.csv": [{"a": "1", "step": "0"}],
        "metrics.old_1.csv": [{"b": "2", "step": "0"}],
        "metrics.old_2.csv": [{"b": "3", "step": "0"}],
    }


def test_a_row_is_logged_once_also_over_a_restart(tmp_path, path):
    table = logger(tmp_path)
    for values in ({"a": 1.5}, {"b": 2}, {"b": 1}, {"b": 2}):
        log(table, 0, **values)
    again = logger(tmp_path, first_step=1)
    log(again, 0, b=torch.tensor(2))
    log(again, 0, b=3)
    log(again, 0, c=3)
    log(again, 1, b=2)
    values = [{"a": "1.5"}, {"b": "2"}, {"b": "1"}, {"b": "3"}, {"c": "3"}, {"b": "2"}]
    assert [{k: v for k, v in row.items() if k != "step"} for row in rows(path)] == values


def test_each_validation_within_an_optimizer_step_that_found_something_else_is_logged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    often = {"trainer.val_check_interval": 1, "trainer.accumulate_grad_batches": 3, "trainer.limit_val_batches": 1}
    assert command("fit", config=changed(often)) == 0
    found = [row for row in rows(Path("runs/small/version_0/metrics.csv")) if "val/loss" in row]
    assert [row["step"] for row in found] == ["0", "0"]  # two before the step, which are equal, and one after it
    assert found[0]["val/loss"] != found[1]["val/loss"]


@pytest.mark.parametrize("step", [0, 99])
def test_all_that_is_logged_of_a_step_before_it_is_saved_is_one_row(step, tmp_path, path):
    table = logger(tmp_path)
    for values in ({"a": 1.0}, {"b": 2.0}, {"epoch": 0, "c": 3.0}):
        table.log_metrics(values, step)
    table.save()
    log(table, step, epoch=0, c=3.0)  # as after a checkpoint within the step
    log(table, step, d=4.0)  # as a validation does
    assert rows(path) == [
        {"a": "1.0", "b": "2.0", "c": "3.0", "epoch": "0", "step": str(step)},
        {"d": "4.0", "step": str(step)},
    ]


def test_rows_that_a_checkpoint_came_after_are_kept_whatever_their_step(tmp_path, path):
    """A validation within an accumulation window is logged with the step that is made next."""
    first = logger(tmp_path)
    log(first, 2, a=1)
    log(first, 3, v=2)
    assert first.rows() == 2
    log(first, 3, a=3)
    again = logger(tmp_path, first_step=3, kept=2)
    log(again, 3, a=4)
    assert rows(path) == [{"a": "1", "step": "2"}, {"step": "3", "v": "2"}, {"a": "4", "step": "3"}]
    assert again.rows() == 3


def test_a_table_that_was_removed_is_not_begun_anew(tmp_path, path):
    table = logger(tmp_path)
    log(table, 0, a=1)
    path.unlink()
    with pytest.raises(ConfigError, match=r"metrics\.csv' cannot be written: it has been removed .* --resume auto"):
        log(table, 1, a=2)
    assert not path.exists()


@pytest.mark.parametrize(
    "torn", [b"\0" * 9, b"\xff\xfe,1", b"many,1", b"1,2,3", b"1", b'1,"2', b"9" * 5000 + b",1", b"1," + b"2" * 200_000]
)
def test_rows_that_are_damaged_are_left_out_and_kept_aside(torn, tmp_path, path):
    path.parent.mkdir(parents=True)
    before = b"step,a\n0,1.5\n" + torn + b"\n"
    path.write_bytes(before)
    with pytest.warns(UserWarning, match="1 damaged row left out"):
        log(logger(tmp_path, first_step=9), 9, a=2.5)
    assert rows(path) == [{"step": "0", "a": "1.5"}, {"step": "9", "a": "2.5"}]
    assert (path.parent / "metrics.damaged_0.csv").read_bytes() == before
