from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning import ConfigError
from hybrid_lightning.data.in_memory import DictDataset
from hybrid_lightning.data.loaders import example_batch, first_batch, number_of_batches, plain_samples
from tests.small import classifier, loader, table, trainer


class Samples(list):
    """A dataset of dicts, one call per sample."""


class Stream(IterableDataset):
    def __iter__(self):
        yield from ({"x": row, "target": torch.tensor(index % 3)} for index, row in enumerate(table()))


def samples(count: int = 27) -> Samples:
    return Samples({"x": row, "target": torch.tensor(index % 3)} for index, row in enumerate(table(count)))


@pytest.mark.parametrize(
    ("loaders", "size"),
    [
        (DataLoader(samples(), batch_size=8), 2),
        (DataLoader(samples(1), batch_size=8), 1),
        ([DataLoader(samples(), batch_size=8)], 2),
        ({"a": DataLoader(samples(), batch_size=8)}, 2),
        (loader({"x": table(), "target": torch.arange(27) % 3}), 2),
        (DataLoader(Stream(), batch_size=8), 8),
        (iter([{"x": table(5)}]), 5),
    ],
)  # fmt: skip
def test_two_samples_are_taken_where_that_is_possible(loaders, size):
    batch = first_batch(loaders)
    batch = batch if "x" in batch else batch["a"]
    assert batch["x"].shape == (size, 4)


@pytest.mark.parametrize("empty", [DataLoader([], batch_size=8), iter([])])
def test_no_data_is_an_error(empty):
    with pytest.raises(ConfigError, match="empty"):
        first_batch(empty)


def test_reading_an_example_does_not_move_the_random_state():
    class Noisy(Samples):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "noise": torch.rand(1)}

    source = SimpleNamespace(dataloader=lambda: DataLoader(Noisy(samples()), batch_size=8, shuffle=True))
    run = SimpleNamespace(_active_loop=SimpleNamespace(_data_source=source))
    before = torch.get_rng_state()
    assert example_batch(run)["noise"].shape == (2, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fit_sees_its_first_batch_although_an_example_was_taken():
    model, seen = classifier(), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]["x"].clone()))
    trainer(limit_val_batches=0).fit(model, DataLoader(Stream(), batch_size=8))
    assert torch.equal(torch.cat(seen), table())


def test_the_length_of_any_collection_of_loaders_is_that_of_the_longest():
    assert number_of_batches(range(3)) == 3
    assert number_of_batches({"a": range(3), "b": range(5)}) == 5
    assert number_of_batches(iter([])) == float("inf")


class Alternate:
    """A sampler of batches of a user's own, which leaves the first two samples out."""

    def __iter__(self):
        return iter([[2, 4, 6], [3, 5, 7]])


@pytest.mark.parametrize("given", [{"batch_sampler": Alternate()}, {"batch_size": None, "sampler": Alternate()}])
def test_the_first_samples_come_in_batches_of_a_user_s_own_sampler(given):
    numbers = torch.arange(10.0)
    dataset = DictDataset({"x": numbers}) if "sampler" in given else [{"x": number} for number in numbers]
    own = {"collate_fn": lambda batch: batch} if "sampler" in given else {}
    batches = list(plain_samples(None, DataLoader(dataset, **given, **own), most=4))
    assert [batch["x"].tolist() for batch in batches] == [[2.0, 4.0, 6.0], [3.0, 5.0, 7.0]]
