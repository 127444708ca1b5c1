"""Tar shards as the data of runs: what is read, in which order, and how a run goes on."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hybrid_lightning import ManifestDataModule
from hybrid_lightning.cli import main
from hybrid_lightning.data.sampling import ShardSampler
from hybrid_lightning.data.table import Table
from tests.data.make_files import make_manifest
from tests.processes import succeed_on
from tests.resume.resuming import differences
from tests.shards import picture, tower_shards, write_shard, write_splits, write_tower_shards
from tests.small import QUIET, write
from tests.tiny import hybrid

INPUTS = {
    "photo": {"image": "png", "size": 8},
    "table": {"numeric": ["json.age"], "categorical": ["json.site"]},
}
PARTS = {"photo": {"module": "ConvExtractor", "args": {"channels": [4]}}, "table": {"module": "TabularMLP"}}
KINDS = {
    "photo": {"image": "photo", "size": 12, "channels": 1},
    "xray": {"image": "xray", "size": 12, "channels": 1},
    "scan": {"volume": "scan", "size": [4, 4, 4]},
    "emb": {"array": "emb"},
    "spectrum": {"array": "spectrum", "name": "values"},
    "curve": {"series": "curve"},
    "sound": {"audio": "sound", "sample_rate": 8000, "seconds": 1},
    "report": {"text": "report"},
    "table": {"numeric": ["age", "dose"], "categorical": ["site", "sex"]},
}


def config(**data):
    patterns = write_splits()
    arguments = {"path": patterns, "inputs": INPUTS, "target": "cls", "batch_size": 8, "workers": 0, **data}
    return {
        "model": {"class_path": "HybridClassifier", "init_args": {"parts": PARTS}},
        "data": {"class_path": "ManifestDataModule", "init_args": arguments},
        "trainer": {"max_epochs": 1, **QUIET},
    }


def run(verb, *words, **data):
    return main([verb, "--config", write(config(**data)), *words])


def test_a_config_with_a_pattern_per_split_is_checked_planned_fitted_and_predicted(folder, capsys):
    assert run("check", sampling={"shards": 2}) == 0
    shown = capsys.readouterr().out
    assert "check: nothing is wrong" in shown
    assert shown.splitlines()[0].split() == ["shards", "train", "val", "test"]
    assert shown.splitlines()[2].split() == ["rows", "40", "10", "10"]
    assert run("plan", sampling={"shards": 2}) == 0
    assert run("fit", "--test_after_fit", "best", sampling={"shards": 2}, id="key") == 0
    assert (
        yaml.safe_load(Path("runs/small/version_0/config.yaml").read_text())["model"]["init_args"]["num_classes"] == 3
    )
    assert run("predict", "--ckpt_path", "best", "--output", "p.csv", id="key") == 0
    lines = Path("p.csv").read_text().splitlines()
    assert lines[0].startswith("id,target,prediction")
    assert [line.split(",")[0] for line in lines[1:]] == [f"{row:04}" for row in range(50, 60)]
    assert main(["evaluate", "shards/test-*.tar", "--ckpt_path", "runs/small"]) == 0
    capsys.readouterr()
    assert run("predict", "--ckpt_path", "best", "--output", "shards/shards.index.parquet") == 2
    assert "'shards/shards.index.parquet' is a file that the data name" in capsys.readouterr().err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A manifest with files of every kind and gaps, and shards of the same."""
    folder = tmp_path_factory.mktemp("made")
    path = make_manifest(folder, rows=12, missing=0.2, seed=1)
    table = Table.read(path)
    rows = table.arrow.to_pylist()
    for number in range(2):
        samples = {}
        for row in rows[6 * number : 6 * number + 6]:
            own = {}
            for key, options in KINDS.items():
                kind = next(iter(options))
                if kind in ("image", "volume", "array", "series", "audio") and row[options[kind]]:
                    file = Path(folder, row[options[kind]])
                    own[f"{key}.{file.name.partition('.')[2]}"] = file.read_bytes()
            fields = ("report", "age", "dose", "site", "sex", "label", "split")
            samples[row["sample"]] = {**own, "json": {field: row[field] for field in fields}}
        write_shard(folder / f"all-{number}.tar", samples)
    return folder


def test_every_kind_of_input_reads_of_shards_what_it_reads_of_files(made):
    files = ManifestDataModule(str(made / "manifest.csv"), KINDS, "label", split_column="split", workers=0)
    endings = {
        "photo": "photo.jpg;photo.png",
        "xray": "xray.png;xray.dcm",
        "scan": "scan.nii.gz;scan.npy",
        "emb": "emb.npy",
        "spectrum": "spectrum.npz",
        "curve": "curve.csv",
        "sound": "sound.wav;sound.flac",
        "report": "json.report",
    }
    inputs = {key: {**options, next(iter(options)): endings.get(key)} for key, options in KINDS.items()}
    inputs["table"] = {"numeric": ["json.age", "json.dose"], "categorical": ["json.site", "json.sex"]}
    shards = ManifestDataModule(f"{made}/all-*.tar", inputs, "json.label", split_column="json.split", workers=0)
    for data in (files, shards):
        data.setup("fit")
    for split in ("train", "val", "test"):
        one, other = (data.datasets[split] for data in (files, shards))
        assert len(one) == len(other) > 0
        batches = [dataset.collate([dataset[index] for index in range(len(dataset))]) for dataset in (one, other)]
        assert batches[0].keys() == batches[1].keys()
        for name, value in batches[0].items():
            torch.testing.assert_close(batches[1][name], value, rtol=0, atol=0, equal_nan=True)


