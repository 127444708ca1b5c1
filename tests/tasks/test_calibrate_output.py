import csv
import json
import math
import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning import ConfigError, HybridClassifier, HybridRegressor, HybridTask
from hybrid_lightning.cli import main
from hybrid_lightning.tasks.calibrate_output import write as write_record
from hybrid_lightning.tasks.calibration import Calibration
from tests.processes import succeed_on
from tests.small import loader, trainer, write

PART = {"table": {"module": "MLP", "args": {"hidden": [16]}}}
PARTS = {**PART, "photo": {"module": "torch.nn.Identity"}}
ROWS = {"train": (0, 300), "val": (300, 600), "calibration": (600, 800), "test": (800, 2800)}
SMOOTH = {"label_smoothing": 0.5}
"""Makes a network less sure than it may be."""


class Clouds(pl.LightningDataModule):
    """Three overlapping classes, two of which the second is rare, labels, or a number; and rows for calibration."""

    def __init__(self, kind: str = "classes", calibration: int = 200, names: bool = False):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        table = torch.randn(2800, 4, generator=generator)
        noise = torch.randn(2800, 3, generator=generator)
        score = 1.5 * table[:, :3] + noise
        targets = {
            "classes": score.argmax(1),
            "two": (score[:, 0] > 2).long(),
            "labels": (score > 1.5).float(),
            "values": score[:, 0],
            "prices": score[:, 0].exp(),
            "several": score[:, :2],
        }
        self.entries = {"table": table, "photo": noise[:, :2] + table[:, :2], "target": targets[kind]}
        self.calibration = calibration
        if kind == "prices":
            self.target_transform = "log"
        if names:
            self.target_names = ["cat", "dog", "eel"]

    def rows(self, split: str) -> dict[str, torch.Tensor]:
        first, last = ROWS[split]
        last = first + self.calibration if split == "calibration" else last
        return {name: tensor[first:last] for name, tensor in self.entries.items()}

    def train_dataloader(self):
        return loader(self.rows("train"), 32, shuffle=True)

    def val_dataloader(self):
        return loader(self.rows("val"), 32)

    def calibration_dataloader(self):
        return loader(self.rows("calibration"), 32)

    def test_dataloader(self):
        return loader(self.rows("test"), 500)

    predict_dataloader = test_dataloader


class OwnSteps(HybridClassifier):
    """Has steps of its own."""

    def forward(self, batch):
        return super().forward(batch)


def fitted(folder, model, data=None, epochs=3, **options):
    torch.manual_seed(0)
    best = ModelCheckpoint(folder, "best", monitor="val/loss", enable_version_counter=False)
    runner = trainer(max_epochs=epochs, callbacks=[best], enable_checkpointing=True, **options)
    runner.fit(model, data or Clouds())
    return folder / "best.ckpt"


def classifier(**options):
    torch.manual_seed(0)
    return HybridClassifier(**{"num_classes": 3, "parts": PART, "lr": 1e-2, **options})


def regressor(**options):
    torch.manual_seed(0)
    return HybridRegressor(**{"parts": PART, "lr": 1e-2, **options})


def record(path) -> dict:
    return torch.load(path, weights_only=True)["hybrid_lightning"].get("calibration", {})


def measured(model, path, data) -> dict[str, float]:
    [values] = runner_of(path).test(model, data, ckpt_path=path, weights_only=True, verbose=False)
    return values


def runner_of(path):
    return trainer(callbacks=[ModelCheckpoint(path.parent, "best", monitor="val/loss")], enable_checkpointing=True)


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    """A checkpoint with a temperature and sets."""
    model = classifier(calibrate={"coverage": 0.9}, **SMOOTH)
    return fitted(tmp_path_factory.mktemp("smooth"), model)


def test_the_temperature_lowers_the_log_loss_of_test_rows_and_changes_no_decision(smooth):
    rows = Clouds().rows("test")
    model = HybridTask.load_from_checkpoint(smooth)
    served = model(rows)
    assert model.built().temperature == record(smooth)["temperature"] < 0.8
    model.built().temperature = 1.0
    plain = model(rows)
    assert functional.cross_entropy(served, rows["target"]) < functional.cross_entropy(plain, rows["target"]) - 0.02
    assert torch.equal(served.argmax(1), plain.argmax(1))


