import contextlib
import csv
import re
import shutil
from pathlib import Path

import pytest
import torch

from hybrid_lightning import HybridTask
from hybrid_lightning.cli import evaluate, main
from hybrid_lightning.cli.evaluate import intervals
from hybrid_lightning.report import page
from hybrid_lightning.report.evaluations import read_evaluations
from tests.small import CONFIG, classifier, regressor, table_config, write
from tests.tables import write_rows

CHECKPOINT = "runs/m/version_0/checkpoints/best.ckpt"


def rows(count: int, seed: int) -> list[dict[str, object]]:
    """Rows of pairs: both of a pair have the same numbers and label."""
    draw = torch.Generator().manual_seed(seed)
    found: list[dict[str, object]] = []
    for number in range(count):
        size, noise = torch.randn(2, generator=draw).tolist()
        label = "big" if size + noise > 0 else "small"
        found += [{"size": size, "who": f"w{number}", "label": label}] * 2
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run on ``m.csv``, and new rows in ``new.csv``."""
    folder = tmp_path_factory.mktemp("evaluate")
    with contextlib.chdir(folder):
        write_rows("m.csv", rows(60, 0))
        write_rows("new.csv", rows(30, 1))
        data = {"path": "m.csv", "inputs": {"x": {"numeric": ["size"]}}, "target": "label", "split_by": "who"}
        write(table_config(data, {"x": {"module": "MLP"}}, max_epochs=2), "m.yaml")
        assert main(["fit", "m.yaml"]) == 0
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)


def evaluated(*words: str) -> dict[str, list[float]]:
    """Metric → value and the ends of its interval."""
    assert main(["evaluate", "new.csv", "--draws", "100", "--output", "e.csv", *words]) == 0
    with Path("e.csv").open() as file:
        return {row["metric"]: [float(row[name]) for name in ("value", "low", "high")] for row in csv.DictReader(file)}


def test_the_values_are_those_of_predictions_on_the_new_rows(here, capsys):
    found = evaluated("--ckpt_path", CHECKPOINT)
    model = HybridTask.load_from_checkpoint(CHECKPOINT)
    predicted = model.predict([{"size": row["size"]} for row in rows(30, 1)])
    right = [one["prediction"] == row["label"] for one, row in zip(predicted, rows(30, 1), strict=True)]
    assert found["accuracy"][0] == pytest.approx(sum(right) / 60)
    assert found.keys() >= {"loss", "accuracy", "macro_f1", "auroc", "average_precision"}
    for value, low, high in found.values():
        assert low <= value <= high
    told = capsys.readouterr().out
    assert "60 rows; intervals: 100 bootstrap draws of 30 groups of rows, by 'who'" in told


def test_the_folder_of_a_run_is_its_best_checkpoint(here):
    assert evaluated("--ckpt_path", "runs/m") == evaluated("--ckpt_path", CHECKPOINT)


def test_no_config_and_no_table_of_the_training_is_needed(here, tmp_path, monkeypatch):
    wanted = evaluated("--ckpt_path", CHECKPOINT)
    for name in (CHECKPOINT, "new.csv"):
        shutil.copy(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert evaluated("--ckpt_path", "best.ckpt") == wanted


def test_the_report_of_the_run_shows_the_new_table(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "require_plotly", lambda: "")
    monkeypatch.setattr(page, "require_plotly", lambda: "")
    shutil.copytree(".", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    found = evaluated("--ckpt_path", "runs/m", "--report")
    assert "report: runs/m/version_0/report.html" in capsys.readouterr().out
    [one], notes = read_evaluations(Path("runs/m/version_0"))
    assert notes == []
    assert one.title == "new.csv"
    assert one.record.rows == 60
    assert {metric["name"]: metric["value"] for metric in one.metrics} == pytest.approx(
        {name: value for name, (value, *_) in found.items()}
    )
    counts = one.record.confusion["counts"]
    assert (counts[0][0] + counts[1][1]) / 60 == pytest.approx(found["accuracy"][0])
    worst = one.record.worst[0]
    [size] = [entry["text"] for entry in worst["shown"] if entry["key"] == "size"]
    assert float(size) == rows(30, 1)[int(worst["row"])]["size"]
    assert "new.csv, 60 rows" in Path("runs/m/version_0/report.html").read_text()


def test_a_checkpoint_outside_of_a_run_has_no_report_to_show_it_in(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "require_plotly", lambda: "")
    shutil.copy(CHECKPOINT, tmp_path)
    assert main(["evaluate", "new.csv", "--ckpt_path", str(tmp_path / "best.ckpt"), "--report"]) == 2
    assert "does not lie in the folder of a run" in capsys.readouterr().err


def test_groups_are_drawn_whole():
    draw = torch.Generator().manual_seed(0)
    target = torch.randint(3, (40,), generator=draw)
    outputs = torch.randn(40, 3, generator=draw)
    twice, labels = outputs.repeat_interleave(2, 0), target.repeat_interleave(2)
    task = classifier()
    alone = intervals(task, outputs, target, None, 200)["accuracy"]
    pairs = intervals(task, twice, labels, torch.arange(40).repeat_interleave(2), 200)["accuracy"]
    blind = intervals(task, twice, labels, None, 200)["accuracy"]
    assert pairs.value == alone.value == blind.value
    width = alone.high - alone.low
    assert pairs.high - pairs.low == pytest.approx(width, rel=0.2)
    assert blind.high - blind.low < 0.85 * width  # by the root of 2


def test_numbers_have_intervals_too():
    task = regressor()
    target = torch.randn(50, generator=torch.Generator().manual_seed(0))
    found = intervals(task, target[:, None] + 0.1, target, None, 50)
    assert found["mae"].value == pytest.approx(0.1, abs=1e-6)
    assert found["mae"].high - found["mae"].low < 1e-5


def test_what_most_draws_leave_undefined_has_no_interval():
    outputs = torch.zeros(30, 3)
    target = torch.tensor([0] * 28 + [1, 2])
    found = intervals(classifier(), outputs, target, None, 40)
    assert found["auroc"].value == pytest.approx(0.5)
    assert found["auroc"].low != found["auroc"].low
    assert found["accuracy"].low <= found["accuracy"].value


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("no.csv --ckpt_path {0}", "'no.csv'"),
        ("new.csv", "evaluate: --ckpt_path must be given."),
        ("new.csv --ckpt_path no.ckpt", "there is no file 'no.ckpt'"),
        ("new.csv --ckpt_path {0} --draws 3", "--draws: 3 is not a number at least 20"),
        ("new.csv --ckpt_path {0} --groups patient", "has no column 'patient'|unknown column .*'patient'"),
        ("new.csv --ckpt_path {0} --output x.txt", "'x.txt' does not end in .csv or .parquet"),
        ("unlabelled.csv --ckpt_path {0}", "'label'"),
        ("other.csv --ckpt_path {0}", "holds 'huge' .* which the checkpoint does not have"),
        ("new.csv --ckpt_path {0} --draw 100", "'--draw'"),
        ("no.csv --ckpt_path {0}", "^error: evaluate: there is no file 'no.csv'"),
        ("new.csv --ckpt_path m.csv", "^error: --ckpt_path: 'm.csv' is neither"),
        ("new.csv --ckpt_path best", "^error: --ckpt_path: of which run is 'best'"),
        ("new.csv --ckpt_path {0} --groups patient", "^error: --groups: "),
        ("new.csv --ckpt_path {0} --output ./new.csv", "^error: --output: './new.csv' is a table that is read"),
    ],
)
def test_wrong_words_are_told(words, says, here, capsys):
    write_rows("unlabelled.csv", [{"size": 1.0, "who": "a"}] * 2)
    write_rows("other.csv", [{"size": 1.0, "who": "a", "label": "huge"}] * 2)
    assert main(["evaluate", *words.format(CHECKPOINT).split()]) == 2
    message = capsys.readouterr().err
    assert re.search(says, message), message


def test_a_checkpoint_of_other_data_is_refused(fitted, folder, capsys):
    write(CONFIG)
    checkpoint = str(fitted / "runs/small/version_0/checkpoints/last.ckpt")
    write_rows("new.csv", rows(2, 0))
    assert main(["evaluate", "new.csv", "--ckpt_path", checkpoint]) == 2
    assert "the checkpoint is not of a run with ManifestDataModule" in capsys.readouterr().err
