import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from hybrid_lightning.resume.samplers import RankShare, held_generators, with_light_order
from hybrid_lightning.resume.seeded_loaders import (
    Drawn,
    SeededDataset,
    SeededLoader,
    hashed,
    seed_cpu,
)
from tests.processes import succeed


class Noisy(torch.utils.data.Dataset[float]):
    """Each sample is its index plus something random; every loaded index is noted."""

    def __init__(self, samples: int = 12) -> None:
        self.samples, self.loaded = samples, list[int]()

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> float:
        self.loaded.append(index)
        return index + (torch.rand(()).item() + np.random.rand() + random.random()) / 3


def read(
    loader: DataLoader[Any], epoch: int, position: int = 0, seed: int = 3, rank: int = 0, **of_ranks: Any
) -> list[list[float]]:
    seeded = SeededLoader(loader, seed, rank, "0", **of_ranks)
    seeded.start(epoch, position, cycled=False)
    with seeded.exchanged():
        iterator = iter(loader)
    seed_cpu(random.randrange(1000))  # what the training does to the random state
    return [batch.tolist() for batch in iterator]


def test_a_seed_is_the_same_in_every_process() -> None:
    code = "from hybrid_lightning.resume.seeded_loaders import hashed; print(hashed(1, 'order', 2))"
    assert hashed(1, "order", 2) == int(succeed("-c", code).stdout)  # of another hash seed
    seeds = {hashed(*words) for words in ((1, 2), (12,), (1, "2", ""), (2, 1))}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("sampler", [None, WeightedRandomSampler([1.0, 2.0, 3.0] * 4, 12)])
@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_an_epoch_is_the_same_from_any_position_with_any_number_of_workers(sampler: Any, workers: int) -> None:
    def loader(workers: int) -> DataLoader[Any]:
        return DataLoader(Noisy(), 3, shuffle=sampler is None, sampler=sampler, num_workers=workers)

    whole = read(loader(0), epoch=1)
    for position in range(5):
        assert read(loader(workers), epoch=1, position=position) == whole[position:]
    assert read(loader(0), epoch=2) != whole
    assert read(loader(0), epoch=1, seed=4) != whole


def test_skipped_batches_are_not_loaded_and_the_loader_stays_as_it_is() -> None:
    dataset = Noisy()
    loader = DataLoader(dataset, 3, shuffle=True)
    before = dict(vars(loader))
    read(loader, epoch=0, position=3)
    assert len(dataset.loaded) == 3
    assert vars(loader) == before


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("sampler", [None, SequentialSampler(range(12)), WeightedRandomSampler([1.0, 2.0] * 6, 12)])
def test_ranks_share_the_order_and_the_noise_of_one_process(sampler: Any, ranks: int) -> None:
    plain: DataLoader[Any] = DataLoader(Noisy(), 6, shuffle=sampler is None, sampler=sampler)
    whole = read(plain, epoch=1)
    shares = []
    for rank in range(ranks):
        # what Lightning makes of it; its sampler would shuffle
        injected = DistributedSampler(Noisy(), ranks, rank)
        loader: DataLoader[Any] = DataLoader(Noisy(), 6 // ranks, sampler=injected)
        shares.append(read(loader, epoch=1, rank=rank, original=plain.sampler, ranks=ranks))
    joined = []
    for batches in zip(*shares, strict=True):
        columns = zip(*batches, strict=True)
        joined.append([value for column in columns for value in column])
    assert joined == whole


def test_the_shares_of_an_order_that_does_not_come_out_even_repeat_its_first_samples() -> None:
    shares = [list(RankShare(SequentialSampler(range(7)), 3, rank)) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 0], [2, 5, 1]]
    assert len(RankShare(SequentialSampler(range(7)), 3, 0)) == 3
    assert [list(RankShare(SequentialSampler(range(1)), 3, rank)) for rank in range(3)] == [[0], [0], [0]]


