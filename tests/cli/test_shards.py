"""``shards``: the data of a config as tar shards, through the command line."""

import tarfile
from pathlib import Path

import pytest
import yaml

from hybrid_lightning.data.table import Table
from tests import small
from tests.data.make_files import make_manifest

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
