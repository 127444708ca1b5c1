import csv
import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
import yaml
from PIL import Image

from hybrid_lightning import HybridClassifier, ManifestDataModule
from hybrid_lightning.cli import main
from hybrid_lightning.data.samples import MemoryDataset, SampleDataset
from hybrid_lightning.errors import ConfigError
from tests.processes import ROOT, succeed, succeed_on
from tests.resume.resuming import differences
from tests.small import trainer
from tests.tables import write_rows
from tests.tiny import hybrid

INPUTS = {"ages": {"numeric": ["age", "dose"]}, "table": {"numeric": ["dose"], "categorical": ["site"]}}
PARTS = {"ages": {"module": "MLP", "args": {"hidden": [4]}}, "table": {"module": "TabularMLP"}}
LABELS = ["healthy", "ill", "unclear"]


def cells(rows: int = 60) -> list[dict[str, str]]:
    """Rows with names such as 007, two numbers of which one has gaps, a category with gaps, and a label."""
    random = np.random.default_rng(0)
    return [
        {
            "name": f"{row:03}",
            "age": f"{40 + 5 * (row % 3) + random.normal():.2f}",
            "dose": "" if row % 5 == 0 else f"{random.normal():.2f}",
            "site": "" if row % 7 == 0 else f"s{row % 4}",
            "patient": f"p{row // 2}",
            "label": LABELS[row % 3],
        }
        for row in range(rows)
    ]


def write(rows: list[dict[str, str]], path: str = "rows.csv") -> str:
    write_rows(path, rows)
    return path


def prepared(stage: str = "fit", rows: list[dict[str, str]] | None = None, **options) -> ManifestDataModule:
    path = write(cells() if rows is None else rows)
    arguments = {"inputs": INPUTS, "target": "label", "batch_size": 8, "workers": 0}
    data = ManifestDataModule(path, **{**arguments, **options})
    data.setup(stage)
    return data


def images(folder: str = ".") -> dict[str, dict[str, object]]:
    """A photo for each row of `cells` but each sixth, its mean brightness 4 times the row."""
    for row in range(60):
        if row % 6:
            Image.fromarray(np.full((5, 4, 3), 4 * row, dtype=np.uint8)).save(Path(folder, f"{row}.png"))
    return {"photo": {"image": "file"}}


def with_images() -> list[dict[str, str]]:
    return [{**row, "file": f"{number}.png" if number % 6 else ""} for number, row in enumerate(cells())]


# Batches


