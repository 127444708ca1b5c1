"""``shards``: the data of a config as tar shards, through the command line."""

import tarfile
from pathlib import Path

import pytest
import yaml

from hybrid_lightning.data.table import Table
from tests import small
from tests.data.make_files import make_manifest
from tests.tables import write_rows

INPUTS = {
    "photo": {"image": "photo", "size": 8},
    "table": {"numeric": ["age", "dose"], "categorical": ["site"]},
}
PARTS = {"photo": {"module": "ConvExtractor", "args": {"channels": [4]}}, "table": {"module": "TabularMLP"}}


def config(**data):
    arguments = {"path": "made/manifest.csv", "inputs": INPUTS, "target": "label", "split_column": "split", **data}
    arguments = {"workers": 0, "id": "sample", "split_by": "patient", **arguments}
    return {
        "model": {"class_path": "HybridClassifier", "init_args": {"parts": PARTS}},
        "data": {"class_path": "ManifestDataModule", "init_args": arguments},
        "trainer": {"max_epochs": 1, **small.QUIET},
    }


@pytest.fixture
def made(folder):
    return make_manifest("made", rows=30, missing=0.2, seed=1)


def test_what_is_written_and_printed_is_a_config_that_fits(made, capsys):
    assert small.command("shards", "--output", "shards", "--samples", "8", config=config()) == 0
    shown = capsys.readouterr().out
    arguments = yaml.safe_load(shown.partition("data in the config:\n")[2].partition("in place")[0])
    columns = yaml.safe_load(shown.partition("in place of columns:\n")[2])
    assert columns["photo"] == "photo.jpg;photo.png"
    assert columns["site"] == "json.site"
    inputs = {
        "photo": {"image": columns["photo"], "size": 8},
        "table": {"numeric": [columns["age"], columns["dose"]], "categorical": [columns["site"]]},
    }
    named = {"target": columns["label"], "id": columns["sample"], "split_by": columns["patient"]}
    written = config(**arguments, inputs=inputs, **named)
    del written["data"]["init_args"]["split_column"]
    assert small.command("fit", config=written) == 0


def test_shards_hold_the_rows_of_their_split_once_and_the_files_as_they_are(made):
    assert small.command("shards", "--output", "shards", "--samples", "8", config=config()) == 0
    manifest = Table.read("made/manifest.csv").arrow.to_pandas().set_index("sample")
    patterns = {split: f"shards/{split}-*.tar" for split in ("train", "val", "test")}
    shards = Table.read(patterns, texts=["photo.jpg;photo.png"])
    found = shards.arrow.to_pandas()
    assert sorted(found["json.sample"]) == sorted(manifest.index)
    assert found["shard"].value_counts().max() == 8
    for row, cells in found.iterrows():
        wanted = manifest.loc[cells["json.sample"]]
        assert wanted["split"] == cells["split"]
        assert wanted["age"] == cells["json.age"] or wanted["age"] != wanted["age"]
        if isinstance(cells["photo.jpg;photo.png"], str):
            content = shards.members["photo.jpg;photo.png"].path(row).read_bytes()
            assert content == Path("made", wanted["photo"]).read_bytes()
    assert found["key"].tolist() != sorted(found["key"]), "training samples are in random order"


def test_shards_of_shards_can_have_another_size(made):
    assert small.command("shards", "--output", "shards", "--samples", "8", config=config()) == 0
    table = {"numeric": ["json.age"], "categorical": ["json.site"]}
    inputs = {"photo": {"image": "photo.jpg;photo.png", "size": 8}, "table": table}
    again = config(path="shards/*.tar", inputs=inputs, target="json.label", split_column=None, id=None, split_by=None)
    assert small.command("shards", "--output", "large", config=again) == 0
    assert sorted(path.name for path in Path("large").iterdir()) == ["test-0.tar", "train-0.tar", "val-0.tar"]


def test_each_column_of_an_input_of_several_files_has_members(made):
    inputs = {"both": {"array": ["emb", "spectrum"]}, "table": INPUTS["table"]}
    parts = {"table": PARTS["table"]}
    written = config(inputs=inputs)
    written["model"]["init_args"]["parts"] = parts
    assert small.command("shards", "--output", "shards", config=written) == 0
    with tarfile.open("shards/val-0.tar") as archive:
        extensions = {name.partition(".")[2] for name in archive.getnames()}
    assert extensions == {"both_emb.npy", "both_spectrum.npz", "json"}