def test_what_was_trained_stays_as_it_is_in_the_file(smooth, tmp_path):
    plain = fitted(tmp_path, classifier(calibrate={"temperature": False}, **SMOOTH))
    saved, without = torch.load(smooth, weights_only=True), torch.load(plain, weights_only=True)
    assert saved["state_dict"].keys() == without["state_dict"].keys()
    assert all(torch.equal(tensor, without["state_dict"][name]) for name, tensor in saved["state_dict"].items())
    assert "calibration" not in without["hybrid_lightning"]


def test_a_command_serves_it_and_the_joint_network_is_as_it_was_trained(smooth):
    model = classifier(**SMOOTH)
    served = measured(model, smooth, Clouds())
    model.serves_selection = False
    plain = measured(model, smooth, Clouds())
    assert served["test/accuracy"] == plain["test/accuracy"]
    assert served["test/calibration_error"] < plain["test/calibration_error"] - 0.05
    assert "test/coverage" in served
    assert "test/coverage" not in plain


def test_sets_hold_the_class_of_nine_in_ten_test_rows(smooth):
    values = measured(classifier(**SMOOTH), smooth, Clouds())
    assert 0.85 < values["test/coverage"] < 0.95
    assert 1 < values["test/set_size"] < 2
    rows = Clouds().rows("test")
    model = HybridTask.load_from_checkpoint(smooth)
    with torch.no_grad():
        sets = model.objective.sets(model.predictions(model(rows)))
    assert sets.gather(1, rows["target"][:, None]).double().mean() == pytest.approx(values["test/coverage"])


def test_neither_validation_nor_training_rows_give_the_quantile(tmp_path):
    class Worse(Clouds):
        def calibration_dataloader(self):
            return loader({**self.rows("calibration"), "target": torch.zeros(200, dtype=torch.long)}, 32)

    quantiles = []
    for data in (Clouds(), Worse()):
        found = record(fitted(tmp_path / type(data).__name__, classifier(calibrate={"coverage": 0.9}, **SMOOTH), data))
        quantiles.append((found["temperature"], found["quantiles"]))
    assert quantiles[0][0] == quantiles[1][0]
    assert quantiles[0][1] < quantiles[1][1]


@pytest.mark.parametrize("kind", ["values", "prices", "several"])
def test_intervals_hold_the_number_of_nine_in_ten_test_rows(tmp_path, kind):
    outputs = 2 if kind == "several" else 1
    model = regressor(num_outputs=outputs, calibrate={"coverage": 0.9})
    path = fitted(tmp_path, model, Clouds(kind))
    values = measured(regressor(num_outputs=outputs), path, Clouds(kind))
    assert 0.86 < values["test/coverage"] < 0.94
    rows = Clouds(kind).rows("test")
    loaded = HybridTask.load_from_checkpoint(path)
    with torch.no_grad():
        predictions = loaded.predictions(loaded(rows))
    low, high = loaded.objective.interval(predictions)
    assert low.shape == high.shape == rows["target"].shape
    is_inside = (low <= rows["target"]) & (rows["target"] <= high)
    assert is_inside.double().mean() == pytest.approx(values["test/coverage"])
    if kind == "prices":
        assert (low > 0).all()
        torch.testing.assert_close(high / predictions, predictions / low, rtol=1e-4, atol=0, check_dtype=False)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("two", {"num_classes": 2}),
        ("two", {"num_classes": 2, "kind": "binary"}),
        ("two", {"num_classes": 2, "class_weights": [1.0, 3.0]}),
        ("labels", {"kind": "multilabel"}),
    ],
)
def test_thresholds_decide_for_the_metric_that_is_named(tmp_path, kind, options):
    model = classifier(calibrate={"threshold": "macro_f1"}, **options)
    path = fitted(tmp_path, model, Clouds(kind))
    served = measured(classifier(**options), path, Clouds(kind))
    plain = classifier(**options)
    plain.serves_selection = False
    before = measured(plain, path, Clouds(kind))
    assert served["test/macro_f1"] != before["test/macro_f1"]
    assert served["test/average_precision"] == pytest.approx(before["test/average_precision"], abs=1e-4)
    assert len(record(path)["thresholds"]) == (3 if kind == "labels" else 1)
    rows = Clouds(kind).rows("val")
    loaded = HybridTask.load_from_checkpoint(path)
    with torch.no_grad():
        predictions = loaded.predictions(loaded(rows))
    decided = loaded.objective.decisions(predictions)
    assert decided.shape == rows["target"].shape
    columns = loaded.objective.prediction_columns(predictions)
    shown = columns["prediction"] if kind == "two" else torch.stack([columns[f"prediction_{n}"] for n in range(3)], 1)
    assert torch.equal(shown, decided)
    metrics = loaded.evaluator.metrics_of("val")
    found = []
    for decide in (loaded.objective.decisions, None):
        metrics.decide = decide
        metrics.update(torch.zeros(()), 1, predictions, rows["target"])
        values, _ = metrics.compute()
        found.append(float(values["macro_f1"]))
    assert found[0] > found[1]


