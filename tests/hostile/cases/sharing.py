"""Kind 14: several files per sample, parts that share a module, and texts without a library."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.hostile.harness import Box, case

ROWS = 24
FILES = {"photos": {"array": ["front", "back"]}}
ENCODER = {"module": "ConvExtractor", "args": {"channels": [4]}}


def write(
    inputs: dict[str, Any] | None = None, parts: dict[str, Any] | None = None, back_side: int = 6, text: str = "one two"
) -> None:
    """Writes ``m.csv`` with two arrays and a text per row, and ``x.yaml``."""
    random = np.random.default_rng(0)
    rows = []
    for row in range(ROWS):
        for name, side in (("front", 6), ("back", back_side)):
            np.save(f"{name}{row}.npy", random.random((3, side, side)).astype(np.float32))
        rows.append([f"front{row}.npy", f"back{row}.npy", text, "abc"[row % 3]])
    with Path("m.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["front", "back", "note", "label"], *rows])
    model = {"num_classes": 3, "parts": parts or {"photos": ENCODER}}
    data = {"path": "m.csv", "inputs": inputs or FILES, "target": "label", "workers": 0, "batch_size": 8}
    content = {
        "model": {"class_path": "HybridClassifier", "init_args": model},
        "data": {"class_path": "ManifestDataModule", "init_args": data},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
    }
    Path("x.yaml").write_text(yaml.safe_dump(content))


def refused(box: Box, says: str) -> None:
    """Both commands refuse ``x.yaml``."""
    for verb in ("check", "fit"):
        box.refused(verb, "--config", "x.yaml", says=says)


@case(14, "several files", "as one encoder reads them")
def several_files(box: Box) -> None:
    write()
    box.accepted("check", "--config", "x.yaml")
    box.accepted("fit", "--config", "x.yaml")


@case(14, "several files", "pooling of one column")
def pooling_of_one_column(box: Box) -> None:
    write({"photos": {"array": "front", "pool": "mean"}})
    refused(box, r"data\.inputs\.photos\.pool: .*'front' is one column")


@case(14, "several files", "unknown pooling")
def unknown_pooling(box: Box) -> None:
    write({"photos": {"array": ["front", "back"], "pool": {"mean": "max"}}})
    refused(box, r"data\.inputs\.photos\.pool: unknown pooling")


@case(14, "several files", "the same column twice")
def same_column_twice(box: Box) -> None:
    write({"photos": {"array": ["front", "front"]}})
    refused(box, r"data\.inputs\.photos\.array: .*names a column twice")


@case(14, "several files", "the target among them")
def target_among_them(box: Box) -> None:
    write({"photos": {"array": ["front", "label"]}})
    refused(box, r"data\.inputs\.photos: column 'label' is the target")


@case(14, "several files", "columns of different shapes")
def different_shapes(box: Box) -> None:
    write(back_side=5)
    refused(box, r"different shapes")


@case(14, "several files", "something else beside them")
def beside_them(box: Box) -> None:
    inputs = {**FILES, "note": {"text": "note"}}
    write(inputs, {"photos": {**ENCODER, "input": ["photos", "note"]}})
    refused(box, r"model\.parts\.photos\.input: 'photos' has several files per sample")


def two_parts(**back: Any) -> None:
    write({"front": {"array": "front"}, "back": {"array": "back"}}, {"front": ENCODER, "back": back})


@case(14, "shared module", "a rate of its own")
def rate_of_its_own(box: Box) -> None:
    two_parts(share="front", lr_scale=0.1)
    refused(box, r"model\.parts\.back\.lr_scale: it has the module of 'front'")


@case(14, "shared module", "an unfreezing of its own")
def unfreezing_of_its_own(box: Box) -> None:
    two_parts(share="front", unfreeze="never")
    refused(box, r"model\.parts\.back\.unfreeze: it has the module of 'front'")


@case(14, "shared module", "of no part")
def of_no_part(box: Box) -> None:
    two_parts(share={"front": None})
    refused(box, r"model\.parts\.back\.share: .*is not a part whose module")


@case(14, "shared module", "of itself")
def of_itself(box: Box) -> None:
    two_parts(share="back")
    refused(box, r"model\.parts\.back\.share: 'back' is not a part whose module")


@case(14, "shared module", "of a part that reads it")
def of_its_reader(box: Box) -> None:
    write({"back": {"array": "back"}}, {"front": {**ENCODER, "input": "back"}, "back": {"share": "front"}})
    refused(box, r"model\.parts: 'back', 'front' depend on each other \(a circular dependency\), or share")


@case(14, "words of a text", "none in the training rows")
def no_words(box: Box) -> None:
    write({"note": {"text": "note"}}, {"note": {"module": "BagOfWords"}}, text="...")
    refused(box, r"data\.inputs\.note: no training row has a word")


@case(14, "words of a text", "a length of nothing")
def length_of_nothing(box: Box) -> None:
    write({"note": {"text": "note", "length": 0}}, {"note": {"module": "BagOfWords"}})
    refused(box, r"data\.inputs\.note\.length: 0 is not a number at least 1")
