"""What a split by rows makes of patients who have several rows, and what a split by patients does."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hybrid_lightning.cli.metrics_table import read_rows
from tests.small import changed, command

PATIENTS, VISITS, FEATURES = 100, 5, 16


@pytest.fixture
def study(folder: Path) -> Path:
    """Labels drawn at random for each patient: no feature tells anything of them but who the patient is."""
    random = np.random.default_rng(1)
    templates = random.standard_normal((PATIENTS, FEATURES))
    labels = random.permutation(np.arange(PATIENTS) % 2)
    with Path("study.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", "label", "split", *(f"f{number}" for number in range(FEATURES))])
        for patient in np.repeat(np.arange(PATIENTS), VISITS):
            visit = templates[patient] + 0.1 * random.standard_normal(FEATURES)
            split = "val" if random.random() < 0.5 else "train"
            writer.writerow([f"p{patient:03}", "ill" if labels[patient] else "well", split, *visit.round(4)])
    return folder


def accuracy(name: str, **split: object) -> float:
    """Of the validation, after a run through the command line."""
    inputs = {"visit": {"numeric": [f"f{number}" for number in range(FEATURES)]}}
    arguments = {"path": "study.csv", "inputs": inputs, "target": "label", "batch_size": 50, **split}
    changes = {
        "data": {"class_path": "ManifestDataModule", "init_args": arguments},
        "init.num_classes": 2,
        "init.parts": {"visit": {"module": "MLP", "args": {"hidden": [128]}}},
        "init.lr": 0.01,
        "trainer.max_epochs": 20,
        "trainer.limit_train_batches": 1.0,
        "trainer.check_val_every_n_epoch": 20,
        "trainer.num_sanity_val_steps": 0,
        "trainer.enable_checkpointing": False,
        "name": name,
    }
    assert command("fit", config=changed(changes)) == 0
    [table] = Path("runs", name).rglob("metrics.csv")
    return float([row["val/accuracy"] for row in read_rows(table) if row["val/accuracy"]][-1])


def test_a_split_by_rows_lets_a_model_recognize_patients_and_split_by_does_not(study):
    halves = {"fractions": {"val": 0.5, "test": 0.0}}
    by_rows, by_patients = accuracy("rows", **halves), accuracy("patients", **halves, split_by="patient")
    print(f"accuracy of validation: split by rows {by_rows:.2f}, by patients {by_patients:.2f}")
    assert by_rows > 0.8
    assert 0.3 < by_patients < 0.7  # chance among 50 patients is 0.5 ± 0.07


def test_a_split_column_that_puts_a_patient_into_two_splits_is_refused(study, capsys):
    for verb in ("fit", "check"):
        arguments = {"path": "study.csv", "inputs": {"visit": {"numeric": ["f0"]}}, "target": "label"}
        arguments |= {"split_column": "split", "split_by": "patient"}
        data = {"class_path": "ManifestDataModule", "init_args": arguments}
        parts = {"visit": {"module": "MLP"}}
        assert command(verb, config=changed({"data": data, "init.num_classes": 2, "init.parts": parts})) == 2
        err = capsys.readouterr().err
        assert "values of 'patient' are in more than one split, such as 'p0" in err
        assert "data.split_by" in err
