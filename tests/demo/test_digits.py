import sys

import pytest
import torch
from sklearn.datasets import load_digits

from hybrid_lightning.demo import digits
from hybrid_lightning.demo.digits import DigitsDataModule
from hybrid_lightning.errors import ConfigError


def splits(**options) -> dict[str, torch.Tensor]:
    data = DigitsDataModule(**{"classes": [3, 7], "size": 8, **options})
    data.setup()
    return {name: split.entries for name, split in data.splits.items()}


def as_rows(images: torch.Tensor) -> set[tuple[float, ...]]:
    return {tuple(image.flatten().tolist()) for image in images}


def test_images_at_their_own_size_are_the_digits_that_scikit_learn_ships():
    digits = load_digits()
    originals = as_rows(torch.from_numpy(digits.images[(digits.target == 3) | (digits.target == 7)]).float() / 16)
    found = splits().values()
    images = torch.cat([entries["image"] for entries in found])
    assert torch.equal(images[:, 0], images[:, 2])
    assert as_rows(images[:, 0]) == originals, "every sample is in a split"
    assert len(images) == len(originals), "and in one only"


def test_each_class_is_split_alike_and_labels_are_positions():
    counts = {digit: int((load_digits().target == digit).sum()) for digit in (7, 3)}
    found = splits(classes=[7, 3], val_fraction=0.1, test_fraction=0.3)
    for position, digit in enumerate((7, 3)):
        sizes = {name: int((entries["target"] == position).sum()) for name, entries in found.items()}
        test, val = round(0.3 * counts[digit]), round(0.1 * counts[digit])
        assert sizes == {"test": test, "val": val, "train": counts[digit] - test - val}


def test_a_batch_has_the_promised_shapes():
    data = DigitsDataModule(classes=[0, 1, 2], batch_size=4, size=16)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert (batch["image"].shape, batch["image"].dtype) == ((4, 3, 16, 16), torch.float32)
    assert (batch["target"].shape, batch["target"].dtype) == ((4,), torch.int64)
    assert 0 <= batch["image"].min() < batch["image"].max() <= 1


def test_the_split_follows_its_own_seed_and_not_the_models():
    first = splits(seed=1)["train"]["image"]
    torch.manual_seed(99)
    assert torch.equal(splits(seed=1)["train"]["image"], first)
    assert not torch.equal(splits(seed=2)["train"]["image"], first)


@pytest.mark.parametrize("classes", [[3], [], [3, 3], [3, 10], [-1, 3]])
def test_impossible_classes_are_refused(classes):
    with pytest.raises(ConfigError, match=r"^data\.classes: .* are not at least two different digits from 0 to 9"):
        DigitsDataModule(classes=classes)


@pytest.mark.parametrize(("val", "test"), [(0, 0.2), (0.2, 0), (0.5, 0.5), (-0.1, 0.2)])
def test_impossible_fractions_are_refused(val, test):
    with pytest.raises(ConfigError, match=r"^data: val_fraction and test_fraction are above 0, and together below 1"):
        DigitsDataModule(classes=[3, 7], val_fraction=val, test_fraction=test)


def test_a_missing_package_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._digits.cache_clear()
    with pytest.raises(ConfigError, match=r"needs sklearn: .* Install it with: pip install .*\[demo\]"):
        splits()
