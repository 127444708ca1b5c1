"""Tables of predictions, through the command line, on one rank and on two."""

import contextlib
import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from hybrid_lightning import ConfigError, HybridClassifier, HybridTask
from hybrid_lightning.cli import main
from hybrid_lightning.cli.predictions import CollectPredictions, Predicted, joined, quoted, refuse_not_finite
from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule
from tests.processes import succeed_on
from tests.small import changed, classifier, regressor, table, table_config, trainer, write
from tests.tables import write_rows

COUNT = 41
TARGET = torch.arange(COUNT) % 3


class Named(InMemoryDataModule):
    """Data with names for classes and samples; their order is not that of their ids."""

    def __init__(
        self,
        batch_size: int = 6,
        names: bool = True,
        numbered: bool = False,
        statistics: str | None = None,
        samples: int = COUNT,
    ):
        super().__init__(batch_size)
        self.samples = samples
        self.numbered, self.statistics = numbered, statistics
        if names:
            self.target_names = ["cat", "dog", "eel"]
            self.predict_ids = [f"s{(7 * index) % COUNT}" for index in range(COUNT)]

    def load(self):
        entries = {"x": table(COUNT), "target": TARGET}
        if self.numbered:
            entries["id"] = 100 + torch.arange(COUNT)
        few = {key: values[: self.samples] for key, values in entries.items()}
        return {"train": DictDataset(entries), "val": DictDataset(entries), "test": DictDataset(few)}

    def use_statistics(self, path):
        self.statistics = self.statistics or path

    def setup(self, stage=None):
        super().setup(stage)
        if self.statistics:
            Path("statistics.txt").write_text(f"{self.statistics}")


class Explained(HybridClassifier):
    """Says what its parts contribute, in a way that can be checked."""

    def predict_step(self, batch, batch_idx):
        predictions = self.predictions(self(batch))
        parts = {"x": batch["x"][:, 0], "y": predictions[:, 0]}
        return {"predictions": predictions, "contributions": parts} if self.explain else predictions


def config(**changes):
    parts = {"x": {"module": "MLP", "args": {"hidden": [5]}}}
    return changed(
        {"init.parts": parts, "data.class_path": f"{__name__}.Named", "data.init_args": {"batch_size": 6}, **changes}
    )


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def fit(**changes) -> str:
    path = write(config(**changes))
    assert main(["fit", "--config", path]) == 0
    return path


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """The checkpoint of a run."""
    where = tmp_path_factory.mktemp("named")
    with contextlib.chdir(where):
        fit()
    return next(where.rglob("best.ckpt"))


def predict(best: Path, *words: str) -> int:
    return main(["predict", "--config", write(config()), "--ckpt_path", str(best), *words])


def expected_of(best: Path) -> torch.Tensor:
    model = HybridTask.load_from_checkpoint(best)
    with torch.no_grad():
        return model.predictions(model({"x": table(COUNT)}))


def check(found: list[dict[str, str]], expected: torch.Tensor) -> None:
    assert list(found[0]) == ["id", "prediction", "probability_cat", "probability_dog", "probability_eel"]
    assert [row["id"] for row in found] == [f"s{(7 * index) % COUNT}" for index in range(COUNT)]
    assert [row["prediction"] for row in found] == [["cat", "dog", "eel"][i] for i in expected.argmax(1)]
    given = [[float(row[f"probability_{name}"]) for name in ("cat", "dog", "eel")] for row in found]
    torch.testing.assert_close(torch.tensor(given), expected)


def test_names_of_classes_and_samples_stand_in_the_table(best, folder, capsys):
    assert predict(best, "--output", "new/table.csv") == 0
    check(rows(folder / "new/table.csv"), expected_of(best))
    assert [file.name for file in (folder / "new").iterdir()] == ["table.csv"]
    assert "predictions: new/table.csv" in capsys.readouterr().out


