"""Manifests with files: what only frozen parts read is not decoded again."""

import csv
from collections import Counter

import pytest
import torch

from hybrid_lightning import HybridClassifier, ManifestDataModule
from hybrid_lightning.data.inputs.images import ImageInput
from tests.data.make_files import make_manifest
from tests.tables import write_rows
from tests.tiny import trainer

CONV = {"module": "ConvExtractor", "args": {"channels": [4]}}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = make_manifest(tmp_path_factory.mktemp("files"), rows=24, missing=0)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["photo" if number % 2 else "xray"] *= number % 5 > 0
    write_rows(path, rows)
    return path


@pytest.fixture
def loads(monkeypatch):
    """Folder → how often one of its files was read."""
    counted = Counter()
    load = ImageInput.load

    def counting(self, path, training):
        counted[path.parent.name] += 1
        return load(self, path, training)

    monkeypatch.setattr(ImageInput, "load", counting)
    return counted


def fitted(manifest, cache, frozen=("photo",), epochs=4, **options):
    torch.manual_seed(0)
    inputs = {"photo": {"image": "photo", "size": 8}, "xray": {"image": "xray", "size": 8}}
    data = ManifestDataModule(
        str(manifest),
        inputs,
        target="label",
        split_column="split",
        batch_size=4,
        workers=0,
        checks=False,
        **options,
    )
    parts = {}
    for name in inputs:
        parts[name] = {**CONV, "unfreeze": "never" if name in frozen else "always"}
    fusion = {"args": {"standardize": "features"}}
    model = HybridClassifier(num_classes=3, parts=parts, fusion=fusion, lr=0.01, cache=cache)
    runner = trainer(max_epochs=epochs)
    torch.manual_seed(7)
    runner.fit(model, datamodule=data)
    return model, runner.callback_metrics["val/loss"]


LOOKED_AT = 5 * 2 * 2
"""Files of a key by which, in five epochs, a change of the data would be noticed: two of each split."""


def test_a_cached_fit_is_as_a_live_one(manifest):
    (live, live_loss), (cached, cached_loss) = (fitted(manifest, cache) for cache in (False, True))
    torch.testing.assert_close(live_loss, cached_loss, rtol=0, atol=1e-4)
    for name, value in live.state_dict().items():
        torch.testing.assert_close(value, cached.state_dict()[name], rtol=0, atol=1e-4, msg=name)


def test_files_of_frozen_parts_are_read_once_and_the_others_in_every_epoch(manifest, loads):
    counts = []
    for epochs in (4, 9):
        loads.clear()
        fitted(manifest, True, epochs=epochs)
        counts.append(dict(loads))
    assert counts[1]["photos"] - counts[0]["photos"] <= LOOKED_AT
    assert counts[1]["xrays"] - counts[0]["xrays"] > 3 * LOOKED_AT


def test_with_all_files_read_by_frozen_parts_no_file_is_read_again(manifest, loads):
    counts = []
    for epochs in (4, 9):
        loads.clear()
        fitted(manifest, True, frozen=("photo", "xray"), epochs=epochs)
        counts.append(sum(loads.values()))
    assert counts[1] - counts[0] <= 2 * LOOKED_AT


@pytest.mark.parametrize(("key", "is_live"), [("photo", True), ("xray", False)])
def test_an_augmentation_makes_the_parts_that_read_its_key_live(manifest, caplog, key, is_live):
    caplog.set_level("INFO")
    augment = {key: [{"class_path": "RandomNoise", "init_args": {"std": 0.1}}]}
    losses = [fitted(manifest, cache, augment=augment)[1] for cache in (False, True)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-4)
    [line] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("cache: ")]
    assert ("stays live: what it reads changes at random" in line) == is_live
