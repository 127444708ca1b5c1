"""Several files in a cell, from a table to predictions, by the command line."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid_lightning import HybridClassifier, suggest
from hybrid_lightning.cli import main
from tests.small import QUIET, changed, command, write
from tests.tables import write_rows

ROWS = 36
INPUTS = {"photos": {"image": "photos", "separator": ";", "size": 8, "most": 4}, "size": {"numeric": ["size"]}}
PARTS = {"photos": {"module": "ConvExtractor", "args": {"channels": [4]}, "unfreeze": "never"}}


@pytest.fixture
def folder(folder):
    """``m.csv``: each row has none to three photos, of which the last shows the label."""
    random = np.random.default_rng(0)
    rows = []
    for row in range(ROWS):
        names = [f"{row}_{number}.png" for number in range(row % 4)]
        for name in names:
            pixels = random.integers(0, 90, (8, 8, 3))
            pixels[..., row % 3] += 150 if name == names[-1] else 0
            Image.fromarray(pixels.astype(np.uint8)).save(name)
        cell = "; ".join(names) if row % 8 else ";".join(["", *names, " "])
        rows.append({"photos": cell, "size": (7 * row) % 10 + 0.5, "label": "abc"[row % 3]})
    write_rows("m.csv", rows)
    return folder


def config(cache=True, inputs=INPUTS, **options):
    data = {"path": "m.csv", "inputs": inputs, "target": "label", "batch_size": 8, "workers": 0, **options}
    parts = {**PARTS, "size": {"module": "MLP"}}
    data = {"class_path": "ManifestDataModule", "init_args": data}
    return changed({"init.parts": parts, "init.cache": cache, "data": data, "trainer": {"max_epochs": 2, **QUIET}})


def rows_of(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def test_a_fit_and_its_predictions_read_as_many_files_as_each_row_has(folder, capsys):
    losses = []
    for cache in (False, True):
        assert command("fit", "--name", f"run{cache}", config=config(cache)) == 0, capsys.readouterr().err
        [metrics] = Path("runs").glob(f"run{cache}/**/metrics.csv")
        losses.append(float(rows_of(metrics)[-1]["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    checkpoint = str(next(Path("runs").glob("runTrue/**/last.ckpt")))
    words = ("--ckpt_path", checkpoint, "--output", "p.csv", "--data.predict_path", "m.csv")
    assert command("predict", *words, config=config()) == 0
    assert command("evaluate", "m.csv", "--draws", "50", "--ckpt_path", checkpoint, config=config()) == 0
    predicted = rows_of("p.csv")
    model = HybridClassifier.load_from_checkpoint(checkpoint)
    given = rows_of("m.csv")[7]
    forms = [
        [Path(name.strip()) for name in given["photos"].split(";")],
        [np.asarray(Image.open(name.strip())) for name in given["photos"].split(";")],
    ]
    for photos in forms:
        found = model.predict({"photos": photos, "size": float(given["size"])})
        assert found["probability_a"] == pytest.approx(float(predicted[7]["probability_a"]), abs=1e-6)
    nothing = [model.predict({"photos": photos, "size": float(rows_of("m.csv")[4]["size"])}) for photos in ([], None)]
    assert [one["probability_a"] for one in nothing] == pytest.approx([float(predicted[4]["probability_a"])] * 2)


def refused(capsys, **options):
    assert command("check", config=config(**options)) == 2
    return capsys.readouterr().err


def test_check_counts_files_and_names_each_that_is_wrong(folder, capsys):
    assert command("check", config=config()) == 0
    printed = capsys.readouterr().out
    for line in ("photos empty", "1 to 3 files of 3 × 8 × 8"):
        assert line in printed
    Path("7_1.png").write_bytes(b"x")
    Path("5_0.png").unlink()
    told = refused(capsys)
    assert "2 files of 'm.csv' cannot be used" in told
    assert "row 5, photos, '5_0.png': there is no such file" in told
    assert "row 7, photos, '7_1.png': cannot be read" in told
    assert [row["path"] for row in rows_of("m.problems.csv")] == ["5_0.png", "7_1.png"]


def test_a_file_in_the_cells_of_two_splits_is_told_wherever_it_stands(folder, capsys):
    rows = [{**row, "split": ("train", "val", "test")[number // 3 % 3]} for number, row in enumerate(rows_of("m.csv"))]
    rows[3]["photos"] += ";2_0.png;3_0.png"  # the second again within the row
    Path("6_0.png").write_bytes(Path("5_0.png").read_bytes())
    write_rows("m.csv", rows)
    inputs = {**INPUTS, "photos": {**INPUTS["photos"], "most": 9}}
    assert command("check", config=config(split_column="split", inputs=inputs)) == 0
    told = capsys.readouterr().out
    assert "2 files stand in several rows, 2 of them in more than one split" in told
    assert re.search(r"such as '(2_0|5_0)\.png'", told)


def test_files_of_other_shapes_and_too_many_are_refused(folder, capsys):
    unequal = {**INPUTS, "photos": {"image": "photos", "separator": ";"}}
    Image.new("RGB", (9, 8)).save("10_1.png")
    assert "row 10, photos, '10_1.png': its shape 3 × 8 × 9 is not that of most, 3 × 8 × 8" in refused(
        capsys, inputs=unequal
    )
    few = {**INPUTS, "photos": {**INPUTS["photos"], "most": 2}}
    told = refused(capsys, inputs=few)
    assert "data.inputs.photos: rows 3, 7, 11, 15, 19 and 4 more: 3 files in a cell of column 'photos'" in told
    assert "Write 'most: 3'" in told


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"separator": "/"}, r"photos.separator: '/' does not separate paths"),
        ({"separator": ""}, r"photos.separator: '' does not separate paths"),
        ({"most": 0, "separator": ";"}, "photos.most: 0"),
        ({"most": 3}, "photos.most: it is about several files of a sample, and 'photos' is one column"),
        ({"image": ["photos", "size"], "separator": ";"}, "photos.separator: it is about the cells of one column"),
    ],
)
def test_impossible_options_are_told_with_their_place(folder, capsys, options, reason):
    assert reason in refused(capsys, inputs={**INPUTS, "photos": {"image": "photos", "size": 8, **options}})


def test_a_cell_with_several_files_that_are_not_asked_for_gives_the_option(folder, capsys):
    told = refused(capsys, inputs={**INPUTS, "photos": {"image": "photos", "size": 8}})
    assert "It seems to hold several files; name what is between them, such as 'separator: \";\"'" in told


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl"])
def test_init_sees_cells_with_several_files_and_lists(folder, capsys, form):
    import pandas

    frame = pandas.DataFrame(rows_of("m.csv"))
    frame["size"] = frame["size"].astype(float)
    if form != "csv":
        lists = [[name.strip() for name in cell.split(";") if name.strip()] for cell in frame["photos"]]
        frame["photos"] = lists
        write_frame = frame.to_parquet if form == "parquet" else frame.to_json
        write_frame(f"m.{form}", **({} if form == "parquet" else {"orient": "records", "lines": True}))
    found = suggest(f"m.{form}", "label")
    options = found["data"]["init_args"]["inputs"]["photos"]
    assert (options["image"], options["separator"]) == ("photos", ";")
    assert "several files" in found.text
    assert main(["check", "--config", write(found.text, "mine.yaml")]) == 0, capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_config_of_init_is_fitted(folder):
    words = ["--data.workers", "0", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    path = write(suggest("m.csv", "label").text, "mine.yaml")
    assert main(["fit", "--config", path, *words, "--trainer.log_every_n_steps", "1"]) == 0