def test_two_ranks_write_one_whole_table_in_the_order_of_the_data(best, folder):
    words = ["-m", "hybrid_lightning", "predict", "--config", write(config()), "--ckpt_path", str(best)]
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    out = succeed_on(2, *words, *devices, "--output", "two.csv", cwd=folder)
    assert "".join(out).count("predictions: two.csv") == 1
    check(rows(folder / "two.csv"), expected_of(best))


def test_more_ranks_than_samples_write_one_whole_table(best, folder):
    few = ("--data.samples", "1")
    assert predict(best, *few, "--output", "one.csv") == 0
    words = ["-m", "hybrid_lightning", "predict", "--config", write(config()), "--ckpt_path", str(best), *few]
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    succeed_on(2, *words, *devices, "--output", "two.csv", cwd=folder)
    [alone], [shared] = rows(folder / "one.csv"), rows(folder / "two.csv")
    assert shared.keys() == alone.keys()
    assert shared["id"] == alone["id"] == "s0"
    assert float(shared["probability_cat"]) == pytest.approx(float(alone["probability_cat"]), abs=1e-6)


def test_parquet_holds_the_same_as_csv(best, folder):
    pandas = pytest.importorskip("pandas")
    for name in ("a.csv", "a.parquet"):
        assert predict(best, "--output", name) == 0
    frame = pandas.read_parquet("a.parquet")
    assert frame["probability_cat"].dtype == "float32"
    pandas.testing.assert_frame_equal(frame, pandas.read_csv("a.csv"), check_dtype=False)


def test_without_names_rows_are_numbered_by_their_place_or_by_the_batches(best, folder):
    assert predict(best, "--output", "place.csv", "--data.names", "false") == 0
    assert predict(best, "--output", "batch.csv", "--data.names", "false", "--data.numbered", "true") == 0
    assert predict(best, "--output", "both.csv", "--row_numbers", "true", "--data.numbered", "true") == 0
    assert [int(row["row"]) for row in rows(folder / "place.csv")] == list(range(COUNT))
    assert [int(row["row"]) for row in rows(folder / "batch.csv")] == list(range(100, 100 + COUNT))
    assert rows(folder / "place.csv")[3]["prediction"] in "012"
    assert [(row["id"], row["row"]) for row in rows(folder / "both.csv")[:2]] == [("s0", "100"), ("s7", "101")]


def test_what_the_parts_contribute_stands_in_the_table(folder):
    path = fit(**{"model.class_path": f"{__name__}.Explained"})
    assert main(["predict", "--config", path, "--ckpt_path", "best", "--output", "a.csv"]) == 0
    found = rows(folder / "a.csv")
    assert list(found[0])[-2:] == ["contribution_x", "contribution_y"]
    given = torch.tensor([float(row["contribution_x"]) for row in found])
    torch.testing.assert_close(given, table(COUNT)[:, 0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "a.xlsx"], "output: 'a.xlsx' does not end in .csv or .parquet"),
        (["--output", "taken/a.csv"], "output: 'taken/a.csv' cannot be written"),
        (["--model.num_classes", "4"], "another model"),
    ],
)
def test_a_table_that_cannot_be_written_is_told(words, message, best, folder, capsys):
    (folder / "taken").touch()
    assert predict(best, *words) == 2
    assert message in capsys.readouterr().err


def test_without_a_folder_for_each_run_an_earlier_table_is_kept(best, folder, capsys):
    assert predict(best, "--trainer.logger", "false") == 0
    first = Path("predictions.csv").read_text()
    assert predict(best, "--trainer.logger", "false", "--data.batch_size", "5") == 2
    assert "predictions.csv' is there already, and would be lost: without a logger" in capsys.readouterr().err
    assert Path("predictions.csv").read_text() == first
    assert predict(best, "--trainer.logger", "false", "--output", "predictions.csv") == 0


def test_the_name_of_a_table_is_refused_before_the_model_is_made(best, folder, capsys):
    assert predict(best, "--output", "a.xlsx", "--model.num_classes", "1") == 2
    assert "output: 'a.xlsx'" in capsys.readouterr().err


