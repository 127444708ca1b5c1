import os
import shutil
import sys
from pathlib import Path

import pytest

from hybrid_lightning.cli import main
from hybrid_lightning.cli import report as command
from hybrid_lightning.report import page, record
from tests.report.runs import Parsed, write_folder
from tests.small import changed, write

PROGRAM = "/* plotly */"


@pytest.fixture
def with_plotly(monkeypatch):
    """A stand-in, so that these tests need none."""
    monkeypatch.setattr(command, "require_plotly", lambda: PROGRAM)
    monkeypatch.setattr(page, "require_plotly", lambda: PROGRAM)
    monkeypatch.setattr(command, "find_spec", lambda name: object())


def read(path):
    return Parsed(Path(path).read_text(encoding="utf-8"))


def test_a_name_stands_for_its_newest_fit(folder, with_plotly, capsys):
    for number in (0, 1, 2):
        write_folder(folder / "runs" / "x" / f"version_{number}")
    for number in (0, 1):
        (folder / "runs" / "x" / f"version_{number}" / "checkpoints").mkdir()
    assert main(["report", "runs/x"]) == 0
    assert capsys.readouterr().out == "report: runs/x/version_1/report.html\n"
    assert read("runs/x/version_1/report.html").text.count("x/version_1")


def test_several_runs_are_one_page_here_or_where_output_says(folder, with_plotly):
    for name in "ab":
        write_folder(folder / "runs" / name / "version_0", config={"name": name})
    assert main(["report", "runs/a", "runs/b/version_0"]) == 0
    assert main(["report", "runs/a", "runs/b", "--output", "sub/both.html"]) == 0
    assert Path("report.html").read_text() == Path("sub/both.html").read_text()
    assert read("report.html").sections[:4] == ["scores", "curves", "timeline", "differences"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "there is no run in 'nothing'"),
        (["runs/x"] * 21, "21 runs are more than a page can show"),
        (["runs/x", "runs/x", "--config", "a.yaml"], "--config and --ckpt_path are for one run"),
        (["runs/x", "--ckpt_path", "a.ckpt"], "--config is needed"),
        ([], "report: RUN must be given."),
        (["runs/x", "--outptu", "a"], "--outptu"),
        (["runs/x", "--output", "x.txt"], "output: 'x.txt' does not end in .html."),
    ],
)
def test_wrong_words_are_told(folder, with_plotly, capsys, words, said):
    write_folder(folder / "runs" / "x" / "version_0")
    assert main(["report", *words]) == 2
    assert said in capsys.readouterr().err


def test_without_plotly_the_extra_is_named(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert main(["report", str(write_folder(folder / "x"))]) == 2
    assert "pip install 'hybrid_lightning[report]'" in capsys.readouterr().err


def test_a_strangers_folder_is_read_and_nothing_in_it_is_run(folder, with_plotly):
    config = {
        "data": {"class_path": "evil.Data"},
        "model": {"class_path": "os.system", "init_args": {"a": "touch ran"}},
    }
    run = write_folder(folder / "x", kind=None, config=config)
    (run / "evil.py").write_text("open('ran', 'w')")
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text() + "\nz: !!python/object/apply:os.system [touch ran]\n"
    )
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "best.ckpt").write_bytes(b"\x80\x02cposix\nsystem\nX\x09\x00\x00\x00touch ran\x85R.")
    assert main(["report", "x"]) == 0
    assert not Path("ran").exists()
    found = read("x/report.html")
    assert "os.system" in found.text  # as text
    assert found.sections[-1] == "config"


def test_no_pipe_of_a_folder_is_waited_for(folder, with_plotly):
    run = write_folder(folder / "x")
    for name in ("metrics.csv", record.FILE):
        (run / name).unlink()
        os.mkfifo(run / name)
    assert main(["report", "x"]) == 0
    found = read("x/report.html")
    assert "There is no metrics.csv" in found.text
    assert found.sections == ["config"]


def test_a_run_without_predictions_is_told_beside_others(folder, with_plotly):
    write_folder(folder / "runs" / "a")
    write_folder(folder / "runs" / "b", kind=None)
    assert main(["report", "runs/a", "runs/b"]) == 0
    found = read("report.html")
    assert "Predictions of runs/b are not shown." in found.text
    assert "Of runs/a: 12 validation rows, as the checkpoint decides." in found.text


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run that has written its report, with a stand-in for plotly's program."""
    where = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr(command, "require_plotly", lambda: PROGRAM)
        patch.setattr(page, "require_plotly", lambda: PROGRAM)
        patch.setattr(command, "find_spec", lambda name: object())
        config = changed(
            {"trainer.max_epochs": 2, "init.parts.body.unfreeze": "4 steps", "trainer.limit_train_batches": 3}
        )
        assert main(["fit", "--config", write(config)]) == 0
    return where


def test_a_fit_writes_its_report_by_itself(fitted):
    run = fitted / "runs" / "small" / "version_0"
    found = record.read_record(run)
    assert found.notes == []
    counts = found.confusion["counts"]
    assert sum(map(sum, counts)) == found.rows == found.data["rows"]["val"]
    assert found.data["rows"].keys() == found.data["classes"].keys() == {"train", "val", "test"}
    accuracy = sum(row[place] for place, row in enumerate(counts)) / found.rows
    assert accuracy == pytest.approx(best_accuracy(run))
    starts = {part["part"]: [stage["start"] for stage in part["stages"]] for part in found.parts}
    assert starts == {"stem": [0], "body": [4], "head": [0]}
    losses = [sample["loss"] for sample in found.worst]
    assert losses == sorted(losses, reverse=True)
    assert all(sample["shown"][0]["picture"] for sample in found.worst)
    assert {"confusion", "samples", "timeline", "config"} <= set(read(run / "report.html").sections)


