"""Several files per sample, from YAML to predictions, by the command line."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processes import succeed_on
from tests.small import QUIET, changed, command, write
from tests.tables import write_rows

ROWS = 48
PARTS = {"photos": {"module": "ConvExtractor", "args": {"channels": [4]}}, "size": {"module": "MLP"}}
INPUTS = {"photos": {"image": ["front", "back"], "size": 8, "pool": "max"}, "size": {"numeric": ["size"]}}


@pytest.fixture
def folder(folder):
    """``m.csv``: each row has a photo of its front, of its back, of both or of neither; one of them shows the label."""
    random = np.random.default_rng(0)
    rows = []
    for row in range(ROWS):
        pixels = random.integers(0, 90, (2, 8, 8, 3))
        pixels[random.integers(2), ..., row % 3] += 150
        for name, side in zip(("front", "back"), pixels, strict=True):
            Image.fromarray(side.astype(np.uint8)).save(f"{name}{row}.png")
        cells = {"front": f"front{row}.png", "back": f"back{row}.png", "size": row, "label": "abc"[row % 3]}
        cells |= {"back": ""} if row % 8 == 1 else {}
        cells |= {"front": "", "back": ""} if row % 16 == 5 else {}
        rows.append(cells)
    write_rows("m.csv", rows)
    return folder


def config(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    data = {"path": "m.csv", "inputs": INPUTS, "target": "label", "batch_size": 8, "workers": 0}
    return changed(
        {
            "init.parts": PARTS,
            "data": {"class_path": "ManifestDataModule", "init_args": data},
            "trainer": {"max_epochs": 2, **QUIET},
            **(changes or {}),
        }
    )


def test_what_is_written_in_the_input_holds_from_check_to_export(folder, capsys):
    assert command("check", config=config()) == 0
    printed = capsys.readouterr().out
    for line in ("photos.front", "photos.back empty"):
        assert line in printed
    assert command("fit", "--name", "run", config=config()) == 0
    checkpoint = str(next(Path("runs").glob("run/**/last.ckpt")))
    assert command("predict", "--ckpt_path", checkpoint, "--output", "p.csv", config=config()) == 0
    assert command("probe", config=config()) == 0
    assert command("embed", "--ckpt_path", checkpoint, "--output", "e.npz", config=config()) == 0
    assert command("export", "--ckpt_path", checkpoint, "--output", "n.pt2", config=config()) == 0
    program = torch.export.load("n.pt2").module()
    photos = {"values": torch.rand(5, 2, 3, 8, 8), "present": torch.ones(5, 2, dtype=torch.bool)}
    batch = {"photos": photos, "size": torch.zeros(5, 1), "present/photos": torch.ones(5, dtype=torch.bool)}
    assert program(batch).shape == (5, 3)


def last_row(name: str) -> dict[str, str]:
    [path] = Path("runs").glob(f"{name}/**/metrics.csv")
    return list(csv.DictReader(path.read_text().splitlines()))[-1]


def test_a_frozen_part_is_cached_with_its_files_pooled(folder):
    losses = []
    for cache in ("false", "true"):
        options = {"init.parts.photos.unfreeze": "never", "init.cache": cache == "true"}
        name = f"run{cache}"
        assert command("fit", "--name", name, config=config(options)) == 0
        losses.append(float(last_row(name)["val/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.exhaustive
def test_two_ranks_share_the_samples(folder):
    write(config())
    words = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    succeed_on(2, "-m", "hybrid_lightning", "fit", "--config", "small.yaml", *words, cwd=folder)
