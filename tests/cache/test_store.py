import hashlib
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from hybrid_lightning import files
from hybrid_lightning.cache import feature_file
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
    content[7] ^= 1
    path.write_bytes(content)


def describe(path: Path, text: str) -> None:
    path.write_bytes(path.read_bytes()[:ABOUT] + text.ljust(512).encode())


def of_another_shape(path: Path) -> None:
    about = json.loads(path.read_bytes()[ABOUT:])
    describe(path, json.dumps({**about, "shape": [5, 2]}))


ABOUT = 5 * 3 * 4  # bytes of values, before their description
DAMAGES = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, 10),
    "without its end": lambda path: os.truncate(path, ABOUT + 500),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: os.truncate(path, 1000),
    "undescribed": lambda path: describe(path, ""),
    "described by nonsense": lambda path: describe(path, '["x"]'),
    "of another shape": of_another_shape,
    "of no type": lambda path: describe(path, '{"shape": [5, 3], "dtype": "nn", "checksum": ""}'),
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


def test_what_no_process_uses_any_more_is_removed_and_what_one_uses_is_not(folder):
    folder.mkdir()
    for name in ("killed.features", "killed.features.1-2.part"):
        (folder / name).write_bytes(b"x")
    store = FeatureStore(folder, 0)
    assert [path.name for path in folder.iterdir()] == ["killed.features"], "it may be whole, and of use"
    other = FeatureStore(folder, 0)
    filling = other.allocate("filling", (5, 3), torch.float32)
    used = filled(other, "used")
    filled(store, "own")
    FeatureStore(folder, 0)
    store.keep_only(())
    assert sorted(path.name.split(".")[0] for path in folder.iterdir()) == ["filling", "used"]
    other.keep("filling", filling)
    assert torch.equal(FeatureStore(folder, 0).find("used", 5), used)
    other.keep_only(())
    assert not folder.exists()


def test_processes_that_share_files_write_to_the_same_memory_and_one_describes_it(folder):
    first = FeatureStore(folder, 0, "together")
    second = FeatureStore(folder, 0, "together", writes=False)
    tensors = [store.allocate("a", (4, 2), torch.float32) for store in (first, second)]
    tensors[0][:2] = 1
    tensors[1][2:] = 2
    assert torch.equal(*tensors)
    for store, tensor in zip((first, second), tensors, strict=True):
        store.keep("a", tensor)
    assert len(list(folder.iterdir())) == 1
    later = FeatureStore(folder, 0, writes=False)
    assert torch.equal(later.find("a", 4), tensors[0])
    second.keep_only(())
    later.keep_only(())
    assert folder.exists()
    first.keep_only(())
    assert not folder.exists()


def test_a_folder_that_was_removed_while_it_was_filled_in_is_no_error(folder):
    store = FeatureStore(folder, 0)
    tensor = store.allocate("a", (5, 3), torch.float32)
    shutil.rmtree(folder)
    store.keep("a", tensor.fill_(3))
    assert torch.equal(store.find("a", 5), torch.full((5, 3), 3.0))
    assert FeatureStore(folder, 0).find("a", 5) is None


def test_features_without_rows_or_values_are_kept(folder):
    for budget in (0, 1e6):
        store = FeatureStore(folder, budget)
        store.keep("a", store.allocate("a", (5, 0), torch.float32))
        assert store.find("a", 5).shape == (5, 0)


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


def test_files_work_without_locks_which_not_every_system_has(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    spec = importlib.util.spec_from_file_location("without_locks", files.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    monkeypatch.setattr(feature_file, "lock", without.lock)
    tensor = feature_file.create(folder / "new", (2, 3), torch.float32).fill_(4)
    feature_file.finish(tensor, folder / "new", folder / "whole")
    feature_file.remove_unused(folder, "*")
    kept = feature_file.read(folder / "whole", 2, is_checked=True)
    assert torch.equal(kept, torch.full((2, 3), 4.0))


def test_what_is_no_file_of_features_counts_as_not_there(tmp_path):
    os.mkfifo(tmp_path / "pipe.features")
    checksum = hashlib.blake2b(bytes(3), digest_size=16).hexdigest()
    about = json.dumps({"shape": [3], "dtype": "quint8", "checksum": checksum})
    (tmp_path / "odd.features").write_bytes(bytes(3) + about.ljust(512).encode())
    store = FeatureStore(tmp_path, 0)
    for key in ("pipe", "odd"):
        with pytest.warns(UserWarning, match=f"{key}.features is damaged"):
            assert store.find(key, 3) is None