def test_parquet_without_pyarrow_is_told_before_anything_is_predicted(best, folder, capsys, monkeypatch):
    monkeypatch.setattr("hybrid_lightning.cli.tables.find_spec", lambda name: None)
    assert predict(best, "--output", "a.parquet") == 2
    assert "pip install 'hybrid_lightning[data]'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["validate", "test", "predict", "fit"])
def test_a_datamodule_is_given_the_statistics_of_the_checkpoint(verb, best, folder):
    words = [verb, "--config", write(config()), "--ckpt_path", str(best), "--trainer.max_epochs", "2"]
    assert main(words) == 0
    assert Path("statistics.txt").read_text() == str(best)
    assert main([*words, "--data.statistics", "own"]) == 0
    assert Path("statistics.txt").read_text() == "own"


def test_a_continued_run_repeats_without_the_checkpoint_that_it_was_continued_from(folder):
    path = fit()
    assert not Path("statistics.txt").exists()
    assert main(["fit", "--config", path, "--resume", "auto", "--trainer.max_epochs", "2"]) == 0
    assert Path("statistics.txt").read_text().endswith("last.ckpt")
    assert "statistics: null" in (folder / "runs/small/version_0/config.yaml").read_text()


# The pieces


def test_names_have_to_be_as_many_as_the_outputs():
    with pytest.raises(ConfigError, match=r"target_names has 2 names .* the model has 3"):
        classifier().objective.prediction_columns(torch.rand(4, 3), ["a", "b"])


@pytest.mark.parametrize(
    ("task", "shape", "names", "columns"),
    [
        (regressor, (4,), ["price"], ["prediction"]),
        (regressor, (4, 2), ["a", "b"], ["prediction_a", "prediction_b"]),
        (regressor, (4, 2), None, ["prediction_0", "prediction_1"]),
        (
            lambda: classifier(num_classes=2, kind="multilabel"),
            (4, 2),
            ["a", "b"],
            ["prediction_a", "prediction_b", "probability_a", "probability_b"],
        ),
        (lambda: classifier(num_classes=2), (4, 2), None, ["prediction", "probability_0", "probability_1"]),
    ],
)
def test_columns_are_those_of_the_task(task, shape, names, columns):
    found = task().objective.prediction_columns(torch.rand(shape), names)
    assert list(found) == columns
    assert all(len(values) == 4 for values in found.values())


def test_batches_of_several_ranks_are_joined_in_order_and_each_sample_once():
    parts = []
    for rank in range(3):
        sampler = DistributedSampler(range(COUNT), 3, rank, shuffle=True)
        loader = DataLoader(range(COUNT), 4, sampler=sampler)
        parts += [Predicted(places, places * 2.0, None, {"x": places * 3.0}) for places in loader]
    found = joined(parts)
    assert found.places.tolist() == list(range(COUNT))
    assert torch.equal(found.predictions, found.places * 2.0)
    assert torch.equal(found.contributions["x"], found.places * 3.0)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ({"x": row} for row in table(COUNT))


@pytest.mark.filterwarnings("ignore:Couldn't infer the batch indices")
def test_a_stream_is_predicted_in_its_own_order_by_one_device_only():
    model, collected = classifier().build({"x": table()}), CollectPredictions()
    trainer(callbacks=[collected]).predict(model, DataLoader(Stream(), batch_size=6), return_predictions=False)
    with torch.no_grad():
        expected = model.predictions(model.eval()({"x": table(COUNT)}))
    found = collected.gathered()
    assert found.places.tolist() == list(range(COUNT))
    torch.testing.assert_close(found.predictions, expected)
    with pytest.raises(ConfigError, match=r"several devices .* --trainer\.devices 1"):
        CollectPredictions()._places(None, 3, ranks=2)