def test_a_threshold_is_told_with_the_class_that_it_is_for(tmp_path, capsys):
    data = Clouds("two")
    data.target_names = ["ok", "ill"]
    fitted(tmp_path, classifier(num_classes=2, calibrate={"threshold": "f1"}), data)
    [threshold] = record(tmp_path / "best.ckpt")["thresholds"]
    assert f"thresholds ill {threshold:.3g}; on 300 validation rows f1 0." in capsys.readouterr().out


def test_a_chosen_metric_counts_decisions_unless_it_has_a_threshold_of_its_own(tmp_path):
    metrics = ["F1Score", {"name": "F1Score", "args": {"threshold": 0.6}, "as": "f1_own"}]
    options = {"kind": "multilabel", "metrics": metrics}
    path = fitted(
        tmp_path, classifier(calibrate={"temperature": False, "threshold": "f1"}, **options), Clouds("labels")
    )
    served = measured(classifier(**options), path, Clouds("labels"))
    plain = classifier(**options)
    plain.serves_selection = False
    before = measured(plain, path, Clouds("labels"))
    assert served["test/f1_score"] > before["test/f1_score"]
    assert served["test/f1_score"] == pytest.approx(served["test/macro_f1"])
    assert served["test/f1_own"] == before["test/f1_own"]


def test_the_table_of_predictions_has_what_was_found(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = {
        "model": {
            "class_path": "HybridClassifier",
            "init_args": {"num_classes": 3, "parts": PART, "lr": 1e-2, "calibrate": {"coverage": 0.9}, **SMOOTH},
        },
        "data": {"class_path": f"{__name__}.Clouds", "init_args": {"names": True}},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 5},
        "seed_everything": 0,
    }
    path = write(config)
    assert main(["fit", "--config", path]) == 0
    printed = capsys.readouterr().out
    assert "calibration: temperature 0." in printed
    assert "on 300 validation rows log loss" in printed
    assert "calibration: coverage 0.9 from 200 calibration rows; mean set size 1." in printed
    assert main(["test", "--config", path, "--ckpt_path", "best"]) == 0
    assert "test/coverage" in capsys.readouterr().out
    assert main(["predict", "--config", path, "--ckpt_path", "best", "--output", "a.csv"]) == 0
    rows = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    names = ("cat", "dog", "eel")
    assert list(rows[0])[1:] == ["prediction", *(f"{kind}_{name}" for kind in ("probability", "set") for name in names)]
    assert all(row[f"set_{row['prediction']}"] == "1" for row in rows)
    quantile = record(next(tmp_path.rglob("best.ckpt")))["quantiles"][0]
    for row in rows[:100]:
        likely = [1 - float(row[f"probability_{name}"]) <= quantile for name in names]
        assert [row[f"set_{name}"] == "1" for name in names] == likely or sum(likely) == 0
    assert main(["export", "--config", path, "--ckpt_path", "best", "--output", "a.pt2"]) == 0
    program = torch.export.load("a.pt2").module()
    model = HybridTask.load_from_checkpoint(next(tmp_path.rglob("best.ckpt")))
    batch = {"table": Clouds().rows("test")["table"]}
    torch.testing.assert_close(program(batch), model(batch))
    capsys.readouterr()
    words = ["--output", "a.safetensors", "--format", "safetensors"]
    assert main(["export", "--config", path, "--ckpt_path", "best", *words]) == 0
    assert f"divide the outputs by {model.built().temperature}" in capsys.readouterr().out


