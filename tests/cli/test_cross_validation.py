"""`cross_validate`: each fold in a process of its own; most tests run the folds' commands in this one."""

import csv
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hybrid_lightning import ConfigError
from hybrid_lightning.cli import cross_validation, main
from hybrid_lightning.cli.cross_validation import in_order, mean_and_std, score_lines
from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule
from tests.processes import Ended, Running, succeed
from tests.small import changed, table, write

COUNT = 23
TARGET = (torch.arange(COUNT) * 5) % 3


class Folds(InMemoryDataModule):
    """Every n-th sample is tested."""

    def __init__(self, fold: str | None = None, predict_path: str | None = None, broken: str | None = None) -> None:
        super().__init__(batch_size=5)
        self.fold, self.broken = fold, broken
        self.target_names = ["a", "b", "c"]
        if predict_path is not None:
            raise ValueError("predicts something else")

    def load(self):
        number, count = map(int, self.fold.split("/"))
        if self.broken and self.fold == Path(self.broken).read_text():
            raise ConfigError("no more data")
        tested = torch.arange(COUNT) % count == number - 1
        rows = {"train": ~tested, "val": ~tested, "test": tested}
        entries = {"x": table(COUNT), "target": TARGET, "id": torch.arange(COUNT)}
        return {split: DictDataset({key: value[own] for key, value in entries.items()}) for split, own in rows.items()}


def config(**data):
    parts = {"x": {"module": "MLP", "args": {"hidden": [5]}}}
    return write(changed({"init.parts": parts, "data.class_path": f"{__name__}.Folds", "data.init_args": data}))


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def commands(monkeypatch):
    """The folds' commands, which run in this process."""
    given = []

    class Here(Ended):
        def __init__(self, words):
            given.append(words[3:])
            self.status = main(words[3:])

    monkeypatch.setattr(cross_validation.subprocess, "Popen", Here)
    return given


def check(folder: Path, folds: int) -> None:
    predictions = rows(folder / "runs/small_folds/predictions.csv")
    assert [int(row["row"]) for row in predictions] == list(range(COUNT))
    assert [int(row["fold"]) for row in predictions] == [index % folds + 1 for index in range(COUNT)]
    scores = rows(folder / "runs/small_folds/scores.csv")
    assert [row["fold"] for row in scores] == [*map(str, range(1, folds + 1)), "mean", "std"]
    for fold in range(1, folds + 1):
        own = [row for row in predictions if row["fold"] == str(fold)]
        hits = [row["prediction"] == "abc"[int(TARGET[int(row["row"])])] for row in own]
        assert float(scores[fold - 1]["test/accuracy"]) == pytest.approx(sum(hits) / len(hits))
        logged = rows(folder / f"runs/small_fold{fold}/version_0/metrics.csv")
        assert scores[fold - 1]["test/loss"] == next(r["test/loss"] for r in logged if r.get("test/loss"))
    values = [float(row["test/loss"]) for row in scores[:folds]]
    assert float(scores[folds]["test/loss"]) == pytest.approx(statistics.fmean(values))
    assert float(scores[folds + 1]["test/loss"]) == pytest.approx(statistics.stdev(values))


class Fork(Running):
    """In place of a new interpreter."""

    def __init__(self, words):
        assert words[0] == sys.executable
        super().__init__(*words[1:], cwd=Path.cwd())

    def wait(self):
        return self.process.wait()


def test_each_fold_is_a_process_and_each_sample_is_predicted_once(folder, monkeypatch):
    monkeypatch.setattr(cross_validation, "subprocess", SimpleNamespace(Popen=Fork))
    assert main(["cross_validate", "--folds", "2", "--config", config()]) == 0
    check(folder, 2)


@pytest.mark.exhaustive
def test_each_fold_is_an_interpreter_and_its_predictions_are_told(folder):
    done = succeed("-m", "hybrid_lightning", "cross_validate", "--folds", "2", "--config", config(), cwd=folder)
    check(folder, 2)
    assert "test/accuracy" in done.stdout
    assert "±" in done.stdout
    assert "predictions: runs/small_folds/predictions.csv" in done.stdout


