import json
import os
from pathlib import Path

import pytest
import torch

from hybrid_lightning.cache.store import FeatureStore

DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool]


def filled(store, key="train-image-1", dtype=torch.float32, rows=5):
    tensor = store.allocate(key, (rows, 3), dtype)
    tensor.copy_((torch.arange(rows * 3).view(rows, 3) % 7).to(dtype))
    store.keep(key, tensor)
    return tensor


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("budget", [0, 1e6])
def test_what_is_kept_is_found_again(folder, dtype, budget):
    store = FeatureStore(folder, budget)
    tensor = filled(store, dtype=dtype)
    assert torch.equal(store.find("train-image-1", 5), tensor)
    assert tensor.dtype == dtype
    assert folder.exists() == (budget == 0), "within the budget nothing is written"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_later_process_finds_files_but_not_what_was_in_memory(folder, dtype):
    tensor = filled(FeatureStore(folder, 0), dtype=dtype)
    assert torch.equal(FeatureStore(folder, 1e6).find("train-image-1", 5), tensor)
    assert FeatureStore(folder, 1e6).find("train-image-2", 5) is None
    filled(FeatureStore(folder, 1e6), "val-image-3")
    assert FeatureStore(folder, 1e6).find("val-image-3", 5) is None


def test_the_budget_is_for_all_tensors_together(folder):
    store = FeatureStore(folder, 100)
    for key in ("a", "b"):
        filled(store, key)
    assert [path.stem for path in folder.glob("*.features")] == ["b"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def of_another_shape(path: Path) -> None:
    about = path.with_suffix(".json")
    about.write_text(json.dumps({**json.loads(about.read_text()), "shape": [5, 2]}))


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, 10),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, 1000),
    "undescribed": lambda path: path.with_suffix(".json").unlink(),
    "described by nonsense": lambda path: path.with_suffix(".json").write_text('["x"]'),
    "of another shape": of_another_shape,
    "of no type": lambda path: path.with_suffix(".json").write_text('{"shape": [5, 3], "dtype": "nn", "checksum": ""}'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_not_read_and_can_be_written_again(folder, damage):
    filled(FeatureStore(folder, 0))
    damage(folder / "train-image-1.features")
    store = FeatureStore(folder, 0)
    with pytest.warns(UserWarning, match=r"cache: .*train-image-1\.features is damaged and computed again"):
        assert store.find("train-image-1", 5) is None
    assert store.find("train-image-1", 5) is None, "one warning is enough"
    tensor = filled(store)
    assert torch.equal(FeatureStore(folder, 0).find("train-image-1", 5), tensor)


def test_a_file_of_another_number_of_rows_is_not_read(folder):
    filled(FeatureStore(folder, 0))
    with pytest.warns(UserWarning, match="of something else"):
        assert FeatureStore(folder, 0).find("train-image-1", 6) is None


def test_a_file_that_was_not_finished_is_not_there(folder):
    store = FeatureStore(folder, 0)
    store.allocate("a", (5, 3), torch.float32).fill_(1)
    assert FeatureStore(folder, 0).find("a", 5) is None
    store.keep_only(())
    assert not folder.exists()


def test_two_runs_may_fill_in_the_same_features_at_a_time(folder):
    stores = [FeatureStore(folder, 0), FeatureStore(folder, 0)]
    tensors = [store.allocate("a", (5, 3), torch.float32) for store in stores]
    for tensor in tensors:
        tensor.fill_(2)
    for store, tensor in zip(stores, tensors, strict=True):
        store.keep("a", tensor)
    stores[0].keep_only(())
    assert torch.equal(tensors[1], torch.full((5, 3), 2.0)), "it is still mapped"
    assert folder.exists() is False
    again = filled(stores[1], "b")
    stores[0].keep_only(())
    assert torch.equal(FeatureStore(folder, 0).find("b", 5), again), "the folder is not empty"


def test_a_full_disk_is_an_error_before_anything_is_written(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        FeatureStore(folder, 0).allocate("a", (5, 3), torch.float32)


def test_what_is_forgotten_is_gone_from_memory_and_disk(folder):
    store = FeatureStore(folder, 60)
    for key in ("a", "b"):
        filled(store, key)
    store.keep_only(["a"])
    assert store.find("b", 5) is None
    assert store.find("a", 5) is not None
    store.keep_only(())
    assert store.find("a", 5) is None
    assert not folder.exists()