def write_files(*names, content=b"1,2\n3,4\n", **columns):
    """A table of files of these names, one a row, in the column ``file``."""
    for name in names:
        Path(name).write_bytes(content)
    others = {column: [cell.format(row) for row in range(len(names))] for column, cell in columns.items()}
    rows = [
        {"file": name, "label": "ab"[row % 2], **{column: others[column][row] for column in others}}
        for row, name in enumerate(names)
    ]
    write_rows("files.csv", rows)


def of_files(inputs, **data):
    return config(path="files.csv", inputs=inputs, target="label", split_column=None, id=None, split_by=None, **data)


def test_dots_within_names_of_files_make_no_further_columns(folder, capsys):
    write_files(*[f"scan.2024.{row:03}.CSV" for row in range(20)])
    assert small.command("shards", "--output", "shards", config=of_files({"curve": {"series": "file"}})) == 0
    assert "file: curve.csv\n" in capsys.readouterr().out


def test_columns_that_differ_in_a_blank_keep_their_own_files(folder):
    columns = {"left eye": "left{}.csv", "left_eye": "other{}.csv"}
    write_files(*[f"{row}.csv" for row in range(20)], **columns)
    for row in range(20):
        for number, column in enumerate(columns.values()):
            Path(column.format(row)).write_text(f"{number}.5\n{row}.5\n")
    inputs = {"both": {"series": list(columns)}}
    assert small.command("shards", "--output", "shards", config=of_files(inputs)) == 0
    with tarfile.open("shards/train-0.tar") as archive:
        texts = {archive.extractfile(name).read()[:2] for name in archive.getnames() if name.endswith(".csv")}
    assert texts == {b"0.", b"1."}


def test_a_file_of_two_inputs_is_written_once_and_its_name_may_be_the_id(folder, capsys):
    write_files(*[f"{row}.csv" for row in range(20)])
    given = of_files({"short": {"series": "file", "length": 1}, "curve": {"series": "file"}})
    given["data"]["init_args"]["id"] = "file"
    assert small.command("shards", "--output", "shards", config=given) == 0
    shown = yaml.safe_load(capsys.readouterr().out.partition("in place of columns:\n")[2])
    assert shown == {"file": "curve.csv", "label": "json.label", "file as text": "json.file"}


def test_a_file_that_would_be_read_as_a_cell_is_refused(folder, capsys):
    write_files(*[f"{row}.txt" for row in range(20)], content=b"1 2\n3 4\n")
    assert small.command("shards", "--output", "shards", config=of_files({"curve": {"series": "file"}})) == 2
    assert "txt' would be read as a cell" in capsys.readouterr().err
    assert not list(Path().glob("shards*"))


def test_what_is_printed_is_yaml_whatever_names_are(folder, capsys):
    write_files(*[f"{row}.csv" for row in range(20)], **{"a: b": "{}"})
    given = of_files({"curve": {"series": "file"}, "table": {"numeric": ["a: b"]}}, sampling="balanced")
    assert small.command("shards", "--output", "new {1}, [2]", config=given) == 0
    shown = capsys.readouterr().out.partition("data in the config:\n")[2]
    data, _, columns = shown.partition("in place of columns:\n")
    assert yaml.safe_load(columns)["a: b"] == "json.a: b"
    assert yaml.safe_load(data)["sampling"] == "balanced"
    assert yaml.safe_load(data)["path"]["val"] == "new {1}, [[]2]/val-*.tar"


@pytest.mark.parametrize("wrong", ["exists", "missing", "other"])
def test_what_cannot_be_written_is_told_and_leaves_nothing(made, capsys, wrong):
    given = config()
    if wrong == "exists":
        Path("shards").mkdir()
        message = "--output: 'shards' is there already. Name another folder."
    elif wrong == "missing":
        for path in sorted(Path("made/photos").iterdir())[5:]:
            path.unlink()
        message = "there is no such file"
    else:
        given = small.CONFIG
        message = "shards are written of a ManifestDataModule, and this is a DigitsDataModule"
    assert small.command("shards", "--output", "shards", config=given) != 0
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert not list(Path().glob("shards*/*"))
