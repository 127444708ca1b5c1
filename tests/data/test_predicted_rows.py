import csv
from pathlib import Path

import numpy as np
import pandas
import pytest

from hybrid_lightning import ManifestDataModule
from hybrid_lightning.cli import main
from tests.small import write

INPUTS = {"x": {"numeric": ["x"]}}


def predicted(target, new=None, **columns):
    """``predict_targets`` of a module that was fitted to `columns`, for the rows of `new` or else the test rows."""
    rows = len(next(iter(columns.values())))
    frame = pandas.DataFrame({"x": np.arange(rows) / 2, "split": ["train", "val", "test"] * (rows // 3), **columns})
    fitted = ManifestDataModule(frame, INPUTS, target, split_column="split", workers=0)
    fitted.setup("fit")
    paths = (
        {} if new is None else {"predict_path": pandas.DataFrame({"x": [0.5] * len(next(iter(new.values()))), **new})}
    )
    data = ManifestDataModule(frame, INPUTS, target, split_column="split", workers=0, **paths)
    data.load_state_dict(fitted.state_dict())
    data.setup("predict")
    return data.predict_targets


CLASSES = ["ill", "ill", "well", "well", "well", "ill"]


def test_test_rows_have_their_target():
    assert predicted("y", y=CLASSES) == {"target": ["well", "ill"]}
    assert predicted("y", y=[0.5, 1.5, 2.25, 3.5, 4.5, 5.5]) == {"target": [2.25, 5.5]}
    assert predicted(["y", "z"], y=[0, 1] * 3, z=[1, 0] * 3) == {"target_y": [0, 1], "target_z": [1, 0]}


def test_new_rows_have_it_where_their_table_does():
    new = {"y": ["Ill ", None, "new", "well"]}
    assert predicted("y", new, y=CLASSES) == {"target": ["ill", None, "new", "well"]}
    assert predicted("y", {"z": [1]}, y=CLASSES) == {}
    assert predicted("y", {"y": [None, None]}, y=CLASSES) == {}
    assert predicted("y", {"y": [1.5, None]}, y=[0.5, 1.5, 2.25, 3.5, 4.5, 5.5]) == {"target": [1.5, None]}


def test_labels_have_a_column_each():
    target = {"column": "y", "kind": "multilabel"}
    known = ["a;b", "b", "a;b", "b", "b", ";"]
    assert predicted(target, y=known) == {"target_a": [1, 0], "target_b": [1, 0]}
    assert predicted(target, {"y": ["b", None, "c"]}, y=known) == {"target_a": [0, None, 0], "target_b": [1, None, 0]}


def test_a_target_that_cannot_be_read_is_left_out_and_told(caplog):
    assert predicted("y", {"y": ["1,5"]}, y=[0.5, 1.5, 2.25, 3.5, 4.5, 5.5]) == {}
    assert "the table has no target beside the predictions, because column 'y'" in caplog.text


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_the_table_of_predictions_has_the_target_behind_the_id(folder, capsys, suffix):
    rows = pandas.DataFrame({"name": [f"s{row}" for row in range(30)], "x": np.arange(30) / 2, "y": CLASSES * 5})
    rows.to_csv("rows.csv", index=False)
    rows.loc[1, "y"] = None
    rows.head(4).to_csv("new.csv", index=False)
    config = {
        "model": {"class_path": "HybridClassifier", "init_args": {"num_classes": 2, "parts": {"x": {"module": "MLP"}}}},
        "data": {
            "class_path": "ManifestDataModule",
            "init_args": {"path": "rows.csv", "inputs": INPUTS, "target": "y", "id": "name", "predict_path": "new.csv"},
        },
        "trainer": {"max_epochs": 1, "log_every_n_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"},
    }
    assert main(["fit", "--config", write(config)]) == 0
    words = ["--ckpt_path", "best", "--output", f"p{suffix}"]
    assert main(["predict", "--config", "small.yaml", *words]) == 0, capsys.readouterr().err
    if suffix == ".csv":
        found = list(csv.DictReader(Path("p.csv").read_text().splitlines()))
        assert [row["target"] for row in found] == ["ill", "", "well", "well"]
        assert list(found[0])[:3] == ["id", "target", "prediction"]
    else:
        assert pandas.read_parquet("p.parquet")["target"].isna().tolist() == [False, True, False, False]
