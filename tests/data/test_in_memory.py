import pytest
import torch

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule


def a_dataset(count: int) -> DictDataset:
    trace = {"values": torch.arange(2.0 * count).reshape(count, 2), "mask": torch.ones(count, 2).bool()}
    return DictDataset({"trace": trace, "target": torch.arange(count)})


class Counting(InMemoryDataModule):
    """Serves `count` training samples, and says how often it was loaded."""

    def __init__(self, count: int, batch_size: int) -> None:
        super().__init__(batch_size)
        self.count, self.loads = count, 0

    def load(self):
        self.loads += 1
        return {"train": a_dataset(self.count), "val": a_dataset(5), "test": a_dataset(4)}


def test_a_batch_equals_its_samples():
    dataset = a_dataset(5)
    batch, samples = dataset.__getitems__([3, 0]), [dataset[3], dataset[0]]
    assert batch["target"].tolist() == [int(s["target"]) for s in samples] == [3, 0]
    assert torch.equal(batch["trace"]["values"], torch.stack([s["trace"]["values"] for s in samples]))
    assert torch.equal(dataset.targets, torch.arange(5))
    assert len(dataset) == 5


def test_a_dataset_without_some_keys_has_the_same_samples():
    dataset = DictDataset({"a": torch.arange(3), "b": {"x": torch.arange(3)}, "target": torch.zeros(3)})
    smaller = dataset.without(["b"])
    assert smaller.__getitems__([2]).keys() == {"a", "target"}
    assert len(smaller) == 3
    assert dataset[1].keys() == {"a", "b", "target"}


@pytest.mark.parametrize(("count", "sizes"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2]), (1, [1]), (5, [4])], ids=str)
def test_a_lonely_last_sample_is_left_out_of_training_because_batch_norm_needs_two(count, sizes):
    data = Counting(count, batch_size=4)
    data.setup()
    assert [len(batch["target"]) for batch in data.train_dataloader()] == sizes


def test_single_sample_batches_are_kept_if_asked_for():
    data = Counting(3, batch_size=1)
    data.setup()
    assert len(list(data.train_dataloader())) == 3


def test_evaluation_sees_every_sample_in_order():
    data = Counting(4, batch_size=4)
    data.setup()
    for loader, count in ((data.val_dataloader(), 5), (data.test_dataloader(), 4), (data.predict_dataloader(), 4)):
        assert torch.cat([batch["target"] for batch in loader]).tolist() == list(range(count))


def test_training_is_shuffled_by_torchs_seed():
    data = Counting(64, batch_size=64)
    data.setup()
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(next(iter(data.train_dataloader()))["target"].tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(64))


def test_the_splits_are_loaded_once():
    data = Counting(4, batch_size=4)
    for stage in ("fit", "validate", "test"):
        data.setup(stage)
    assert data.loads == 1
