"""Gaps that a model has not been trained with, through the command line."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid_lightning.cli import main

QUICK = {"max_epochs": 1, "log_every_n_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"}


def write_rows(path: str, gap: bool) -> None:
    with Path(path).open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "dose", "label"])
        writer.writerows([["" if gap and not i else i % 7, i % 5, "yes" if i % 2 else "no"] for i in range(30)])


@pytest.fixture
def config(folder: Path) -> dict[str, Any]:
    write_rows("whole.csv", gap=False)
    write_rows("gap.csv", gap=True)
    inputs = {"age": {"numeric": "age"}, "dose": {"numeric": "dose"}}
    data = {"path": "whole.csv", "inputs": inputs, "target": "label"}
    model = {"num_classes": 2, "parts": {"age": {"module": "MLP"}, "dose": {"module": "MLP"}}}
    return {
        "model": {"class_path": "HybridClassifier", "init_args": model},
        "data": {"class_path": "ManifestDataModule", "init_args": data},
        "trainer": QUICK,
    }


def run(config: dict[str, Any], *words: str) -> int:
    Path("x.yaml").write_text(yaml.safe_dump(config))
    return main([words[0], "--config", "x.yaml", *words[1:]])


def test_a_gap_that_training_never_had_is_told_with_the_remedy(config, capsys):
    assert run(config, "fit") == 0
    assert run(config, "predict", "--ckpt_path", "last", "--data.predict_path", "gap.csv") == 2
    said = capsys.readouterr().err
    assert "nothing that part 'age' reads, and the model was trained without such samples" in said
    assert "modality_dropout" in said


def test_modality_dropout_prepares_for_gaps_that_training_does_not_have(config, capsys):
    config["model"]["init_args"]["fusion"] = {"args": {"modality_dropout": 0.3}}
    assert run(config, "fit") == 0
    words = ("predict", "--ckpt_path", "last", "--data.predict_path", "gap.csv", "--output", "p.csv")
    assert run(config, *words) == 0
    first, second = list(csv.DictReader(Path("p.csv").read_text().splitlines()))[:2]
    assert float(first["contribution_age"]) == 0
    assert float(second["contribution_age"]) != 0
