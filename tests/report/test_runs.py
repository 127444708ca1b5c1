import pytest

from hybrid_lightning.report import runs
from tests.report.runs import run, write_folder


def series_of(tmp_path, text):
    path = tmp_path / "metrics.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return {name: (one.steps.tolist(), one.values.tolist()) for name, one in runs.read_series(path).items()}


def test_values_have_the_steps_of_their_rows(tmp_path):
    assert series_of(tmp_path, "a,b,step\n1,,0\n2,5,3\n") == {"a": ([0, 3], [1, 2]), "b": ([3], [5])}


@pytest.mark.parametrize(
    "text",
    [
        *("", "a,step\n", "a,b\n1,2\n", "a,step\nnan,1\ninf,2\nx,3\n,4\n", "a,step\n1,-1\n1,x\n1,nan\n1,1e300\n"),
        *(b"\xff\xfe\x00", 'a,step\n"1,2\n3', "a" * 200_000),
    ],
)
def test_what_is_no_number_is_left_out(tmp_path, text):
    assert series_of(tmp_path, text) == {}


def test_the_best_validation_is_that_of_the_main_metric_in_its_direction(tmp_path):
    found = run(write_folder(tmp_path / "a"))
    assert (found.main, found.best_place) == ("accuracy", 39)
    found.record.main = "loss"
    assert (found.main, found.best_place) == ("loss", 39)


def test_a_huge_table_is_left_out_and_told(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_LARGEST_TABLE", 100)
    found = run(write_folder(tmp_path / "a"))
    assert found.series == {}
    assert "metrics.csv has more than" in found.notes[0]


@pytest.mark.parametrize("config", [{"checkpoint": 3}, {"checkpoint": {"monitor": [1]}}, ["a"], "text", None])
def test_a_config_may_hold_anything(tmp_path, config):
    folder = write_folder(tmp_path / "a", kind=None, config=config)
    assert run(folder).main == "accuracy"