def best_accuracy(run):
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    place = header.split(",").index("val/accuracy")
    values = [line.split(",")[place] for line in rows]
    return max(float(value) for value in values if value)


def test_rows_are_predicted_anew_by_a_config(fitted, with_plotly, monkeypatch, tmp_path):
    shutil.copytree(fitted, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    run = Path("runs/small/version_0")
    before = record.read_record(run)
    assert main(["report", "runs/small", "--config", str(run / "config.yaml")]) == 0
    again = record.read_record(run)
    assert (again.confusion, again.parts, again.best) == (before.confusion, before.parts, before.best)
    (run / record.FILE).unlink()
    assert main(["report", "runs/small"]) == 0
    assert "Predictions are not shown. To add them" in read(run / "report.html").text
    assert main(["report", "runs/small", "--config", str(run / "config.yaml")]) == 0
    assert record.read_record(run).confusion == before.confusion
    assert [path.name for path in Path("runs").iterdir()] == ["small"]  # it is no run of its own


def test_best_and_last_are_those_of_the_run(fitted, with_plotly, monkeypatch, tmp_path, capsys):
    shutil.copytree(fitted, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    run = Path("runs/small/version_0")
    words = ["report", str(run), "--config", str(run / "config.yaml"), "--ckpt_path"]
    (run / record.FILE).unlink()
    assert main([*words, "last"]) == 0
    assert record.read_record(run).rows
    (run / "checkpoints" / "best.ckpt").unlink()
    assert main([*words, "best"]) == 2
    assert "runs/small/version_0/checkpoints/best.ckpt" in capsys.readouterr().err


def test_test_has_a_report_of_the_test_rows(fitted, with_plotly, monkeypatch, tmp_path, capsys):
    shutil.copytree(fitted, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert main(["test", "--config", "small.yaml", "--ckpt_path", "best"]) == 0
    assert "report: runs/small/version_1/report.html" in capsys.readouterr().out
    assert record.read_record(Path("runs/small/version_1")).split == "test"


def test_no_report_is_written_where_it_is_not_wanted_or_plotly_is_missing(folder, monkeypatch, with_plotly):
    config = changed({"report": False})
    assert main(["fit", "--config", write(config)]) == 0
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert main(["fit", "--config", write(changed())]) == 0
    assert not list(Path("runs").rglob("report.*"))


def test_a_fault_of_the_report_costs_no_fit(folder, monkeypatch, with_plotly, capsys):
    def fail(*arguments):
        raise RuntimeError("no picture")

    monkeypatch.setattr(command, "write_page", fail)
    assert main(["fit", "--config", write(changed())]) == 0
    assert "report: none was written. no picture." in capsys.readouterr().out


def test_rows_that_take_too_long_are_left_out_and_told(folder, monkeypatch, with_plotly):
    monkeypatch.setattr(command, "_SECONDS", 1e-9)
    assert main(["fit", "--config", write(changed({"data.init_args.batch_size": 4}))]) == 0
    notes = record.read_record(Path("runs/small/version_0")).notes
    assert "would take about" in notes[0]
    assert notes[1].startswith("To add them: python -m hybrid_lightning report runs/small/version_0 --config")


def test_the_end_of_a_fit_says_what_each_part_did(fitted, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = changed({"init.parts.stem.unfreeze": "never", "init.parts.body.unfreeze": "2 steps", "report": False})
    assert main(["fit", "--config", write(config)]) == 0
    said = capsys.readouterr().out
    assert "frozen for all 3 steps: its " in said
    assert "frozen until step 2, then trained: " in said
    assert "trained from the start: " in said
    assert "next: python -m hybrid_lightning predict --config runs/small/version_0/config.yaml --ckpt_path " in said


NUMBERS = {"class_path": "HybridRegressor", "init_args": {}}
LABELS = {"class_path": "HybridClassifier", "init_args": {"num_classes": 2, "kind": "multilabel"}}


def fit_table(target, model):
    """The record of a run of a table of 60 rows."""
    rows = [f"{number % 7},{number % 5},{number % 7 + 0.5},{'a;b' if number % 2 else 'a'}" for number in range(60)]
    Path("t.csv").write_text("\n".join(["x,y,price,tags", *rows]))
    data = {"path": "t.csv", "target": target, "inputs": {"table": {"numeric": ["x", "y"]}}, "split_seed": 1}
    config = {"model": model, "data": {"class_path": "ManifestDataModule", "init_args": data}}
    model["init_args"]["parts"] = {"table": {"module": "MLP", "args": {"hidden": [4]}}}
    assert main(["fit", "--config", write({**config, "trainer": changed()["trainer"]}, "t.yaml")]) == 0
    found = record.read_record(Path("runs/t/version_0"))
    assert found.notes == []
    assert found.rows == found.data["rows"]["val"] == 9
    assert [entry["key"] for entry in found.worst[0]["shown"]] == ["x", "y"]
    return found


def test_numbers_are_described_in_their_units(folder, with_plotly):
    [column] = fit_table("price", NUMBERS).numbers
    assert len(column["true"]) == len(column["predicted"]) == 9
    assert 0.5 <= min(column["true"]) <= max(column["true"]) <= 6.5


def test_labels_have_curves_unless_all_rows_have_them(folder, with_plotly):
    found = fit_table({"column": "tags", "kind": "multilabel"}, LABELS)
    assert [curve["name"] for curve in found.roc] == ["b"]
    assert sum(found.reliability["rows"]) == 2 * found.rows
