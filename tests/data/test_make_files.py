import numpy as np
import pandas
import torch

from hybrid_lightning.data.inputs import parse_inputs
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.table import Table
from tests.data.make_files import INPUTS, make_manifest
from tests.processes import succeed

KINDS = {
    "photo": {"image": "photo", "size": 8},
    "xray": {"image": "xray", "size": 8, "channels": 1},
    "scan": {"volume": "scan", "size": 4},
    "emb": {"array": "emb"},
    "spectrum": {"array": "spectrum", "name": "values"},
    "curve": {"series": "curve"},
    "sound": {"audio": "sound", "seconds": 0.1},
    "report": {"text": "report"},
    "table": {"numeric": ["age", "dose"], "categorical": ["site", "sex"]},
}


def test_every_input_of_the_manifest_can_be_read(tmp_path):
    manifest = Table.read(make_manifest(tmp_path, rows=12))
    for entry in parse_inputs(KINDS).values():
        entry.folder = str(tmp_path)
        entry.statistics = entry.fit(manifest, np.arange(12))
        entry.bind(manifest)
        known = np.flatnonzero(~entry.empty(manifest)).tolist()
        if entry.in_memory:
            batch = entry.batch(torch.arange(12))
        else:
            values = [entry.read(row, True) for row in known]
            batch = entry.collate([*values, None], values[0])
            assert not isinstance(entry, FileInput) or all(isinstance(entry.peek(row), tuple) for row in known)
        for values in batch.values() if isinstance(batch, dict) else [batch]:
            assert len(values) >= len(known)


def test_a_share_of_the_cells_is_empty_but_never_all_of_a_row(tmp_path):
    frame = pandas.read_csv(make_manifest(tmp_path, rows=60, missing=0.9))[INPUTS]
    assert 0.8 < frame.isna().to_numpy().mean() < 0.95
    assert frame.notna().any(axis=1).all()
    assert pandas.read_csv(make_manifest(tmp_path, rows=6, missing=0.0))[INPUTS].notna().all(axis=None)


def test_patients_have_one_label_and_stay_in_one_split(tmp_path):
    frame = pandas.read_csv(make_manifest(tmp_path, rows=40))
    groups = frame.groupby("patient")
    assert (groups[["label", "split"]].nunique() == 1).all(axis=None)
    assert groups.size().max() == 3
    assert set(frame["split"]) == {"train", "val", "test"}
    assert frame["label"].nunique() == 3


def test_equal_seeds_write_equal_files(tmp_path):
    first, again = (make_manifest(tmp_path / name, rows=6, seed=3) for name in ("a", "b"))
    assert first.read_bytes() == again.read_bytes()
    assert first.read_bytes() != make_manifest(tmp_path / "c", rows=6, seed=4).read_bytes()
    for kind in ("photos", "xrays", "arrays", "curves", "sounds"):  # .gz and .npz hold the time
        for file in (tmp_path / "a" / kind).glob("*[!z]"):
            assert file.read_bytes() == (tmp_path / "b" / kind / file.name).read_bytes()


def test_it_runs_from_the_command_line(tmp_path):
    done = succeed("-m", "tests.data.make_files", str(tmp_path / "made"), "4", "0.5", "1")
    assert done.stdout.strip() == str(tmp_path / "made" / "manifest.csv")
    assert len(pandas.read_csv(tmp_path / "made" / "manifest.csv")) == 4
