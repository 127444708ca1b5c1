"""``metrics: [...]``: what a config may name, what is measured, and which values become tables."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn import metrics as reference

from hybrid_lightning import ConfigError, HybridTask
from hybrid_lightning.cli import main
from hybrid_lightning.tasks.chosen_metrics import ChosenMetric, computed, names_of, parse_metrics
from hybrid_lightning.tasks.monitored import directions_of
from tests.small import changed, classifier, command, loader, regressor, table, trainer

P = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
T = torch.randint(3, (40,), generator=torch.Generator().manual_seed(1))


def one(entry: Any, kind: str = "Multiclass", outputs: int = 3) -> ChosenMetric:
    [metric] = parse_metrics([entry], kind, outputs, ["accuracy"])
    return metric


def value(entry: Any, kind: str = "Multiclass", predictions: torch.Tensor = P, target: torch.Tensor = T) -> Any:
    metric = one(entry, kind, predictions.shape[1])
    made = metric.make()
    made.update(predictions, target)
    return metric.read(computed(made))


def test_one_class_is_measured_as_scikit_learn_does() -> None:
    f1 = reference.f1_score(T, P.argmax(1), average=None)
    assert float(value({"name": "F1Score", "class": 1})) == pytest.approx(f1[1])
    precision = reference.average_precision_score(T == 2, P[:, 2])
    assert float(value({"name": "AveragePrecision", "class": 2})) == pytest.approx(precision, abs=1e-6)


def test_of_a_value_and_its_threshold_the_value_counts() -> None:
    given = {"name": "PrecisionAtFixedRecall", "class": 0, "args": {"min_recall": 0.5}}
    precision, recall, _ = reference.precision_recall_curve(T == 0, P[:, 0])
    assert float(value(given)) == pytest.approx(precision[recall >= 0.5].max())


def test_labels_are_measured_by_the_same_names() -> None:
    target = torch.randint(2, (40, 3), generator=torch.Generator().manual_seed(2))
    f1 = reference.f1_score(target, P > 0.5, average=None, zero_division=0)
    assert float(value({"name": "F1Score", "class": 2}, "Multilabel", target=target)) == pytest.approx(f1[2])


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ("F1Score", "f1_score"),
        ("AUROC", "auroc"),
        ({"name": "F1Score", "class": 1}, "f1_score_1"),
        ({"name": "F1Score", "class": "Great Tit"}, "f1_score_great_tit"),
        ({"name": "F1Score", "as": "mine"}, "mine"),
    ],
)
def test_the_key_follows_from_the_name_unless_it_is_given(entry: Any, key: str) -> None:
    assert one(entry).key == key


@pytest.mark.parametrize("kind", ["Multiclass", "Multilabel", ""])
def test_each_name_gives_a_number_or_a_table_or_says_what_it_lacks(kind: str) -> None:
    given, refused = [], []
    for name in names_of(kind):
        try:
            given.append(one({"name": name, "as": "x"}, kind))
        except ConfigError as error:
            refused.append(str(error))
    assert len([metric for metric in given if not metric.is_table]) > 8
    expected = ("must be given", "cannot be measured like this")
    assert not [text for text in refused if not any(words in text for words in expected)]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("F1Score", "'F1Score' is not a list"),
        (["F1Scores"], r"0\.name: unknown metric 'F1Scores'. Did you mean 'F1Score'"),
        (["ROC"], "unknown metric 'ROC'"),
        ([{"name": "F1Score", "klass": 1}], "unknown key 'klass'. Did you mean 'class'"),
        ([{"name": "F1Score", "args": {"averge": "micro"}}], "unknown argument 'averge'. Did you mean 'average'"),
        ([{"name": "F1Score", "args": {"num_classes": 7}}], "unknown argument 'num_classes'"),
        ([{"name": "F1Score", "args": {"process_group": 7}}], "unknown argument 'process_group'"),
        ([{"name": "FBetaScore"}], "'beta' must be given"),
        ([{"name": "FBetaScore", "args": {"beta": -1}}], "cannot be measured like this"),
        ([{"name": "AUROC", "args": {"thresholds": 10**9}}], "args.thresholds: 1000000000 is not a number"),
        ([{"name": "AUROC", "args": {"thresholds": {"a": 1}}}], "args.thresholds: .* is not a number"),
        ([{"name": "ConfusionMatrix", "class": 1}], "neither a number nor a table of the 3 outputs"),
        ([{"name": "CohenKappa", "class": 1}], "no value for each class"),
        ([{"name": "F1Score", "class": True}], "True is neither the name of a class nor its number"),
        (["F1Score", {"name": "F1Score"}], "1: 'f1_score' is measured already"),
        (["Accuracy"], "'accuracy' is measured already"),
        ([{"name": "F1Score", "as": "val/f1"}], "as: 'val/f1' is not a name"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_read(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_metrics(given, "Multiclass", 3, ["accuracy"])


def test_a_table_of_very_many_classes_is_refused_before_it_takes_memory() -> None:
    with pytest.raises(ConfigError, match="ConfusionMatrix is for at most 2,000 classes"):
        parse_metrics(["ConfusionMatrix"], "Multiclass", 10**9, [])
    [metric] = parse_metrics(["F1Score"], "Multiclass", 10**6, [])
    assert metric.args == {"num_classes": 10**6}


def test_numbers_have_no_classes() -> None:
    with pytest.raises(ConfigError, match=r"0\.class: numbers have no classes"):
        parse_metrics([{"name": "R2Score", "class": 1}], "", 1, [])


def test_a_number_is_a_name_first() -> None:
    metric = one({"name": "F1Score", "class": 1})
    metric.find(["0", "2", "1"])
    assert metric.index == 2
    with pytest.raises(ConfigError, match=r"unknown class 'ct'. Did you mean 'cat'"):
        one({"name": "F1Score", "class": "ct"}).find(["cat", "dog"])


def test_it_is_logged_has_a_direction_and_stays_with_the_checkpoint(tmp_path: Path) -> None:
    chosen = [{"name": "F1Score", "class": 1}, "ConfusionMatrix", {"name": "CalibrationError", "as": "ece"}]
    model = classifier(metrics=chosen)
    known = directions_of(model)
    assert (known["val/f1_score_1"], known["val/ece"]) == ("max", "min")
    assert "val/confusion_matrix" not in known
    data, run = loader({"x": table(), "target": torch.arange(27) % 3}), trainer()
    run.fit(model, data, data)
    assert "val/f1_score_1" in run.callback_metrics
    assert "val/confusion_matrix" not in run.callback_metrics
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = HybridTask.load_from_checkpoint(tmp_path / "x.ckpt")
    assert directions_of(again) == known


def test_a_class_that_no_sample_has_leaves_a_metric_undefined() -> None:
    model = classifier(metrics=[{"name": "AUROC", "class": 2}])
    data, run = loader({"x": table(), "target": torch.arange(27) % 2}), trainer()
    run.fit(model, data, data)
    assert "val/auroc_2" not in run.callback_metrics
    assert "val/accuracy" in run.callback_metrics


def test_a_named_class_needs_data_with_names() -> None:
    data = loader({"x": table(), "target": torch.arange(27) % 3})
    with pytest.raises(ConfigError, match="these data do not name their classes, so 'cat' cannot be found"):
        trainer().fit(classifier(metrics=[{"name": "F1Score", "class": "cat"}]), data)


def test_several_outputs_make_a_table_with_a_line_for_each() -> None:
    model = regressor(num_outputs=2, metrics=["PearsonCorrCoef"])
    [metric] = model.objective.chosen
    assert metric.is_table
    lines = metric.rows(torch.tensor([0.5, 1.0]), ["a", "b"], None)
    assert lines == [["name", "pearson_corr_coef"], ["a", 0.5], ["b", 1.0]]


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def manifest(path: str = "m.csv", samples: int = 60) -> None:
    lines = [f"{row % 7}.5,{row % 5}.25,{('cat', 'dog', 'emu')[row % 3]}" for row in range(samples)]
    Path(path).write_text("\n".join(["x,y,kind", *lines, ""]))


def test_the_confusion_matrix_of_the_best_validation_and_of_the_test_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest()
    data = {"path": "m.csv", "inputs": {"x": {"numeric": ["x", "y"]}}, "target": "kind"}
    chosen = ["ConfusionMatrix", {"name": "F1Score", "class": "dog"}]
    changes = {"init.parts": {"x": {"module": "MLP"}}, "init.metrics": chosen, "trainer.max_epochs": 3}
    config = changed({**changes, "data": {"class_path": "ManifestDataModule", "init_args": data}})
    assert command("fit", "--test_after_fit", "best", config=config) == 0
    run = Path("runs/small/version_0")
    for split in ("val", "test"):
        lines = rows(f"{run}/{split}_confusion_matrix.csv")
        assert [line["true"] for line in lines] == ["cat", "dog", "emu"]
        for line in lines:
            counts = [int(line[f"predicted_{name}"]) for name in ("cat", "dog", "emu")]
            assert sum(counts) == int(line["rows"]) > 0
    validated = [row for row in rows(f"{run}/metrics.csv") if row["val/accuracy"]]
    lines = rows(f"{run}/val_confusion_matrix.csv")
    hits = sum(int(line[f"predicted_{line['true']}"]) for line in lines)
    total = sum(int(line["rows"]) for line in lines)
    out = capsys.readouterr().out
    epoch = int(out.split("best: epoch ")[1].split(",")[0])
    assert float(validated[epoch]["val/accuracy"]) == pytest.approx(hits / total)
    assert "val/f1_score_dog" in validated[0]

    assert main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", "best"]) == 0
    [again] = Path("runs/small").glob("version_1/val_confusion_matrix.csv")
    assert again.read_text() == (run / "val_confusion_matrix.csv").read_text()

    wrong = yaml.safe_load(Path("small.yaml").read_text())
    wrong["model"]["init_args"]["metrics"][1]["class"] = "dgo"
    assert command("check", config=wrong) == 2
    assert "model.metrics.class: unknown class 'dgo'. Did you mean 'dog'" in capsys.readouterr().err
