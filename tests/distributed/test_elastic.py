"""A checkpoint of some ranks is continued on another number of ranks, with the same samples in each step."""

import csv
from pathlib import Path

import pytest

from tests.distributed.continued import continued
from tests.processes import ranks, succeed
from tests.shards import write_tower_shards
from tests.small import changed, write

BY_BATCH_SIZE = {1: 1, 2: 1, 3: 1}
"""Ranks → batches of a step."""
ALL = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("before", "now", "strategy"),
    [
        (1, 2, "ddp"),
        (3, 2, "folder"),
        pytest.param(1, 3, "ddp", marks=ALL),
        pytest.param(2, 1, "ddp", marks=ALL),
        pytest.param(1, 2, "fsdp2", marks=ALL),
        pytest.param(2, 1, "fsdp2", marks=ALL),
    ],
)
def test_other_numbers_of_ranks_go_on_with_the_same_samples_losses_and_rates(
    before: int, now: int, strategy: str, tmp_path: Path
) -> None:
    continued(tmp_path, before, now, strategy)


@pytest.mark.parametrize(("before", "now"), [pytest.param(1, 3, marks=ALL), pytest.param(3, 2, marks=ALL)])
def test_they_do_where_the_batch_size_alone_makes_up(before: int, now: int, tmp_path: Path) -> None:
    continued(tmp_path, before, now, "ddp", accumulate=BY_BATCH_SIZE)


@pytest.mark.parametrize(("before", "now"), [pytest.param(2, 1, marks=ALL), pytest.param(2, 3, marks=ALL)])
def test_with_dropout_and_batch_statistics_samples_rates_and_unfreezings_are_the_same(
    before: int, now: int, tmp_path: Path
) -> None:
    continued(tmp_path, before, now, "ddp", kind="random")


@pytest.mark.parametrize(("before", "now"), [(1, 2), pytest.param(2, 3, marks=ALL), pytest.param(2, 1, marks=ALL)])
def test_shards_are_read_in_the_order_of_one_process(before: int, now: int, tmp_path: Path) -> None:
    write_tower_shards(tmp_path, shards=4, samples=12)
    continued(tmp_path, before, now, "ddp", kind="shards")


@pytest.mark.parametrize(("before", "now"), [(2, 3), pytest.param(1, 2, marks=ALL)])
def test_statistics_of_all_ranks_do_not_depend_on_their_number(before: int, now: int, tmp_path: Path) -> None:
    """Batch statistics in the fusion, over the samples of all ranks in a batch."""
    continued(tmp_path, before, now, "ddp", kind="all ranks", accumulate=BY_BATCH_SIZE)


def metrics(folder: Path, version: int) -> list[dict[str, float]]:
    with (folder / f"runs/small/version_{version}/metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def test_the_command_line_goes_on_within_an_epoch_with_another_number_of_devices(tmp_path: Path) -> None:
    changes = {"init.parts.stem.unfreeze": "2 steps", "init.lr": 0.01, "trainer.gradient_clip_val": 0.5}
    write(changed({**changes, "data.init_args.batch_size": 24}), tmp_path / "small.yaml")
    words = ["-m", "hybrid_lightning", "fit", "--config", "small.yaml", "--trainer.max_epochs", "3"]
    succeed(*words, cwd=tmp_path)
    succeed(*words, "--trainer.max_steps", "4", cwd=tmp_path)
    other = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.init_args.batch_size", "12")
    done = ranks(2, *words, *other, "--ckpt_path", "last", cwd=tmp_path)
    said = "".join(one.stdout + one.stderr for one in done)
    assert not any(one.returncode for one in done), said
    assert "ranks 1 → 2, samples of a batch 24 → 24; the epoch goes on after 1 of 3 batches" in said
    assert "not exactly" not in said
    whole, found = metrics(tmp_path, 0), metrics(tmp_path, 2)
    last = [row for row in whole if row["step"] >= 4]
    assert len(found) == len(last) >= 5
    for row, wanted in zip(found, last, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)
