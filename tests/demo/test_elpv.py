import sys

import pytest
import torch

from hybrid_lightning.demo.elpv import ElpvDataModule
from hybrid_lightning.errors import ConfigError


@pytest.fixture(scope="module")
def elpv(elpv_is_unpacked_once: None) -> ElpvDataModule:
    data = ElpvDataModule(batch_size=16, size=8)
    data.setup()
    return data


def test_the_splits_hold_all_cells_and_each_class_and_type_alike(elpv):
    kinds = {name: 2 * s.targets + s.entries["type"][:, 1].long() for name, s in elpv.splits.items()}
    assert {name: len(kind) for name, kind in kinds.items()} == {"train": 1673, "val": 296, "test": 655}
    shares = torch.stack([kind.bincount(minlength=4) / len(kind) for kind in kinds.values()])
    assert (shares.amax(0) - shares.amin(0)).max() < 0.01


def test_a_batch_has_the_promised_shapes_and_range(elpv):
    batch = next(iter(elpv.train_dataloader()))
    assert (batch["image"].shape, batch["image"].dtype) == ((16, 3, 8, 8), torch.float32)
    assert (batch["type"].shape, batch["target"].shape) == ((16, 2), (16,))
    assert batch["image"].min() >= 0
    assert batch["image"].max() <= 1
    assert batch["type"].sum(1).eq(1).all()


def test_the_test_split_is_the_same_whatever_the_validation_split_is(elpv):
    other = ElpvDataModule(batch_size=16, size=8, val_fraction=0.3, seed=5)
    other.setup()
    assert torch.equal(other.splits["test"].entries["image"], elpv.splits["test"].entries["image"])
    assert len(other.splits["val"]) == 591


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"size": 301}, r"^data\.size: 301"), ({"val_fraction": 1}, r"^data\.val_fraction: 1 is not between")],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ElpvDataModule(**arguments)


def test_without_the_data_the_error_names_the_extra_and_the_license(monkeypatch):
    monkeypatch.setitem(sys.modules, "elpv_dataset", None)
    monkeypatch.setitem(sys.modules, "elpv_dataset.utils", None)
    with pytest.raises(ConfigError, match=r"not for commercial use.*'hybrid_lightning\[elpv\]'"):
        ElpvDataModule().setup()
