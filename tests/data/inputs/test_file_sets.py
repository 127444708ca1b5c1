import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid_lightning.data.augment import make_augmentation
from hybrid_lightning.errors import ConfigError
from tests.data.inputs.bound import bound

COLUMNS = {"row": range(3), "front": ["0.png", "1.png", None], "back": ["2.png", None, None]}


@pytest.fixture
def photos(tmp_path):
    for name, gray in enumerate((50, 100, 200)):
        Image.fromarray(np.full((4, 6), gray, np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def curves(folder, **given):
    for name, length in (("a", 2), ("b", 4), ("c", 3)):
        np.save(folder / f"{name}.npy", np.arange(length, dtype=np.float32) + len(name) * length)
    columns = {"row": range(2), "one": ["a.npy", "b.npy"], "two": ["c.npy", None]}
    return bound(folder, columns, series=["one", "two"], **given)


def test_a_batch_has_all_files_and_tells_which_are_there(photos):
    entry = bound(photos, COLUMNS, image=["front", "back"], size=4, channels=1)
    values = [entry.read(0, False), entry.read(1, False), None]
    batch = entry.collate(values, values[1])
    assert batch["values"].shape == (3, 2, 1, 4, 4)
    assert batch["present"].tolist() == [[True, True], [True, False], [False, False]]
    expected = torch.tensor([[50, 200], [100, 0], [0, 0]]) / 255
    assert torch.equal(batch["values"].amax((2, 3, 4)), expected)
    assert entry.inferred_arguments == {"files_pool": "mean"}
    assert entry.empty(bound_table(photos)).tolist() == [False, False, True]
    assert pickle.loads(pickle.dumps(entry)).read(1, False)[1] is None


def bound_table(folder):
    from hybrid_lightning.data.table import Table

    return Table.read(folder / "manifest.csv")


def test_series_of_different_lengths_are_padded_together_and_share_their_scale(tmp_path):
    entry = curves(tmp_path)
    batch = entry.collate([entry.read(0, False), entry.read(1, False)], entry.read(0, False))
    assert batch["values"].shape == (2, 2, 4, 1)
    assert batch["mask"].sum(2).tolist() == [[2, 3], [4, 0]]
    every = np.concatenate([np.load(tmp_path / f"{name}.npy") for name in "abc"])
    assert entry.statistics == {"mean": [pytest.approx(every.mean())], "std": [pytest.approx(every.std())]}
    alone = curves(tmp_path, standardize=False)
    assert alone.statistics == {}


def test_an_unreadable_file_is_named_with_its_row(photos):
    (photos / "1.png").write_bytes(b"no image")
    entry = bound(photos, COLUMNS, image=["back", "front"], size=4)
    with pytest.raises(ConfigError, match=r"^data\.inputs\.x: row 1: '1\.png': cannot be read"):
        entry.read(1, False)


def test_augmentation_changes_each_file_by_itself_and_leaves_missing_ones():
    torch.manual_seed(0)
    noise = make_augmentation({"x": [{"class_path": "RandomNoise", "init_args": {"std": 1.0}}]}, ["x"])
    present = torch.tensor([[True, True], [True, False]])
    values = noise({"x": {"values": torch.zeros(2, 2, 3, 4, 4), "present": present}})["x"]["values"]
    assert values.shape == (2, 2, 3, 4, 4)
    spreads = values.std((2, 3, 4))
    assert spreads[1, 1] == 0
    assert len(set(spreads.flatten().tolist())) == 4
