"""Every kind of input, with empty cells, from files to predictions: the command line on one process and on two."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest

from tests.data.make_files import INPUTS, LABELS, make_manifest
from tests.processes import succeed, succeed_on
from tests.small import changed, write
from tests.tables import write_rows

PARTS: dict[str, Any] = {
    "photo": {"module": "ConvExtractor", "args": {"channels": [4]}},
    "xray": {"module": "ResidualConv2d", "args": {"channels": [4]}},
    "scan": {"module": "ResidualConv3d", "args": {"channels": [4]}},
    "emb": {"module": "MLP", "args": {"hidden": [8]}},
    "spectrum": {"module": "MLP", "args": {"hidden": [8]}},
    "curve": {"module": "SequenceTransformer", "args": {"width": 8, "depth": 1}},
    "sound": {"module": "ConvExtractor", "args": {"channels": [4]}},
    "report": {"module": "SequenceTransformer", "args": {"width": 8, "depth": 1}},
    "table": {"module": "TabularMLP", "args": {"hidden": [8]}},
}
KINDS: dict[str, Any] = {
    "photo": {"image": "photo", "size": 16},
    "xray": {"image": "xray", "size": 16, "channels": 1},
    # oneDNN 3.12 writes wrong gradients of a 7³ kernel for volumes of less than 8 slices where the CPU has AVX-512
    "scan": {"volume": "scan", "size": 8},
    "emb": {"array": "emb"},
    "spectrum": {"array": "spectrum"},
    "curve": {"series": "curve"},
    "sound": {"audio": "sound", "sample_rate": 8000, "seconds": 0.2, "features": "log_mel"},
    "report": {"text": "report", "tokenizer": "words"},
    "table": {"numeric": ["age", "dose"], "categorical": ["site", "sex"]},
}
COLUMNS = {name: KINDS[name].get("numeric", [name]) + KINDS[name].get("categorical", []) for name in PARTS}
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
NEW = 13
"""Rows to predict: two ranks do not share them evenly."""


def config() -> dict[str, Any]:
    data = {
        "path": "known/manifest.csv",
        "inputs": KINDS,
        "target": "label",
        "id": "sample",
        "split_by": "patient",
        "batch_size": 8,
        "workers": 0,
    }
    return changed(
        {
            "init.parts": PARTS,
            "data.class_path": "ManifestDataModule",
            "data.init_args": data,
            "trainer": {"max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"},
        }
    )


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def make_known(folder: Path) -> None:
    """``manifest.csv`` with a label in each row; some rows have no table."""
    path = make_manifest(folder, 40, missing=0.3)
    made = rows(path)
    for row in made[::7]:
        row |= dict.fromkeys(COLUMNS["table"], "") | {"emb": row["emb"] or made[0]["emb"]}
    write_rows(path, made)


def make_new(folder: Path) -> None:
    """``new.csv``: ids and inputs alone; two rows have nothing but a table, and nothing but a photo."""
    whole = rows(make_manifest(folder, NEW, missing=0.0, seed=1))
    made = rows(make_manifest(folder, NEW, missing=0.3, seed=1))
    for place, kept in ((3, COLUMNS["table"]), (8, ["photo"])):
        made[place] |= {name: whole[place][name] if name in kept else "" for name in INPUTS}
    columns = ["sample", *INPUTS]
    write_rows(folder / "new.csv", [{name: row[name] for name in columns} for row in reversed(made)])


def train(folder: Path) -> None:
    """A run on two ranks, and predictions on two ranks and on one."""
    make_known(folder / "known")
    make_new(folder / "new")
    words = ["--config", write(config(), folder / "all.yaml")]
    succeed_on(2, "-m", "hybrid_lightning", "fit", *words, *TWO, cwd=folder)
    new = ["--ckpt_path", "last", "--data.predict_path", "new/new.csv"]
    succeed_on(2, "-m", "hybrid_lightning", "predict", *words, *new, *TWO, "--output", "two.csv", cwd=folder)
    succeed("-m", "hybrid_lightning", "predict", *words, *new, "--output", "one.csv", cwd=folder)


def check_that_each_part_trained(folder: Path) -> None:
    metrics = rows(folder / "runs/all/version_0/metrics.csv")
    for name in PARTS:
        assert any(float(row[f"update_ratio/{name}"] or 0) > 0 for row in metrics), name


def check_that_patients_are_on_one_side_of_the_split(folder: Path) -> None:
    patients = {row["sample"]: row["patient"] for row in rows(folder / "known/manifest.csv")}
    split = rows(folder / "runs/all/version_0/split.csv")
    assert [row["id"] for row in split] == list(patients)
    pairs = {(patients[row["id"]], row["split"]) for row in split}
    assert {name for _, name in pairs} == {"train", "val", "test"}
    assert len(pairs) == len(set(patients.values()))


def check_that_predictions_are_whole_and_in_order(folder: Path) -> None:
    one, two = rows(folder / "one.csv"), rows(folder / "two.csv")
    numbers = [f"probability_{label}" for label in sorted(LABELS)] + [f"contribution_{name}" for name in sorted(PARTS)]
    assert list(one[0]) == list(two[0]) == ["id", "prediction", *numbers]
    assert [row["id"] for row in one] == [row["sample"] for row in rows(folder / "new/new.csv")]
    assert [(row["id"], row["prediction"]) for row in two] == [(row["id"], row["prediction"]) for row in one]
    for first, second in zip(one, two, strict=True):
        assert [float(second[name]) for name in numbers] == pytest.approx(
            [float(first[name]) for name in numbers], abs=1e-4
        )
        shares = {label: float(first[f"probability_{label}"]) for label in LABELS}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert shares[first["prediction"]] == max(shares.values())


def check_that_what_a_sample_lacks_contributes_nothing(folder: Path) -> None:
    given = {row["sample"]: row for row in rows(folder / "new/new.csv")}
    for name, columns in COLUMNS.items():
        there = {sample: any(row[column] for column in columns) for sample, row in given.items()}
        for table in ("one.csv", "two.csv"):
            found = {row["id"]: float(row[f"contribution_{name}"]) for row in rows(folder / table)}
            assert all(math.isfinite(value) for value in found.values())
            assert all(found[sample] == 0 for sample in given if not there[sample]), name
            assert any(found[sample] != 0 for sample in given if there[sample]), name
        assert 0 < sum(there.values()) < NEW, name


def test_every_kind_of_input_with_gaps_goes_from_files_to_predictions_on_two_ranks_as_on_one(tmp_path):
    train(tmp_path)  # once for all that follows, because it takes most of the time
    check_that_each_part_trained(tmp_path)
    check_that_patients_are_on_one_side_of_the_split(tmp_path)
    check_that_predictions_are_whole_and_in_order(tmp_path)
    check_that_what_a_sample_lacks_contributes_nothing(tmp_path)
