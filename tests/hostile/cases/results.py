"""Kind 14: defaults that cost the result; here those of targets, metrics and the best checkpoint."""

from pathlib import Path
from typing import Any

import yaml

from tests.hostile.cases.data import checked, config, table
from tests.hostile.harness import Box, case

PRICE: dict[str, Any] = {"column": "price", "transform": "log"}


def with_metrics(metrics: Any, **options: Any) -> None:
    """Writes ``x.yaml`` of classes with these metrics."""
    table()
    config(**options)
    content = yaml.safe_load(Path("x.yaml").read_text())
    content["model"]["init_args"]["metrics"] = metrics
    Path("x.yaml").write_text(yaml.safe_dump(content))


@checked(14, "transform", "a price of 0", "log takes numbers above 0; column 'price' holds 0 in row 7 .*log1p")
def a_price_of_zero() -> None:
    table(price=lambda row: 0 if row == 7 else row + 0.5)
    config(target=PRICE, model="HybridRegressor")


@checked(14, "transform", "a debt", "log1p takes numbers above -1; column 'price' holds -20 in row 3")
def a_debt() -> None:
    table(price=lambda row: -20 if row == 3 else row + 0.5)
    config(target={"column": "price", "transform": "log1p"}, model="HybridRegressor")


@checked(14, "transform", "logarithms of classes", "only numbers have logarithms")
def logarithms_of_classes() -> None:
    table()
    config(target={"column": "label", "kind": "binary", "transform": "log"})


@checked(14, "transform", "a misspelt one", "unknown transform 'ln'. Possible: 'log', 'log1p'")
def a_misspelt_transform() -> None:
    table(price=1.5)
    config(target={"column": "price", "transform": "ln"}, model="HybridRegressor")


@checked(
    14, "task", "a quantity for classes", "'price'.*is a quantity, and HybridClassifier learns classes.*take HybridR"
)
def a_quantity_for_classes() -> None:
    table(price=lambda row: row * 1.5)
    config(target="price")


@checked(14, "task", "classes for numbers", "'label'.*HybridRegressor learns numbers.*take HybridClassifier")
def classes_for_numbers() -> None:
    table()
    config(model="HybridRegressor")


@checked(14, "metrics", "a misspelt name", r"model\.metrics.*unknown metric 'F1_score'. Did you mean 'F1Score'")
def a_misspelt_metric() -> None:
    with_metrics(["F1_score"])


@checked(14, "metrics", "a misspelt class", "unknown class 'bb'. Did you mean 'b'")
def a_misspelt_class() -> None:
    with_metrics([{"name": "F1Score", "class": "bb"}])


@checked(14, "metrics", "an argument that it lacks", "'min_recall' must be given")
def a_metric_without_its_argument() -> None:
    with_metrics([{"name": "PrecisionAtFixedRecall", "class": "b"}])


@checked(14, "metrics", "a table of one class", "neither a number nor a table")
def a_table_of_one_class() -> None:
    with_metrics([{"name": "ConfusionMatrix", "class": "b"}])


@checked(14, "metrics", "the same twice", "'f1_score' is measured already")
def a_metric_twice() -> None:
    with_metrics(["F1Score", "F1Score"])


@checked(14, "metrics", "an argument that is a size", "thresholds: 1000000000000 is not a number")
def a_metric_of_a_trillion_thresholds() -> None:
    with_metrics([{"name": "AUROC", "as": "x", "args": {"thresholds": 10**12}}])


@checked(14, "checkpoint", "a direction for the main metric", "the main metric has a direction of its own", ("fit",))
def a_direction_for_the_main_metric() -> None:
    table()
    config()
    content = yaml.safe_load(Path("x.yaml").read_text())
    Path("x.yaml").write_text(yaml.safe_dump({**content, "checkpoint": {"mode": "min"}}))


@case(14, "metrics", "names of classes that a spreadsheet or a path would take")
def a_confusion_matrix_of_odd_names(box: Box) -> None:
    names = ["=1+1", "../x"]
    with_metrics(["ConfusionMatrix", {"name": "F1Score", "class": "../x"}])
    table(label=lambda row: names[row % 2])
    box.accepted("fit", "--config", "x.yaml", "--test_after_fit", "best")
    lines = Path("runs/x/version_0/test_confusion_matrix.csv").read_text().splitlines()
    assert lines[0] == "true,predicted_../x,predicted_=1+1,rows"
    assert "test/f1_score_x" in Path("runs/x/version_0/metrics.csv").read_text()


@case(14, "checkpoint", "a rare class that accuracy does not see")
def the_best_of_a_rare_class(box: Box) -> None:
    table(rows=100, label=lambda row: "yes" if row % 16 == 0 else "no")
    config()
    told = box.accepted("fit", "--config", "x.yaml")
    assert ": val/average_precision" in told.out, told.out


@case(14, "checkpoint", "a metric that one validation row leaves undefined")
def the_best_without_its_metric(box: Box) -> None:
    table(price=lambda row: row + 0.5, split=lambda row: "val" if row == 3 else ("test" if row == 4 else "train"))
    config(target="price", model="HybridRegressor", split_column="split")
    told = box.accepted("fit", "--config", "x.yaml")
    assert "best: epoch 0" in told.out, told.out


@case(14, "checkpoint", "a scale of targets that no version writes")
def a_damaged_transform(box: Box) -> None:
    import torch

    table(price=lambda row: row + 0.5)
    config(target=PRICE, model="HybridRegressor")
    box.accepted("fit", "--config", "x.yaml")
    path = Path("runs/x/version_0/checkpoints/last.ckpt")
    content = torch.load(path, weights_only=True)
    content["state_dict"]["objective.scale.known"].fill_(77)
    torch.save(content, path)
    box.refused("validate", "--config", "x.yaml", "--ckpt_path", str(path), says="damaged: scale.known is 77")
