import csv

import pytest

from hybrid_lightning.run_logger import RunLogger


def logger(folder, first_step: int = 0) -> RunLogger:
    return RunLogger(folder, "run", "version_0", first_step)


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


def test_a_run_that_starts_again_in_its_folder_starts_an_empty_table(tmp_path, path):
    log(logger(tmp_path), 0, a=1)
    log(logger(tmp_path), 0, b=2)
    assert rows(path) == [{"b": "2", "step": "0"}]


def test_a_row_is_logged_once_also_over_a_restart(tmp_path, path):
    table = logger(tmp_path)
    for _ in range(2):
        log(table, 0, a=1)
    log(table, 0, b=2)
    again = logger(tmp_path, first_step=1)
    log(again, 0, b=2)
    log(again, 0, c=3)
    log(again, 1, b=2)
    assert [set(row) - {"step"} for row in rows(path)] == [{"a"}, {"b"}, {"c"}, {"b"}]
