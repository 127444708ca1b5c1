"""Metrics on two ranks are those of one, although samplers repeat samples so that all ranks get equally many."""

import json
from pathlib import Path

import pytest
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from hybrid_lightning.tasks.evaluation import own_samples
from tests.processes import succeed_on
from tests.tasks.evaluation_worker import measured

# how the data are shared, and how many there are; one sample leaves the second rank none of its own
CASES = ["plain-41", "plain-1", "plain-13", "sampler-41", "batch_sampler-41", "regressor-41"]


@pytest.mark.filterwarnings("ignore:Using `DistributedSampler`")
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_several_ranks_measure_what_one_measures(ranks: int, tmp_path: Path) -> None:
    succeed_on(ranks, "-m", "tests.tasks.evaluation_worker", str(ranks), str(tmp_path), *CASES)
    first, *others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks))
    assert all(other == first for other in others)
    for case in CASES:
        kind, samples = case.split("-")
        for alone, shared in zip(measured(kind, int(samples), 1), first[case], strict=True):
            assert shared == pytest.approx(alone, abs=1e-6), case
            assert len(shared) >= 3


@pytest.mark.parametrize("count", [1, 2, 3, 40, 41, 43])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_sample_counts_exactly_once(count, ranks, shuffle):
    seen = []
    for rank in range(ranks):
        loader = DataLoader(range(count), 4, sampler=DistributedSampler(range(count), ranks, rank, shuffle))
        for number, batch in enumerate(loader):
            seen += batch[: own_samples(loader, number, len(batch))].tolist()
    assert sorted(seen) == list(range(count))


class Sorted(DistributedSampler):
    """Deals in an order of its own, which nobody knows."""

    def __iter__(self):
        return iter(sorted(super().__iter__(), reverse=True))


@pytest.mark.parametrize(
    "loader",
    [
        [1, 2],
        DataLoader(range(3), 2),
        DataLoader(range(3), batch_size=None, sampler=DistributedSampler(range(3), 2, 1)),
        DataLoader(range(3), 2, sampler=Sorted(range(3), 2, 1)),
        DataLoader(range(3), 2, sampler=DistributedSampler(range(3), 2, 1, drop_last=True)),
        DataLoader(range(3), batch_sampler=type("Own", (BatchSampler,), {})(SequentialSampler(range(3)), 2, False)),
    ],
    ids=["a list", "one rank", "no batches", "own order", "drop last", "own batches"],
)
def test_what_is_not_known_to_be_repeated_counts(loader):
    assert own_samples(loader, 0, 2) == 2
    assert own_samples([loader], 7, 2) == 2