def test_numbers_have_their_ends_in_the_table():
    model = regressor(num_outputs=2)
    model.objective.calibration = Calibration(coverage=0.9, quantiles=[1.0, 0.5])
    columns = model.objective.prediction_columns(torch.zeros(3, 2), ["a", "b"])
    assert list(columns) == ["prediction_a", "prediction_b", "lower_a", "lower_b", "upper_a", "upper_b"]
    assert columns["upper_b"].tolist() == [0.5] * 3
    one = regressor()
    one.objective.calibration = Calibration(coverage=0.9, quantiles=[1.0])
    assert list(one.objective.prediction_columns(torch.zeros(3))) == ["prediction", "lower", "upper"]


def test_what_was_selected_is_what_is_calibrated(tmp_path):
    class Noise(Clouds):
        def __init__(self):
            super().__init__("two")
            self.entries["photo"] = torch.randn(2800, 300, generator=torch.Generator().manual_seed(0))

    data = Noise()
    model = classifier(num_classes=2, parts=PARTS, calibrate={"coverage": 0.9, "threshold": "f1"})
    path = fitted(tmp_path, model, data, epochs=12)
    saved = torch.load(path, weights_only=True)["hybrid_lightning"]
    assert saved["network"]["selection"], "another output than the joint network's is served"
    rows = data.rows("calibration")
    loaded = HybridTask.load_from_checkpoint(path)
    with torch.no_grad():
        scores = loaded.objective.conformal_scores(loaded.predictions(loaded(rows)), rows["target"])
    assert saved["calibration"]["quantiles"][0] == pytest.approx(float(scores.sort(0).values[180]), abs=1e-6)
    assert model.built().selection is None
    assert model.objective.calibration is None


def test_a_later_end_of_the_fit_calibrates_anew(smooth, tmp_path):
    model = classifier(**SMOOTH)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss", enable_version_counter=False)
    runner = trainer(max_epochs=5, callbacks=[best], enable_checkpointing=True)
    runner.fit(model, Clouds(), ckpt_path=smooth, weights_only=True)
    assert model.built().temperature == 1
    found = record(tmp_path / "best.ckpt")
    assert found["temperature"] < 1
    assert "coverage" not in found, "it is no longer asked for"


def test_a_record_that_is_no_longer_wanted_goes(smooth, tmp_path):
    path = tmp_path / "best.ckpt"
    shutil.copy(smooth, path)
    before = path.stat()
    write_record(path, Calibration(**record(smooth)))
    assert path.stat() == before, "what is there already is not written again"
    write_record(path, Calibration())
    assert record(path) == {}
    assert HybridTask.load_from_checkpoint(path).built().temperature == 1


def test_a_model_that_is_saved_again_keeps_it(smooth, tmp_path):
    runner = runner_of(smooth)
    runner.test(classifier(**SMOOTH), Clouds(), ckpt_path=smooth, weights_only=True, verbose=False)
    runner.save_checkpoint(tmp_path / "again.ckpt")
    assert record(tmp_path / "again.ckpt") == record(smooth)


def test_groups_of_calibration_rows_count_alike(tmp_path, capsys):
    data = Clouds()
    data.calibration_groups = torch.arange(200) // 4
    fitted(tmp_path, classifier(calibrate={"coverage": 0.9}, **SMOOTH), data)
    assert "from 200 calibration rows of 50 groups, which count alike" in capsys.readouterr().out


def test_calibration_rows_may_be_a_stream(tmp_path):
    class Rows(IterableDataset):
        def __init__(self, count):
            self.count = count

        def __iter__(self):
            for row in range(600, 600 + self.count):
                yield {name: tensor[row] for name, tensor in Clouds().entries.items()}

    data = Clouds()
    data.calibration_dataloader = lambda: DataLoader(Rows(200), 32)
    found = record(fitted(tmp_path, classifier(calibrate={"coverage": 0.9}, **SMOOTH), data))
    assert (
        found["quantiles"] == record(fitted(tmp_path, classifier(calibrate={"coverage": 0.9}, **SMOOTH)))["quantiles"]
    )


def test_calibration_rows_that_nothing_reads_are_told(tmp_path, capsys):
    fitted(tmp_path / "unread", classifier(**SMOOTH))
    assert "calibration: nothing reads its rows" in capsys.readouterr().out
    fitted(tmp_path / "read", classifier(calibrate={"coverage": 0.9}, **SMOOTH))
    assert "nothing reads" not in capsys.readouterr().out