def test_flags_reach_every_fold_and_scores_are_those_of_the_runs(folder, commands, capsys):
    assert main(["cross_validate", "--config", config(), "--folds=3", "--trainer.max_epochs", "2"]) == 0
    check(folder, 3)
    assert [words[0] for words in commands] == ["fit", "predict"] * 3
    assert all(words[words.index("--trainer.max_epochs") + 1] == "2" for words in commands)
    saved = (folder / "runs/small_fold2/version_0/config.yaml").read_text()
    assert "fold: 2/3" in saved
    out = capsys.readouterr().out
    assert "fold 3/3" in out
    assert "test/loss" in out


def test_a_fold_that_fails_stops_and_the_same_command_goes_on(folder, commands, capsys):
    (folder / "which").write_text("2/2")
    words = ["cross_validate", "--config", config(broken=str(folder / "which")), "--folds", "2", "--name", "mine"]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "no more data" in message
    assert "fit of fold 2/2 ended with status 2" in message
    assert "--resume" in message
    (folder / "which").write_text("")
    commands.clear()
    assert main([*words, "--resume"]) == 0
    assert [(words[0], words[words.index("--data.fold") + 1]) for words in commands] == [
        ("fit", "2/2"),
        ("predict", "2/2"),
    ]
    assert "fold 1/2: finished, in runs/mine_fold1/version_0" in capsys.readouterr().out
    assert len(rows(folder / "runs/mine_folds/predictions.csv")) == COUNT


def test_without_resume_or_with_other_folds_all_are_run_anew(folder, commands):
    words = ["cross_validate", "--config", config(), "--folds", "2"]
    assert main(words) == 0
    assert main(words) == 0
    assert (folder / "runs/small_fold1/version_2/predictions.csv").is_file()  # the run, a predict, the next run
    commands.clear()
    assert main(["cross_validate", "--config", config(), "--folds", "3", "--resume"]) == 0
    assert [words[0] for words in commands] == ["fit", "predict"] * 3
    assert not any("--resume" in words for words in commands)


def test_what_the_config_would_predict_is_left_out(folder, commands):
    (folder / "new.csv").touch()
    words = ["cross_validate", "--config", config(predict_path="new.csv"), "--folds", "2"]
    assert main(words) == 2  # the stand-in refuses it in fit already
    assert "--data.predict_path" not in commands[0]
    assert cross_validation.Plan.parse(words[1:3], 2).predict_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "1"], "--folds: 1 folds leave nothing to train on"),
        (["--data.fold", "1/3"], "--data.fold differs between the folds"),
        (["--ckpt_path=x"], "--ckpt_path differs between the folds"),
        (["--data", "DigitsDataModule", "--data.classes", "[0, 1]"], "has no argument 'fold'"),
        (["--trainer.logger", "false"], "trainer.logger: cross_validate reads"),
        (["--trainer.max_epohcs", "3"], "mean 'max_epochs'"),
    ],
)
def test_what_cannot_be_cross_validated_is_told_before_the_first_fold(words, message, folder, commands, capsys):
    assert main(["cross_validate", "--config", config(), *words]) == 2
    assert message in capsys.readouterr().err
    assert not commands


def test_a_metric_that_a_fold_leaves_undefined_counts_where_it_is_defined():
    scores = [{"test/a": 1.0, "test/b": 2.0}, {"test/a": 3.0}, {"test/a": 5.0, "test/b": 3.0}]
    assert mean_and_std(scores) == {"test/a": (3.0, 2.0, 3), "test/b": (2.5, pytest.approx(0.5**0.5), 2)}
    assert score_lines(scores) == ["test/a  3 ± 2", "test/b  2.5 ± 0.71  (2 of 3 folds)"]
    assert score_lines([{"x": 1.0}, {}]) == ["x  1  (1 of 2 folds)"]


def test_folds_that_number_their_rows_from_zero_stay_one_after_the_other():
    folds = [[{"row": "0"}, {"row": "1"}], [{"row": "0"}]]
    assert [(row["fold"], row["row"]) for row in in_order(folds)] == [(1, "0"), (1, "1"), (2, "0")]
    folds = [[{"row": "10"}, {"row": "2"}], [{"row": "9"}]]
    assert [(row["fold"], row["row"]) for row in in_order(folds)] == [(1, "2"), (2, "9"), (1, "10")]
