"""``probe`` and ``embed``, through the command line."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hybrid_lightning import HybridClassifier
from tests import small

TWO = {
    "body": {"module": "ConvExtractor", "args": {"channels": [4]}, "input": "image"},
    "pixels": {"module": "RandomConvolutions2d", "args": {"features": 64, "sizes": [3]}, "input": "image"},
}


def table() -> list[dict[str, str]]:
    with Path("runs/small/probe.csv").open() as file:
        return list(csv.DictReader(file))


def test_each_part_has_a_score_of_rows_held_out_and_the_blend_is_at_least_as_good(folder, capsys):
    assert small.command("probe", config=small.changed({"init.parts": TWO})) == 0
    rows = {row["part"]: row for row in table()}
    assert list(rows) == ["body", "pixels", "all parts", "blend"]
    assert [rows[name]["origin"] for name in ("body", "pixels")] == ["untrained", "random"]
    assert float(rows["blend"]["score"]) >= max(float(row["score"]) for row in rows.values()) - float(
        rows["blend"]["error"]
    )
    assert sum(float(row["blend"]) for row in rows.values() if row["blend"]) == pytest.approx(1)
    shown = capsys.readouterr().out
    assert "accuracy (leave-one-out)" in shown
    assert "probe: runs/small/probe.csv" in shown


def test_nothing_is_trained_and_no_run_is_made(folder):
    assert small.command("probe") == 0
    assert [path.name for path in Path("runs/small").iterdir()] == ["probe.csv"]


def test_a_pretrained_part_is_compared_with_itself_at_random_weights(folder):
    stem = {"module": "ConvExtractor", "args": {"channels": [4]}, "input": "image"}
    trained = small.changed({"init.parts": {"stem": stem}, "trainer.max_epochs": 3, "trainer.limit_train_batches": 30})
    assert small.command("fit", config=trained) == 0
    best = "runs/small/version_0/checkpoints/best.ckpt"
    config = small.changed({"init.parts": {"stem": {**stem, "weights": best}}})
    assert small.command("probe", config=config) == 0
    [row, _] = table()
    assert row["origin"] == "pretrained"
    # of the same architecture, so as wide, and another network
    assert 0 < float(row["random_weights"]) != float(row["score"])


def test_a_checkpoint_is_probed_with_its_weights(folder):
    assert small.command("fit") == 0
    assert small.command("probe", "--ckpt_path", "best", "--output", "best.csv") == 0
    assert small.command("probe") == 0
    scores = []
    for path in ("best.csv", "runs/small/probe.csv"):
        with Path(path).open() as file:
            scores.append([row["score"] for row in csv.DictReader(file)])
    assert scores[0] != scores[1]


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_features_of_every_row_of_every_split_are_written(folder, suffix):
    assert small.command("embed", "--output", f"features.{suffix}", config=small.changed({"init.parts": TWO})) == 0
    columns = read(f"features.{suffix}")
    assert set(columns) == {"split", "row", "target", "body", "pixels"}
    splits, counts = np.unique(columns["split"], return_counts=True)
    assert sorted(splits) == ["test", "train", "val"]
    assert columns["body"].shape == (counts.sum(), 4)
    # the order is that of the data, whatever the order of training
    for split in splits:
        own = columns["row"][columns["split"] == split]
        assert np.array_equal(own, np.arange(len(own)))


def read(path: str) -> dict[str, Any]:
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    from pyarrow import parquet

    table = parquet.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in table.column_names}


@pytest.mark.parametrize("given", ["best", "runs/small"])
def test_features_of_a_checkpoint_are_those_of_its_network(folder, given):
    assert small.command("fit") == 0
    assert small.command("embed", "--output", "features.npz", "--ckpt_path", given) == 0
    model = HybridClassifier.load_from_checkpoint("runs/small/version_0/checkpoints/best.ckpt")
    from hybrid_lightning import DigitsDataModule

    data = DigitsDataModule(**small.CONFIG["data"]["init_args"])
    data.setup()
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        expected = model.network.features(batch)["body"].numpy()
    columns = read("features.npz")
    found = columns["body"][columns["split"] == "val"][: len(expected)]
    assert np.allclose(found, expected, atol=1e-6)


def test_another_format_is_refused_before_anything_is_read(folder, capsys):
    assert small.command("embed", "--output", "features.csv") == 2
    assert "output: 'features.csv' does not end in .npz or .parquet" in capsys.readouterr().err


def test_a_part_that_has_the_name_of_a_column_is_refused_before_anything_is_computed(folder, capsys):
    config = small.changed({"init.parts": {"row": TWO["body"]}})
    assert small.command("embed", "--output", "features.npz", config=config) == 2
    assert "model.parts: 'row' would be columns of two meanings" in capsys.readouterr().err


def test_a_data_module_without_a_test_split_or_its_targets_is_embedded(folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(folder)
    (folder / "own_data.py").write_text(
        """
import lightning.pytorch as pl
import torch
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from torch.utils.data import DataLoader


class OwnData(pl.LightningDataModule):
    def train_dataloader(self):
        images = torch.randn(6, 3, 16, 16)
        return DataLoader(DictDataset({"image": images, "target": torch.arange(6) % 3}), 4, collate_fn=as_batch)

    def val_dataloader(self):
        return [DataLoader([{"image": torch.randn(3, 16, 16)} for _ in range(3)], 2)]
"""
    )
    config = small.changed({"data": {"class_path": "own_data.OwnData"}})
    assert small.command("embed", "--output", "features.npz", config=config) == 0
    columns = read("features.npz")
    assert list(columns["split"]) == ["train"] * 6 + ["val"] * 3
    assert "target" not in columns


@pytest.mark.parametrize("command", ["probe", "embed"])
@pytest.mark.parametrize("output", ["folder.{}", "file/x.{}"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(folder, capsys, command, output):
    suffix = "csv" if command == "probe" else "npz"
    Path("file").write_text("")
    Path(f"folder.{suffix}").mkdir()
    # before anything is made: the model could not be
    config = small.changed({"init.num_classes": 1})
    assert small.command(command, "--output", output.format(suffix), config=config) == 2
    error = capsys.readouterr().err
    assert "error: output:" in error
    assert "Traceback" not in error