@pytest.mark.parametrize(("ranks", "samples"), [(1, 9), (2, 9), (3, 10_000), (3, 1)])
def test_a_shuffled_order_is_that_of_torch_without_its_list(ranks: int, samples: int) -> None:
    torch.manual_seed(3)
    whole = list(RandomSampler(range(samples)))
    state = torch.get_rng_state()
    whole += (whole * ranks)[: -samples % ranks]
    for rank in range(ranks):
        torch.manual_seed(3)
        assert list(RankShare(RandomSampler(range(samples)), ranks, rank)) == whole[rank::ranks]
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("sampler", [SequentialSampler, RandomSampler, partial(RandomSampler, replacement=True)])
def test_batches_are_those_of_the_sampler_they_stand_for(sampler: Any) -> None:
    batches = BatchSampler(sampler(range(9)), 4, drop_last=False)
    torch.manual_seed(3)
    expected, state = list(batches), torch.get_rng_state()
    torch.manual_seed(3)
    assert list(with_light_order(batches)) == expected
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{"replacement": True}, {"generator": torch.default_generator}])
def test_a_sampler_that_draws_as_it_goes_is_left_to_do_so(options: dict[str, Any]) -> None:
    batches = BatchSampler(RandomSampler(range(9), **options), 4, drop_last=False)
    assert with_light_order(batches) is batches


def test_a_sample_that_is_drawn_twice_is_augmented_anew() -> None:
    dataset = SeededDataset(Noisy(), 3, rank=0)
    first, second, other = dataset.__getitems__(Drawn("0/0/0/0", [5, 5, 6]))
    assert first != second
    assert int(first) == int(second) == 5
    assert dataset.__getitems__(Drawn("0/0/0/0", [6, 5, 5])) == [other, first, second]
    assert dataset.__getitems__(Drawn("0/0/0/1", [5]))[0] not in (first, second)


def test_ranks_have_no_part_in_the_seed_of_a_sample() -> None:
    place = Drawn("0/0/0/0", [5])
    assert SeededDataset(Noisy(), 3, 0).__getitems__(place) == SeededDataset(Noisy(), 3, 1).__getitems__(place)


def test_a_subset_is_seeded_by_sample_or_by_batch_like_its_dataset() -> None:
    place, other = Drawn("0/0/0/0", [1, 2]), Drawn("0/0/0/0", [2, 1])
    by_sample = SeededDataset(Subset(Noisy(), range(4, 8)), 3, 0)
    assert by_sample.__getitems__(place) == by_sample.__getitems__(other)[::-1]

    class Whole(Noisy):
        def __getitems__(self, indices: list[int]) -> list[float]:
            return [self[index] for index in indices]

    by_batch = SeededDataset(Subset(Whole(), range(4, 8)), 3, 0)
    assert by_batch.__getitems__(place) != by_batch.__getitems__(other)[::-1]
    assert by_batch.__getitems__(place) == by_batch.__getitems__(place)


def test_a_generator_of_the_user_keeps_its_seed_and_its_order() -> None:
    def order(first_seed: int, seed: int, draws_before: int = 0) -> list[Any]:
        generator = torch.Generator().manual_seed(first_seed)
        torch.rand(draws_before, generator=generator)
        loader = DataLoader(TensorDataset(torch.arange(12.0)), 3, shuffle=True, generator=generator, collate_fn=first)
        assert held_generators(loader) == [generator]
        return read(loader, 0, seed=seed)

    assert order(1, seed=3) == order(1, seed=4) == order(1, seed=3, draws_before=9)
    assert order(1, seed=3) != order(2, seed=3)


def first(samples: Any) -> torch.Tensor:
    return torch.stack([sample[0] for sample in samples])


def test_generators_are_found_in_samplers_within_samplers() -> None:
    inner, outer = torch.Generator(), torch.Generator()
    batches = BatchSampler(RandomSampler(range(4), generator=inner), 2, drop_last=False)
    loader = DataLoader(Noisy(), batch_sampler=batches, generator=outer)
    assert {id(generator) for generator in held_generators(loader)} == {id(inner), id(outer)}


def test_a_stand_in_is_the_dataset_to_whoever_asks() -> None:
    stand_in: Any = SeededDataset(Noisy(), 3, 0)
    stand_in.samples = 7
    assert len(stand_in) == stand_in.samples == 7
    assert int(stand_in[4]) == 4
    with pytest.raises(AttributeError, match="nothing"):
        stand_in.nothing  # noqa: B018


def test_a_dataset_that_is_put_into_the_loader_later_is_taken_by_the_next_iterator() -> None:
    loader: DataLoader[Any] = DataLoader(Noisy(), 3)
    seeded = SeededLoader(loader, 3, 0, "0")
    object.__setattr__(loader, "dataset", Noisy(6))
    seeded.start(1, 0, cycled=False)
    with seeded.exchanged():
        iterator = iter(loader)
    assert next(iterator).tolist() == read(DataLoader(Noisy(6), 3), epoch=1)[0]
    assert isinstance(loader.dataset, Noisy)
