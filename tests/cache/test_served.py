import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Subset

from hybrid_lightning.cache.served import ServedDataset
from hybrid_lightning.cache.splits import Split
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.resume.seeded_loaders import Drawn, SeededDataset, SeededLoader, seeded
from tests.cache.fits import Files, entries, files, in_memory

FEATURES = {"tower": torch.arange(30.0)[:, None]}


def served(dataset, collate=torch.utils.data.default_collate, **options):
    return ServedDataset(dataset, collate, FEATURES, {"old"}, **options)


def assert_batch(batch, rows):
    assert batch["cached"]["tower"].flatten().tolist() == rows
    assert batch["cached_index"].tolist() == rows
    assert torch.equal(batch["new"], entries()["new"][rows])
    assert torch.equal(batch["target"], entries()["target"][rows])
    assert "old" not in batch


@pytest.mark.parametrize("number", [int, lambda i: torch.tensor(i).numpy()[()]])
def test_a_batch_has_features_and_what_is_left_of_the_samples(number):
    rows = [3, 0, 29]
    drawn = [number(row) for row in rows]
    assert_batch(served(DictDataset(entries()), as_batch).__getitems__(drawn), rows)
    assert_batch(served(Files()).__getitems__(drawn), rows)


def test_negative_indices_count_from_the_end():
    assert_batch(served(DictDataset(entries()), as_batch).__getitems__([-1, 2]), [29, 2])


def test_a_dataset_that_can_leave_keys_out_does_not_read_them():
    class Counting(DictDataset):
        def __getitems__(self, indices):
            read.append(set(self.entries))
            return super().__getitems__(indices)

    read = []
    served(Counting(entries()), as_batch).__getitems__([1])
    assert read == [{"new", "target"}]
    served(Subset(Counting(entries()), range(5, 35)[:30]), as_batch)
    inner = Subset(Counting(entries(40)), list(range(10, 40)))
    batch = served(inner, as_batch).__getitems__([0])
    assert torch.equal(batch["new"], entries(40)["new"][[10]])
    assert read[-1] == {"new", "target"}


def test_workers_stay_where_a_batch_needs_the_files():
    loader = files(shuffle=False, num_workers=1)
    original = loader.dataset
    split = Split("train", loader, True, 8)
    split.serve(served(original))
    assert loader.num_workers == 1
    rest = {key: entries()[key] for key in ("new", "target")}
    split.serve(served(original, rest=rest))
    assert loader.num_workers == 0
    split.restore()
    assert loader.num_workers == 1


def test_with_the_rest_in_memory_nothing_is_read():
    files = Files()
    rest = {key: entries()[key] for key in ("new", "target")}
    assert_batch(served(files, rest=rest).__getitems__([4, 4]), [4, 4])
    assert files.reads == 0


def test_a_retired_part_is_read_again_and_the_others_are_served_on():
    features = {**FEATURES, "other": FEATURES["tower"]}
    one = ServedDataset(Files(), torch.utils.data.default_collate, features, {"old"}, None)
    copied = one.with_inner(lambda inner: inner)
    one.retire(["tower"])
    batch = copied.__getitems__([2])
    assert list(batch["cached"]) == ["other"]
    assert torch.equal(batch["old"], entries()["old"][[2]]), "an iterator that runs follows"


def test_indices_that_are_no_numbers_give_the_original_batch():
    class ByName(Files):
        def __getitem__(self, index):
            return super().__getitem__(int(index[1:]))

    batch = served(ByName()).__getitems__(["n3", "n4"])
    assert set(batch) == {"old", "new", "target"}


def test_it_has_the_length_and_attributes_of_the_original_and_can_be_sent_to_a_worker():
    one = served(DictDataset(entries()), as_batch)
    again = pickle.loads(pickle.dumps(one))
    assert len(again) == 30
    assert torch.equal(again.targets, entries()["target"])
    assert_batch(again.__getitems__([5]), [5])
    assert torch.equal(one[3]["old"], entries()["old"][3])


@pytest.mark.parametrize("make", [Files, lambda: DictDataset(entries())])
def test_what_is_set_on_it_reaches_the_dataset(make):
    dataset = make()
    stand_in = served(dataset, as_batch)
    stand_in.strength = 3
    assert dataset.strength == stand_in.strength == 3
    stand_in.workers = (2, 0.0)
    assert not hasattr(dataset, "workers")
    wrapped = stand_in.with_inner(lambda inner: inner)
    wrapped.strength = 4
    assert dataset.strength == 4


def test_samples_that_are_read_live_are_seeded_as_without_the_cache():
    loaders = [files(random="new"), files(random="new")]
    drawn = Drawn("0/0/0/0", [1, 1, 8])
    plain = SeededDataset(loaders[0].dataset, 5, 0).__getitems__(drawn)
    batch = seeded(served(loaders[1].dataset), 5, 0).__getitems__(drawn)
    assert torch.equal(batch["new"], torch.stack([sample["new"] for sample in plain]))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_serves_in_its_own_order_until_the_original_is_put_back(workers):
    options = {"num_workers": workers, "persistent_workers": bool(workers)}
    loader = in_memory(shuffle=False, **options)
    original = loader.dataset
    before = list(loader)
    split = Split("train", loader, True, 8)
    split.serve(served(original, as_batch))
    split.serve(loader.dataset)
    assert split.dataset is original
    assert loader.num_workers == 0, "what is in memory needs none"
    assert_batch(next(iter(loader)), list(range(8)))
    assert isinstance(loader, DataLoader)
    split.restore()
    split.restore()
    assert loader.dataset is original
    assert loader.num_workers == workers
    assert torch.equal(next(iter(loader))["old"], before[0]["old"])


@pytest.mark.parametrize("skip", [0, 2])
def test_what_is_in_memory_is_read_as_torchs_loader_would_read_it(skip):
    loader = in_memory()
    one = SeededLoader(loader, 5, 0, "0")
    assert one.from_memory() is None, "not before it is served"
    Split("train", loader, True, 8).serve(served(loader.dataset, as_batch))
    passes = []
    for number in range(2):
        one.start(epoch=3, position=skip, cycled=False)
        with one.exchanged():
            by_torch = iter(loader)
        passes.append(list(by_torch if number else one.from_memory()))
    assert len(passes[0]) == 4 - skip
    for ours, theirs in zip(*passes, strict=True):
        assert_batch(ours, theirs["cached_index"].tolist())
