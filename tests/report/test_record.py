import json

import pytest

from hybrid_lightning.report.record import FILE, LARGEST, Record, read_record
from tests.report.runs import record


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression"])
def test_a_record_is_read_as_it_was_written(tmp_path, kind):
    record(kind).write(tmp_path)
    assert read_record(tmp_path) == record(kind)


def test_a_folder_without_a_record_has_an_empty_one(tmp_path):
    assert read_record(tmp_path) == Record()


def changed(**changes):
    content = vars(record())
    return json.dumps({**content, **changes})


DAMAGED = {
    "no JSON": "{",
    "a list": "[1]",
    "nested": "[" * 100_000 + "]" * 100_000,
    "infinite": changed(roc=[{"name": "a", "x": [float("inf")], "y": [0.0], "value": 0.0}]),
    "beyond floats": changed().replace("0.02", "1e999"),
    "nan": changed(worst=[{"row": "1", "loss": float("nan"), "truth": "", "predicted": "", "shown": []}]),
    "text for a number": changed(rows="12"),
    "markup for a picture list": changed(worst=[{"row": "1", "loss": 1.0, "truth": "", "predicted": "", "shown": "x"}]),
    "a row too few": changed(confusion={"names": ["a", "b"], "counts": [[1, 2]]}),
    "a cell too many": changed(confusion={"names": ["a"], "counts": [[1, 2]]}),
    "uneven curves": changed(roc=[{"name": "a", "x": [0.0, 1.0], "y": [0.0], "value": 0.0}]),
    "bins without rows": changed(reliability={"confidence": [0.5], "correct": [0.5], "rows": []}),
    "no scripts": changed(worst=[{"row": {"a": 1}, "loss": 1.0, "truth": "", "predicted": "", "shown": []}]),
    "a huge number": changed(rows=10**400),
    "beyond any data": changed().replace("0.02", "1e200"),
    "a negative count": changed(confusion={"names": ["a"], "counts": [[-1]]}),
    "large": json.dumps({"names": ["x" * LARGEST]}),
    "many digits": changed(rows=10).replace('"rows": 10', '"rows": ' + "9" * 5000),
    "not UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_record_is_left_out_and_told(tmp_path, name):
    content = DAMAGED[name]
    (tmp_path / FILE).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = read_record(tmp_path)
    assert found.rows == 0
    assert "cannot be read" in found.notes[0]
    assert len(found.notes[0]) < 400


def test_a_record_that_is_too_large_loses_its_pictures(tmp_path):
    large = record()
    large.worst[0]["shown"] = [{"key": "photo", "picture": "A" * LARGEST, "text": "", "line": []}]
    large.write(tmp_path)
    found = read_record(tmp_path)
    assert found.worst[0]["shown"] == []
    assert found.notes == ["The samples were too large to be shown."]