def test_the_order_takes_each_sample_once_and_few_shards_at_a_time():
    shards = torch.tensor([2, 0, 1, 3, 2, 0, 1, 3, 4, 4])
    sampler = ShardSampler(shards, mixed=2)
    orders = [list(sampler) for _ in range(20)]
    assert len(set(map(tuple, orders))) > 1
    for order in orders:
        assert sorted(order) == list(range(10))
        assert [len(set(shards[order[start : start + 4]].tolist())) for start in (0, 4)] in ([2, 2], [2, 3], [3, 2])
    assert list(ShardSampler(shards, 2)) == orders[0]


def test_the_order_follows_the_seed_of_the_run(monkeypatch):
    shards = torch.arange(50)
    one = list(ShardSampler(shards, 1))
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert list(ShardSampler(shards, 1)) != one


@pytest.mark.filterwarnings("ignore:Be aware that when using")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_a_fit_of_shards_continues_exactly(folder, workers):
    write_tower_shards("shards", shards=3, samples=7)
    Path("checkpoints").mkdir()

    def loader():
        return tower_shards("shards", 4, workers)

    count, found = differences(lambda: hybrid("3 steps"), loader, Path("checkpoints").absolute(), every=5)
    assert count >= 3
    assert not found


def test_two_ranks_continue_shards_exactly(tmp_path):
    write_tower_shards(tmp_path / "shards", shards=3, samples=7)
    succeed_on(2, "-m", "tests.data.manifest_worker", "resume_shards", "2", str(tmp_path))
    for rank in (0, 1):
        count, found = torch.load(tmp_path / f"resume_shards-2-{rank}.pt")
        assert count >= 3
        assert not found


def test_a_sample_without_a_member_lacks_the_input(folder):
    write_shard("a.tar", {"1": {"png": np.zeros((8, 8, 3), np.uint8), "cls": 0}, "2": {"json": {"age": 3}, "cls": 1}})
    data = ManifestDataModule("a.tar", {"photo": {"image": "png"}, "age": {"numeric": ["json.age"]}}, "cls", workers=0)
    table = data._table("a.tar", "data.path")
    assert table.empty("png").tolist() == [False, True]
    assert table.empty("json.age").tolist() == [True, False]


@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        ({"png": b"no image"}, {}, r"'train-009.tar/7.png': cannot be read"),
        ({"cls": ""}, {}, r"column 'cls' of 'train: shards/train-\*.tar.*' is empty in sample 'train-009.tar/7'\."),
        ({"json": "{"}, {}, r"data.path: the shard 'shards/train-009.tar' is damaged: '7.json' cannot be read as text"),
        (
            {"json": {"age": "old"}},
            {},
            r"data.path: the field 'age' of json cannot be a column: .*that of 'train-009.tar/7' is another",
        ),
        (
            {},
            {"inputs": {"photo": {"image": "pgn"}}},
            r"error: data.inputs.photo: unknown column .*'pgn'.*Did you mean 'png'",
        ),
        ({}, {"inputs": {"photo": {"image": "gif;bmp"}}}, r"data.inputs.photo: unknown column .*'gif;bmp'"),
        ({}, {"path": {"train": "none-*.tar"}}, r"data.path.train: there is no shard 'none-\*.tar'"),
        ({}, {"path": {"valid": "shards/*.tar"}}, r"data.path: unknown split 'valid'.*'calibration'"),
        (
            {},
            {"path": {"train": "shards/*.tar", "val": "shards/val-*.tar"}},
            r"path.val: .*val-000.tar' are in",
        ),
        ({}, {"fold": "1/3"}, r"data.path: a pattern per split decides the split\. Name all shards by one pattern"),
        ({}, {"split_column": "split"}, r"data.split_column: data.path has a pattern per split"),
        ({}, {"sampling": {"shards": 0}}, r"data.sampling.shards: 0 is not a number at least 1"),
        ({}, {"sampling": "shards"}, r"data.sampling: unknown sampling 'shards'.*\{shards: 4\}"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(folder, capsys, other, options, message):
    written = config(**options)
    if other:
        write_shard("shards/train-009.tar", {"7": {"png": picture(7), "cls": 1, "json": {"age": 1.5}, **other}})
    assert main(["check", "--config", write(written)]) == 2
    shown = capsys.readouterr().err
    assert re.search(message, shown), shown
    assert "Traceback" not in shown


def test_a_table_that_is_no_shards_has_no_order_of_shards(folder, capsys):
    Path("rows.csv").write_text("\n".join(["x,y", *[f"{row},{'ab'[row % 2]}" for row in range(40)]]))
    options = {"path": "rows.csv", "inputs": {"table": {"numeric": ["x"]}}, "target": "y"}
    assert run("fit", **options, sampling={"shards": 2}) == 2
    assert "data.sampling: 'rows.csv' holds no shards" in capsys.readouterr().err