@pytest.mark.filterwarnings("ignore:.*sampler has shuffling enabled")
def test_a_shuffled_loader_gives_the_order_of_the_data():
    model, collected = classifier().build({"x": table()}), CollectPredictions()
    loader = DataLoader([{"x": row} for row in table(COUNT)], batch_size=6, shuffle=True)
    trainer(callbacks=[collected]).predict(model, loader, return_predictions=False)
    with torch.no_grad():
        torch.testing.assert_close(
            collected.gathered().predictions, model.predictions(model.eval()({"x": table(COUNT)}))
        )


@pytest.mark.parametrize("of_part", [False, True])
def test_predictions_that_are_not_finite_are_counted_and_named_by_their_rows(of_part):
    good, bad = torch.ones(4, 2), torch.tensor([[0.0, 1.0], [torch.nan, 1.0], [0.0, -torch.inf], [1.0, 0.0]])
    contributions = {"x": bad[:, 0] + bad[:, 1]} if of_part else {}
    predicted = Predicted(torch.arange(4), good if of_part else bad, torch.arange(10, 14), contributions)
    refuse_not_finite(predicted._replace(predictions=good, contributions={}))
    refuse_not_finite(predicted._replace(predictions=torch.arange(4), contributions={}))
    with pytest.raises(
        ConfigError, match=r"^predict: 2 of 4 samples \(rows '11', '12'\) have predictions that are not"
    ):
        refuse_not_finite(predicted)


def test_texts_that_a_spreadsheet_computes_are_quoted_and_numbers_are_not():
    numbers = torch.tensor([-1.0, 2.0]).numpy()
    table = {"id": ["=1+1", "a"], "-class": ["@b", "c"], "probability": numbers}
    found = quoted(table)
    assert list(found) == ["id", "'-class", "probability"]
    assert found["id"] == ["'=1+1", "a"]
    assert found["'-class"] == ["'@b", "c"]
    assert found["probability"] is numbers


@pytest.mark.parametrize("words", ["embed --output x.npz", "lr_find --plot x.png"])
def test_files_that_cells_of_the_table_name_are_not_written_over(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    verb, flag, name = words.split()
    Path("deep").mkdir()
    file = Path("deep", name)
    if name == "x.npz":
        np.savez(file, np.ones(2, np.float32))
        Path("link.npz").symlink_to(file)
        kind, cell = {"array": "file"}, "link.npz"
    else:
        Image.fromarray(np.eye(8, dtype=np.uint8)).save(file)
        kind, cell = {"image": "file", "size": 8}, "deep/x.png"
    write_rows("m.csv", [{"file": cell, "label": "ab"[number % 2]} for number in range(10)])
    before = file.read_bytes()
    data = {"path": "m.csv", "inputs": {"x": kind}, "target": "label"}
    config = write(table_config(data, {"x": {"module": "MLP"}}))
    assert main([verb, "--config", config, flag, str(file)]) == 2
    told = capsys.readouterr().err
    assert f"error: {flag[2:]}: 'deep/{name}' is a file that the data name, and would be lost. Name another" in told
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("predict --ckpt_path best --output ./m.csv", "./m.csv"),
        ("predict --ckpt_path best --data.predict_path new.csv --output new.csv", "new.csv"),
        ("probe --output m.csv", "m.csv"),
    ],
)
def test_the_tables_that_are_read_are_not_written_over(tmp_path, monkeypatch, capsys, words, named):
    monkeypatch.chdir(tmp_path)
    rows = [{"size": number, "label": "ab"[number % 2]} for number in range(10)]
    for name in ("m.csv", "new.csv"):
        write_rows(name, rows)
    before = Path(named).read_bytes()
    data = {"path": "m.csv", "inputs": {"x": {"numeric": ["size"]}}, "target": "label"}
    config = write(table_config(data, {"x": {"module": "MLP"}}))
    verb, *rest = words.split()
    assert main([verb, "--config", config, *rest]) == 2
    assert f"error: output: '{named}' is a table that is read, and would be lost" in capsys.readouterr().err
    assert Path(named).read_bytes() == before
