"""DICOM images and series, by the command line."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from hybrid_lightning import suggest
from hybrid_lightning.cli import main
from tests.data.dicom import PATIENT, write_dicom, write_series
from tests.small import write
from tests.tables import write_rows

ROWS = 30
QUIET = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--data.workers", "0"]
QUIET += ["--trainer.log_every_n_steps", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``m.csv``: a film and a folder with a series per row, both brighter for one label."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    Path("films").mkdir()
    rows = []
    for row in range(ROWS):
        pixels = random.integers(0, 2000, (12, 10)) + 2000 * (row % 2)
        write_dicom(Path(f"films/{row}.dcm"), pixels.astype(np.uint16), BitsStored=12)
        volume = random.integers(-1000, 0, (4, 8, 8)) + 1000 * (row % 2)
        write_series(Path(f"scans/s{row}"), volume.astype(np.int16), list(random.permutation(["a", "b", "c", "d"])))
        rows.append({"film": f"{row}.dcm", "scan": f"s{row}", "label": "ny"[row % 2]})
    write_rows("m.csv", [{**row, "film": f"films/{row['film']}", "scan": f"scans/{row['scan']}"} for row in rows])
    return tmp_path


def test_init_finds_files_and_folders(folder):
    found = suggest("m.csv", "label")
    inputs = found["data"]["init_args"]["inputs"]
    assert inputs["film"]["image"] == "film"
    assert inputs["scan"]["volume"] == "scan"


@pytest.mark.exhaustive
def test_the_config_of_init_is_fitted(folder):
    path = write(suggest("m.csv", "label").text, "mine.yaml")
    assert main(["fit", "--config", path, *QUIET]) == 0


def config():
    inputs = {"film": {"image": "film", "channels": 1}, "scan": {"volume": "scan", "scale": [-1000, 1000]}}
    data = {"path": "m.csv", "inputs": inputs, "target": "label", "workers": 0}
    parts = {"film": {"module": "ConvExtractor"}, "scan": {"module": "ResidualConv3d", "args": {"channels": [4]}}}
    model = {"class_path": "HybridClassifier", "init_args": {"num_classes": 2, "parts": parts}}
    return {"model": model, "data": {"class_path": "ManifestDataModule", "init_args": data}}


def test_check_lists_files_and_folders_that_are_broken_and_tells_nothing_of_patients(folder, capsys):
    assert main(["check", "--config", write(config())]) == 0
    printed = capsys.readouterr()
    assert "1 × 12 × 10" in printed.out
    assert "4 × 8 × 8" in printed.out
    assert "30 of 30 files state no window" in printed.out
    Path("films/3.dcm").write_bytes(Path("films/3.dcm").read_bytes()[:-40])
    Path("scans/s4/b").unlink()
    shutil.copy("scans/s5/a", "scans/s5/e")
    shutil.rmtree("scans/s6")
    assert main(["check", "--config", write(config())]) == 2
    told = capsys.readouterr()
    for line in (
        "row 3, film, 'films/3.dcm': cannot be read: its pixels cannot be decoded",
        "row 5, scan, 'scans/s5': cannot be read: its slices 'a' and 'e' lie at the same place",
        "row 6, scan, 'scans/s6': there is no such file",
    ):
        assert line in told.err
    for text in (printed.out, printed.err, told.out, told.err, Path("m.problems.csv").read_text()):
        assert not any(name in text for name in PATIENT.split("^"))


def test_copies_of_a_series_in_two_splits_are_told(folder, capsys):
    shutil.rmtree("scans/s8")
    Path("scans/s8").mkdir()
    for place, file in enumerate(sorted(Path("scans/s2").iterdir())):
        shutil.copy(file, f"scans/s8/copy{place}.dcm")
    rows = Path("m.csv").read_text().splitlines()
    split = ["split", *("val" if row == 8 else "train" for row in range(ROWS))]
    Path("m.csv").write_text("\n".join(f"{row},{own}" for row, own in zip(rows, split, strict=True)))
    given = config()
    given["data"]["init_args"]["split_column"] = "split"
    assert main(["check", "--config", write(given)]) == 0
    told = capsys.readouterr().out
    assert "data.inputs.scan: 1 file stands in several rows, 1 of them in more than one split" in told
    assert "'scans/s2', which have equal bytes as 'scans/s8'" in told