def test_calibration_rows_are_read_by_nothing_else(folder):
    data = prepared(fractions={"val": 0.2, "test": 0.2, "calibration": 0.3}, split_by="patient")
    seen = {}
    for split in ("train", "val", "test", "calibration"):
        batches = getattr(data, f"{split}_dataloader")()
        seen[split] = {row for batch in batches for row in batch["id"].tolist()}
    assert sum(map(len, seen.values())) == 60
    assert len(seen["calibration"]) == 18
    assert data.calibration_groups.tolist() == [row // 2 for row in sorted(seen["calibration"])]
    without = prepared()
    assert without.calibration_dataloader() == []
    assert without.calibration_groups is None


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_check_counts_calibration_rows_where_there_are_some(folder, capsys, share):
    path = write(cells())
    data = ManifestDataModule(path, INPUTS, "label", fractions={"calibration": share}, workers=0)
    data.check()
    header, _, counts, *_ = capsys.readouterr().out.splitlines()
    assert ("calibration" in header) == (share > 0)
    assert counts.split()[1:] == (["30", "9", "9", "12"] if share else ["42", "9", "9"])


def test_a_batch_holds_the_rows_that_its_ids_name(folder):
    data = prepared(id="name")
    rows = cells()
    seen = []
    for batch in data.train_dataloader():
        seen += batch["id"].tolist()
        own = [rows[index] for index in batch["id"].tolist()]
        assert [data.target_names[index] for index in batch["target"]] == [row["label"] for row in own]
        assert batch["present/table"].tolist() == [bool(row["dose"] or row["site"]) for row in own]
        assert batch["table"]["numeric"].shape == batch["table"]["categorical"].shape == (len(own), 1)
    assert sorted(seen) == data.datasets["train"].rows.tolist()
    train = np.array([float(rows[index]["age"]) for index in seen])
    ages = torch.cat([batch["ages"][:, 0] for batch in data.val_dataloader()]) * train.std() + train.mean()
    wanted = [float(rows[index]["age"]) for index in data.datasets["val"].rows.tolist()]
    assert ages.tolist() == pytest.approx(wanted, abs=1e-4), "standardized with the training rows"
    assert torch.equal(data.datasets["train"].targets, torch.tensor([r % 3 for r in data.datasets["train"].rows]))


def test_evaluation_is_in_order_of_the_rows_and_splits_are_whole(folder):
    data = prepared()
    order = [
        torch.cat([b["id"] for b in loader]).tolist() for loader in (data.val_dataloader(), data.test_dataloader())
    ]
    assert all(each == sorted(each) for each in order)
    assert sorted([*order[0], *order[1], *data.datasets["train"].rows.tolist()]) == list(range(60))


def test_the_presences_are_the_same_in_all_splits(folder):
    rows = cells()
    for row in rows:
        row["site"] = row["site"] or "s1"
    rows[59]["dose"] = rows[59]["site"] = ""
    data = prepared(rows=rows)
    assert list(data.datasets["train"].samples.present) == ["table"]
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    keys = {tuple(batch) for loader in loaders for batch in loader}
    assert len(keys) == 1
    assert {key for key in keys.pop() if "/" in key} == {"present/table"}


def test_data_in_memory_is_served_in_whole_batches_and_files_one_by_one(folder):
    assert isinstance(prepared().datasets["train"], MemoryDataset)
    data = prepared(rows=with_images(), inputs={**INPUTS, **images()})
    dataset = data.datasets["train"]
    assert isinstance(dataset, SampleDataset)
    assert not hasattr(dataset, "__getitems__"), "its samples are seeded one by one"
    memory = prepared().datasets["train"]
    batch, sample = memory.__getitems__([3, 5]), memory[5]
    assert torch.equal(batch["table"]["numeric"][1], sample["table"]["numeric"])
    assert batch["target"][1] == sample["target"]


def test_a_dataset_without_some_keys_reads_nothing_of_them_and_is_otherwise_the_same(folder):
    dataset = prepared(rows=with_images(), inputs={**INPUTS, **images()}).datasets["train"]
    whole = dataset.collate([dataset[index] for index in (3, 5)])
    smaller = dataset.without({"photo"})
    assert isinstance(smaller, MemoryDataset), "without files, whole batches come from memory"
    batch = smaller.collate(smaller.__getitems__([3, 5]))
    assert batch.keys() == whole.keys() - {"photo"}
    assert torch.equal(batch["present/photo"], whole["present/photo"])
    assert torch.equal(batch["table"]["numeric"], whole["table"]["numeric"])
    assert torch.equal(batch["id"], whole["id"])
    with_files = dataset.without({"table"})
    batch = with_files.collate([with_files[index] for index in (3, 5)])
    assert "table" not in batch
    assert torch.equal(batch["photo"], whole["photo"])
    assert dataset.samples.files == ["photo"], "the dataset itself stays as it is"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_images_and_tables_come_together_with_zeros_where_nothing_is(folder, workers):
    data = prepared(rows=with_images(), inputs={**INPUTS, **images()}, workers=workers, batch_size=7)
    assert set(data.datasets["val"].samples.present) == {"photo", "table"}
    for batch in data.val_dataloader():
        brightness = torch.where(batch["id"] % 6 > 0, batch["id"] * 4 / 255, 0.0)
        assert torch.allclose(batch["photo"].mean((1, 2, 3)), brightness.float())
        assert batch["present/photo"].tolist() == (batch["id"] % 6 > 0).tolist()
        assert batch["photo"].shape[1:] == (3, 5, 4)


def test_a_batch_in_which_all_are_absent_has_the_shape_of_the_others(folder):
    data = prepared(rows=with_images(), inputs=images() | INPUTS)
    dataset = data.datasets["train"]
    absent = [index for index, row in enumerate(dataset.rows.tolist()) if row % 6 == 0][:2]
    batch = dataset.samples.join([dataset[index] for index in absent])
    assert torch.equal(batch["photo"], torch.zeros(2, 3, 5, 4))
    assert batch["present/photo"].tolist() == [False, False]


def test_a_dataset_can_be_sent_to_a_process(folder):
    dataset = prepared(rows=with_images(), inputs=images() | INPUTS).datasets["train"]
    sent = pickle.loads(pickle.dumps(dataset))
    one, other = (each.samples.join([each[1], each[2]]) for each in (dataset, sent))
    assert torch.equal(one["photo"], other["photo"])
    assert torch.equal(one["ages"], other["ages"])


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 4]), (10, [4, 4, 2]), (8, [4, 4])])
def test_a_lonely_last_sample_is_left_out_of_training(folder, count, sizes):
    rows = [{**row, "split": "train" if index < count else "val"} for index, row in enumerate(cells(20))]
    data = prepared(rows=rows, split_column="split", batch_size=4)
    assert [len(batch["id"]) for batch in data.train_dataloader()] == sizes