def test_a_stream_of_too_few_rows_leaves_the_file_as_it_is(tmp_path, capsys):
    data = Clouds()
    first = {name: tensor[600:620] for name, tensor in data.entries.items()}
    data.calibration_dataloader = lambda: DataLoader(OneBatch(first), None)
    assert record(fitted(tmp_path, classifier(calibrate={"coverage": 0.9}, **SMOOTH), data)) == {}
    assert "calibration: best.ckpt stays as it is. model.calibrate.coverage: there are 20" in capsys.readouterr().out


class OneBatch(IterableDataset):
    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        yield self.batch


@pytest.mark.parametrize("rows", [0, 99])
def test_too_few_calibration_rows_are_refused_before_training_with_their_number(tmp_path, rows):
    model = classifier(calibrate={"coverage": 0.9})
    with pytest.raises(ConfigError, match=rf"^model\.calibrate\.coverage: there are {rows} calibration rows"):
        fitted(tmp_path, model, Clouds(calibration=rows))
    assert not list(tmp_path.iterdir())


def test_data_without_calibration_rows_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there are 0 calibration rows"):
        fitted(tmp_path, classifier(calibrate={"coverage": 0.9}), Plain())


class Plain(pl.LightningDataModule):
    """Data that know nothing of calibration."""

    def train_dataloader(self):
        return Clouds().train_dataloader()

    def val_dataloader(self):
        return Clouds().val_dataloader()


def test_a_fit_that_keeps_no_best_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^model\.calibrate: it is written into the checkpoint that is best"):
        trainer().fit(classifier(calibrate={"coverage": 0.9}), Clouds())


def test_few_validation_rows_give_no_temperature(tmp_path, capsys):
    class Few(Clouds):
        def val_dataloader(self):
            return loader({name: tensor[300:350] for name, tensor in self.entries.items()}, 32)

    assert record(fitted(tmp_path, classifier(**SMOOTH), Few())) == {}
    assert "calibration: temperature 1; no other is sure to lower the log loss, by 50" in capsys.readouterr().out


def test_steps_of_a_users_own_are_not_calibrated(tmp_path, capsys):
    model = OwnSteps(num_classes=3, parts=PART, **SMOOTH)
    assert record(fitted(tmp_path, model, epochs=1)) == {}
    assert "calibration" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^model\.calibrate: a task with steps"):
        OwnSteps(num_classes=3, parts=PART, calibrate={"coverage": 0.9})


@pytest.mark.parametrize("split", ["val", "calibration"])
def test_rows_whose_outputs_are_not_finite_leave_the_file_as_it_is(tmp_path, capsys, split):
    class Broken(Clouds):
        is_broken = False

        def rows(self, name):
            found = super().rows(name)
            if name == split and self.is_broken:
                found["table"] = found["table"] * math.nan
            return found

    class Breaks(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            trainer.val_dataloaders.dataset.entries["table"].fill_(math.nan if split == "val" else 0.0)
            trainer.datamodule.is_broken = True

    model = classifier(calibrate={"coverage": 0.9})
    best = ModelCheckpoint(tmp_path, "best", monitor="val/loss")
    trainer(max_epochs=1, callbacks=[best, Breaks()], enable_checkpointing=True).fit(model, Broken())
    assert record(tmp_path / "best.ckpt") == {}
    assert "calibration: best.ckpt stays as it is." in capsys.readouterr().out


def test_two_ranks_find_the_numbers_of_one(tmp_path):
    for count, strategy in ((1, "auto"), (2, "ddp")):
        (tmp_path / strategy).mkdir()
        succeed_on(count, "-m", "tests.tasks.calibration_worker", strategy, str(tmp_path / strategy))
    one, two = (record(tmp_path / strategy / "best.ckpt") for strategy in ("auto", "ddp"))
    assert two["coverage"] == 0.9
    assert two["temperature"] == pytest.approx(one["temperature"], rel=1e-4)
    assert two["quantiles"] == pytest.approx(one["quantiles"], rel=1e-4)
    measured = [json.loads((tmp_path / name).read_text()) for name in ("auto/0.json", "ddp/0.json", "ddp/1.json")]
    assert measured[1] == measured[2]
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)