def test_relative_paths_start_from_the_manifest_or_from_the_root(folder):
    Path("data").mkdir()
    inputs = images("data")
    write(with_images(), "data/rows.csv")
    options = {"inputs": inputs | INPUTS, "target": "label", "workers": 0}
    ManifestDataModule("data/rows.csv", **options).setup("fit")
    Path("data/rows.csv").rename("rows.csv")
    ManifestDataModule("rows.csv", root="data", **options).setup("fit")
    with pytest.raises(ConfigError, match=r"data.inputs.photo: row 1: '1.png': there is no such file in '\.'"):
        ManifestDataModule("rows.csv", **options).setup("fit")


# The split


def test_a_fit_writes_the_split_with_the_names_of_the_samples(folder, monkeypatch):
    monkeypatch.setattr("hybrid_lightning.data.prepared._BLOCK", 7)
    assert fit("--data.init_args.id", "name", "--data.init_args.split_by", "patient") == 0
    with Path("runs/small/version_0/split.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == [f"{index:03}" for index in range(60)]
    assert [row["row"] for row in found] == [str(index) for index in range(60)]
    assert Counter(row["split"] for row in found) == {"train": 42, "val": 10, "test": 8}
    assert all(a["split"] == b["split"] for a, b in zip(found[::2], found[1::2], strict=True))
    rows = [{**row, "split": other["split"]} for row, other in zip(cells(), found, strict=True)]
    data = prepared(rows=rows, split_column="split", split_by="patient")
    assert [row["split"] for row in found] == [("train", "val", "test")[code] for code in data.split]


def test_folds_of_a_manifest_test_each_row_once(folder):
    tested = [prepared(fold=f"{fold}/4", stratify=True).datasets["test"] for fold in range(1, 5)]
    assert sorted(row for dataset in tested for row in dataset.rows.tolist()) == list(range(60))
    assert {tuple(torch.bincount(dataset.targets).tolist()) for dataset in tested} == {(5, 5, 5)}


def test_the_split_does_not_follow_the_seed_of_the_model(folder):
    first = prepared().split.tolist()
    torch.manual_seed(5)
    np.random.seed(5)
    assert prepared().split.tolist() == first != prepared(split_seed=1).split.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_column": "label"}, "data.split_column: column 'label' .* holds 'healthy', 'ill', 'unclear'"),
        ({"split_column": "site", "fold": "1/5"}, "leave out 'fractions' and 'fold'"),
        ({"target": "lable"}, "data.target: unknown column .* Did you mean 'label'"),
        ({"target": None}, "data.target: a run needs a column to learn"),
        ({"id": "nme"}, "data.id: unknown column .* Did you mean 'name'"),
        ({"inputs": {"ages": {"numeric": ["agee"]}}}, "data.inputs.ages: unknown column .* Did you mean 'age'"),
        ({"inputs": {"ages": {"numeric": ["name", "patient"]}}}, "column 'patient' .* holds 'p0' in row 0"),
        ({"inputs": {"ages": {"numeric": ["age", "label"]}}}, "data.inputs.ages: column 'label' is the target"),
        ({"inputs": {"notes": {"text": "label"}}}, "data.inputs.notes: column 'label' is the target"),
        (
            {"inputs": {"dose": {"numeric": ["dose"]}}},
            r"in 12 rows of .* inputs are empty: rows 0, 5, 10, 15, 20 and 7",
        ),
        ({"sampling": "some"}, "data.sampling: unknown sampling 'some'"),
        ({"batch_size": 0}, "data.batch_size: 0"),
        ({"augment": {"pages": ["RandomNoise"]}}, "data.augment: unknown input 'pages'. Did you mean 'ages'"),
        ({"statistics": "nowhere.ckpt"}, "data.statistics: there is no file 'nowhere.ckpt'"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        prepared(**options)


def test_what_is_neither_a_table_nor_a_path_is_told():
    with pytest.raises(ConfigError, match=r"^data.path: a int is neither a table nor the path of one"):
        ManifestDataModule(5, INPUTS)


def test_a_table_in_memory_is_read_as_the_file_that_it_would_be(folder):
    rows = with_images()
    of_file = prepared(rows=rows, inputs=images() | INPUTS)
    frame = pandas.read_csv("rows.csv", dtype={"name": str, "label": str})
    data = ManifestDataModule(frame, images() | INPUTS, "label", workers=0, predict_path=frame.head(3), id="name")
    data.setup("fit")
    data.setup("predict")
    assert data.state_dict()["inputs"] == of_file.state_dict()["inputs"]
    assert np.array_equal(data.split, of_file.split)
    assert data.predict_ids == ["000", "001", "002"]
    assert [len(batch["id"]) for batch in data.predict_dataloader()] == [3]


def test_a_split_without_training_rows_is_told(folder):
    rows = [{**row, "split": "test"} for row in cells()]
    with pytest.raises(ConfigError, match=r"none of the 60 rows .* is a training row"):
        prepared(rows=rows, split_column="split")
    with pytest.raises(ConfigError, match=r"no training row to take statistics from. Give data.statistics"):
        prepared("test", rows=rows, split_column="split")


def test_without_validation_rows_there_is_no_validation(folder):
    data = prepared(fractions={"val": 0, "test": 0.5})
    assert data.val_dataloader() == []
    data = prepared(fractions={"val": 0.5, "test": 0})
    with pytest.raises(ConfigError, match="there are no test rows"):
        data.test_dataloader()


def test_rows_of_a_patient_stay_together_whatever_the_spelling(folder):
    spellings = ["p{}", "p{} ", "P{}", "p0{}"]
    rows = [{**row, "patient": spellings[index % 3].format(index // 3)} for index, row in enumerate(cells())]
    data = prepared(rows=rows, split_by="patient")
    assert all(len(set(data.split[start : start + 3])) == 1 for start in range(0, 60, 3))
    split = [{**row, "split": ["train", "val", "test"][index % 3]} for index, row in enumerate(rows)]
    with pytest.raises(ConfigError, match=r"20 values of 'patient' are in more than one split"):
        prepared(rows=split, split_by="patient", split_column="split")


def test_rows_to_predict_of_which_nothing_is_known_are_refused(folder):
    text = {"note": {"text": "note"}, "table": {"numeric": ["age"], "categorical": ["site"]}}
    rows = [{**row, "note": f"word{index % 3} more"} for index, row in enumerate(cells())]
    state = prepared(rows=rows, inputs=text).state_dict()

    def predict(**changed: str) -> None:
        data = ManifestDataModule(
            "rows.csv", text, "label", predict_path=write([{**rows[1], **changed}] * 3, "new.csv")
        )
        data.load_state_dict(state)
        data.setup("predict")

    predict()
    predict(site="S2", note="Word1")
    with pytest.raises(ConfigError, match=r"column 'site' of 'new.csv' holds a category that was trained on"):
        predict(site="elsewhere")
    with pytest.raises(ConfigError, match=r"column 'note' of 'new.csv' has a word that was trained on"):
        predict(note="nichts davon")


# Sampling


def test_balanced_sampling_draws_classes_equally_often(folder):
    rows = [{**row, "label": "ill" if index % 10 == 0 else "healthy"} for index, row in enumerate(cells(600))]
    data = prepared(rows=rows, sampling="balanced", inputs={"ages": {"numeric": ["age"]}})
    drawn = [torch.cat([batch["target"] for batch in data.train_dataloader()]) for _ in range(3)]
    assert len(drawn[0]) == len(data.datasets["train"])
    assert abs(torch.cat(drawn).double().mean() - 0.5) < 0.05
    torch.manual_seed(9)
    again = prepared(rows=rows, sampling="balanced", inputs={"ages": {"numeric": ["age"]}})
    assert torch.equal(torch.cat([batch["target"] for batch in again.train_dataloader()]), drawn[0])


def test_balanced_sampling_needs_classes(folder):
    rows = [{**row, "site": row["site"] or "none"} for row in cells()]
    with pytest.raises(ConfigError, match="'balanced' needs classes; the target is regression"):
        prepared(target="age", inputs={"table": INPUTS["table"]}, rows=rows, sampling="balanced").train_dataloader()


# Commands


def config(**options) -> str:
    data = {"path": write(cells()), "inputs": INPUTS, "target": "label", "batch_size": 8, "workers": 0, **options}
    model = {"num_classes": 3, "parts": PARTS, "pretrained": {}, "untrained": {"unfreeze": "always"}}
    quiet = {"max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"}
    content = {
        "model": {"class_path": "HybridClassifier", "init_args": model},
        "data": {"class_path": "ManifestDataModule", "init_args": data},
        "trainer": quiet,
    }
    Path("small.yaml").write_text(yaml.safe_dump(content))
    return "small.yaml"


def fit(*words: str, **options) -> int:
    return main(["fit", "--config", config(**options), *words])


def last() -> dict:
    return torch.load(max(Path().glob("runs/small/*/checkpoints/last.ckpt")), weights_only=True)


def test_a_checkpoint_keeps_statistics_classes_and_incomplete_inputs(folder):
    assert fit() == 0
    state = last()["ManifestDataModule"]
    assert state["target"] == {"columns": ["label"], "kind": "multiclass", "names": LABELS}
    assert state["incomplete"] == ["table"]
    train = prepared().datasets["train"].rows.tolist()
    ages = [float(cells()[row]["age"]) for row in train]
    assert state["inputs"]["ages"]["statistics"]["mean"]["age"] == pytest.approx(np.mean(ages))
    assert state["inputs"]["table"]["statistics"]["categories"] == {"site": ["s0", "s1", "s2", "s3"]}


def test_new_rows_are_predicted_with_the_statistics_of_the_checkpoint(folder, capsys, caplog):
    assert fit() == 0
    rows = [{key: row[key] for key in ("name", "age", "dose", "site")} for row in cells()[:9]]
    rows[4]["site"] = "elsewhere"
    write(rows, "new.csv")
    words = ["--ckpt_path", "last", "--data.init_args.predict_path", "new.csv", "--data.init_args.id", "name"]
    path = config()
    Path("rows.csv").unlink()  # the old manifest is not needed
    assert main(["predict", "--config", path, *words]) == 0, capsys.readouterr().err
    with max(Path().glob("runs/small/*/predictions.csv")).open() as file:
        found = list(csv.DictReader(file))
    assert [row["id"] for row in found] == [f"{index:03}" for index in range(9)]

    model = HybridClassifier.load_from_checkpoint(max(Path().glob("runs/small/*/checkpoints/last.ckpt")))
    kept = last()["ManifestDataModule"]["inputs"]
    means = [kept["ages"]["statistics"][name] for name in ("mean", "std")]
    age, dose = float(rows[1]["age"]), float(rows[1]["dose"])
    table = kept["table"]["statistics"]
    batch = {
        "ages": torch.tensor([[(v - means[0][n]) / means[1][n] for n, v in (("age", age), ("dose", dose))]]),
        "table": {
            "numeric": torch.tensor([[(dose - table["mean"]["dose"]) / table["std"]["dose"]]]),
            "categorical": torch.tensor([[table["categories"]["site"].index(rows[1]["site"])]]),
        },
    }
    batch["present/table"] = torch.tensor([True])
    with torch.no_grad():
        wanted = model(batch).softmax(1)[0].tolist()
    values = [float(value) for name, value in found[1].items() if name.startswith("probability")]
    assert values == pytest.approx(wanted, abs=1e-5)


def test_a_category_that_training_rows_lack_is_unknown_and_counted(folder, caplog):
    rows = cells()
    known = prepared(rows=rows)
    state = known.state_dict()
    write([{**row, "site": "elsewhere" if index < 3 else row["site"]} for index, row in enumerate(rows)], "new.csv")
    data = ManifestDataModule("rows.csv", INPUTS, workers=0, predict_path="new.csv", batch_size=60)
    data.load_state_dict(state)
    with caplog.at_level("INFO"):
        data.setup("predict")
    [batch] = data.predict_dataloader()
    assert batch["table"]["categorical"][1:5, 0].tolist() == [-1, -1, 3, 0]
    assert "target" not in batch
    assert not hasattr(data.datasets["predict"], "targets")
    assert "3 cells of 'site' hold categories that no training row has, such as 'elsewhere'" in caplog.text
    assert data.target_names == LABELS
    assert data.predict_ids is None


def test_without_new_rows_the_test_rows_are_predicted(folder):
    data = prepared("predict", id="name")
    rows = data.datasets["test"].rows.tolist()
    assert torch.cat([batch["id"] for batch in data.predict_dataloader()]).tolist() == rows
    assert data.predict_ids == [f"{row:03}" for row in rows]


def test_gaps_of_the_training_data_are_gaps_of_new_rows_too(folder):
    data = prepared(rows=with_images(), inputs=images() | INPUTS)
    write([{"age": "50", "dose": "1", "site": "s1", "file": ""}], "new.csv")
    new = ManifestDataModule("rows.csv", images() | INPUTS, predict_path="new.csv", workers=0)
    new.load_state_dict(data.state_dict())
    new.setup("predict")
    [batch] = new.predict_dataloader()
    assert torch.equal(batch["photo"], torch.zeros(1, 3, 5, 4)), "the shape is kept although no file is at hand"
    assert batch["present/photo"].tolist() == [False]
    assert batch["present/table"].tolist() == [True]


def test_testing_elsewhere_uses_the_statistics_of_the_checkpoint(folder):
    assert fit() == 0
    checkpoint = str(max(Path().glob("runs/small/*/checkpoints/last.ckpt")))
    others = [{**row, "age": str(float(row["age"]) + 100), "split": "test"} for row in cells() if row["label"] != "ill"]
    write(others, "others.csv")
    data = ManifestDataModule("others.csv", INPUTS, "label", split_column="split", statistics=checkpoint, workers=0)
    data.setup("test")
    assert data.target_names == LABELS
    assert set(data.datasets["test"].targets.tolist()) == {0, 2}
    assert data.datasets["test"][1]["ages"][0] > 10
    other = ManifestDataModule("others.csv", {"ages": {"numeric": ["dose", "age"]}}, "label", split_column="split")
    other.load_state_dict(data.state_dict())
    with pytest.raises(ConfigError, match=r"data.inputs.ages: the checkpoint has no statistics of this input"):
        other.setup("test")
    path = write([{**row, "label": "new"} for row in others], "others.csv")
    with pytest.raises(ConfigError, match=r"holds 'new' .*, which the checkpoint does not have"):
        ManifestDataModule(path, INPUTS, "label", split_column="split", statistics=checkpoint).setup("test")
    torch.save({"state_dict": {}}, "other.ckpt")
    with pytest.raises(ConfigError, match=r"data.statistics: 'other.ckpt' is not a checkpoint of a run with"):
        ManifestDataModule(path, INPUTS, "label", statistics="other.ckpt").setup("test")


def test_a_fit_that_continues_keeps_the_statistics_of_its_checkpoint(folder):
    data = prepared()
    state = data.state_dict()
    rows = [{**row, "age": str(float(row["age"]) * 2)} for row in cells()]
    other = prepared(rows=rows)
    assert other.state_dict() != state
    other.load_state_dict(state)
    assert other.state_dict()["inputs"]["ages"]["statistics"] == state["inputs"]["ages"]["statistics"]
    ages = state["inputs"]["ages"]["statistics"]
    row = int(other.datasets["train"].rows[0])
    wanted = (float(rows[row]["age"]) - ages["mean"]["age"]) / ages["std"]["age"]
    assert float(other.datasets["train"][0]["ages"][0]) == pytest.approx(wanted, rel=1e-5)


def test_another_split_than_the_checkpoints_is_told(folder):
    state = prepared().state_dict()
    with pytest.warns(UserWarning, match=r"the rows are split otherwise than in the checkpoint's run"):
        prepared(split_seed=3).load_state_dict(state)


def test_statistics_of_a_newer_program_are_refused(folder):
    with pytest.raises(ConfigError, match=r"--ckpt_path: the checkpoint's statistics have format 99"):
        prepared().load_state_dict({"version": 99})


def test_statistics_of_an_older_program_are_read(folder):
    state = prepared().state_dict()
    prepared().load_state_dict({**state, "version": 1})


def test_training_batches_are_augmented_and_others_are_not(folder):
    data = prepared(augment={"ages": [{"class_path": "RandomNoise", "init_args": {"std": 1.0}}]})
    seen = {}

    class Watching(HybridClassifier):
        def training_step(self, batch, batch_idx):
            seen.setdefault("train", batch)
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            seen.setdefault("val", batch)
            return super().validation_step(batch, batch_idx)

    model = Watching(num_classes=3, parts={"ages": {"module": "MLP", "args": {"hidden": [4]}}})
    trainer().fit(model, datamodule=data)
    for split, changed in (("train", True), ("val", False)):
        plain = data.datasets[split].samples.batch(seen[split]["id"])
        assert torch.equal(plain["ages"], seen[split]["ages"]) is not changed


def test_a_command_is_the_same_with_a_config_and_says_what_is_wrong(folder, capsys):
    assert fit(inputs={"ages": {"numeric": ["age"], "gap": "mean"}}) == 2
    error = capsys.readouterr().err
    assert re.search(r"data.inputs.ages: unknown option 'gap'. Did you mean 'gaps'", error)


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_a_file_that_a_worker_cannot_read_is_told_in_a_line(folder, capsys):
    inputs, rows = images(), with_images()
    path = config(inputs=inputs | INPUTS, workers=1, checks=False)
    write(rows)
    for row in range(2, 60):
        if row % 6:
            Path(f"{row}.png").write_text("no image")
    assert main(["fit", "--config", path, "--model.init_args.parts.photo.module", "ConvExtractor"]) == 2
    assert re.match(
        r"error: data.inputs.photo: row \d+: '\d+.png': cannot be read", capsys.readouterr().err.splitlines()[-1]
    )


# Exact resume, workers and ranks


def resumable(**options):
    """A loader of arrays, which are turned at random, and of a table."""
    rows = [{**row, "label": LABELS[index % 2], "file": f"{index}.npy"} for index, row in enumerate(cells(44))]
    for index in range(44):
        np.save(f"{index}.npy", np.arange(4.0) + index)
    inputs = {
        "old": {"array": "file", "train": ["RandomFlip"]},
        "new": {"numeric": ["age", "dose"], "gaps": "indicator"},
    }
    return prepared(rows=rows, inputs=inputs, fractions={"val": 0.15, "test": 0.25}, **options)


@pytest.mark.filterwarnings("ignore:Be aware that when using")
@pytest.mark.parametrize(("workers", "sampling"), [(0, "shuffle"), (2, "shuffle"), (2, "balanced")])
@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_a_fit_of_a_manifest_continues_exactly(folder, workers, sampling):
    def loader():
        return resumable(workers=workers, sampling=sampling).train_dataloader()

    Path("checkpoints").mkdir()
    count, found = differences(lambda: hybrid("3 steps"), loader, Path("checkpoints").absolute(), every=5)
    assert count >= 3
    assert not found


def test_two_ranks_share_the_draws_of_one(tmp_path):
    for ranks in (1, 2):
        succeed_on(ranks, "-m", "tests.data.manifest_worker", "draws", str(ranks), str(tmp_path))
    one, first, second = (torch.load(tmp_path / f"draws-{name}.pt") for name in ("1-0", "2-0", "2-1"))
    assert len(one) == len(first) == 2
    for epoch in range(2):
        assert sorted(first[epoch] + second[epoch]) == sorted(one[epoch])
        assert len(set(one[epoch])) < len(one[epoch]), "with replacement"
    assert sorted(one[0]) != sorted(one[1])


def test_two_ranks_continue_balanced_sampling_exactly(tmp_path):
    succeed_on(2, "-m", "tests.data.manifest_worker", "resume", "2", str(tmp_path))
    for rank in (0, 1):
        count, found = torch.load(tmp_path / f"resume-2-{rank}.pt")
        assert count >= 3
        assert not found


def test_sharded_ranks_predict_the_same_number_of_batches(tmp_path):
    succeed_on(2, "-m", "tests.data.manifest_worker", "predict", "2", str(tmp_path))
    first, second = (torch.load(tmp_path / f"predict-2-{rank}.pt") for rank in (0, 1))
    assert [len(batch) for batch in first] == [len(batch) for batch in second]
    ids = [row for batch in (*first, *second) for row in batch]
    assert set(ids) == set(range(5))


@pytest.mark.exhaustive  # otherwise, as above, what is sent to them
def test_workers_can_be_spawned(tmp_path):
    code = (
        "import os, sys, torch; os.chdir(sys.argv[1])\n"
        "from tests.data.test_manifest import images, INPUTS, prepared, with_images\n"
        "if __name__ == '__main__':\n"
        "    torch.multiprocessing.set_start_method('spawn')\n"
        "    data = prepared(rows=with_images(), inputs=images() | INPUTS, workers=2)\n"
        "    print(sum(len(batch['id']) for batch in data.val_dataloader()))\n"
    )
    script = tmp_path / "spawning.py"
    script.write_text(code)
    assert succeed(str(script), str(tmp_path), cwd=ROOT).stdout.strip() == "9"
