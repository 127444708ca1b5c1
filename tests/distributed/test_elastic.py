"""A checkpoint of some ranks is continued on another number of ranks, with the same samples in each step."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import ranks, succeed, succeed_on
from tests.small import changed, write

BY_BATCH_SIZE = {1: 1, 2: 1, 3: 1}
BY_BOTH = {1: 2, 2: 1, 3: 2}
"""Ranks → batches of a step; the batch size makes up for the rest."""
FIRST = {"epoch": 5, "within": 7, "last": 5, "open": 6}
"""Where a checkpoint was saved → the first step after it; ``open`` is within a step, if that has several batches."""
ALL = pytest.mark.exhaustive


def fit(folder: Path, count: int, accumulate: int, *facts: dict[str, Any]) -> None:
    shared = {"folder": str(folder), "ranks": count, "accumulate": accumulate}
    succeed_on(count, "-m", "tests.distributed.elastic_worker", json.dumps([{**shared, **one} for one in facts]))


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def distance(one: Any, other: Any) -> float:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((distance(value, other[key]) for key, value in one.items()), default=0.0)
    return float((torch.as_tensor(one).double() - torch.as_tensor(other).double()).abs().max())


def continued(
    folder: Path, before: int, now: int, strategy: str, kind: str = "plain", accumulate: dict[int, int] = BY_BOTH
) -> None:
    """Compares continuations on `now` ranks with the run on `before` ranks that was not stopped."""
    places = {"within": 6 * accumulate[before], "last": 4 * accumulate[before]}
    if accumulate[before] > 1:
        places["open"] = 5 * accumulate[before] + 1
    files = {"epoch": "epoch.ckpt", **{place: f"batch{batches}.ckpt" for place, batches in places.items()}}
    both = {"strategy": strategy, "kind": kind}
    fit(folder, before, accumulate[before], {"name": "whole", "save": [*places.values()], **both})
    again = [{"name": name, "path": str(folder / file), **both} for name, file in files.items()]
    fit(folder, now, accumulate[now], *again)
    whole = load(folder / "whole-0.pt")
    for name in files:
        found = load(folder / f"{name}-{now - 1}.pt")
        assert min(found["steps"]) == FIRST[name], name
        if name == "open":  # what was read of its first step before is not noted
            del found["steps"][FIRST[name]]
        assert found["unfrozen_at"] == whole["unfrozen_at"]
        for step, facts in found["steps"].items():
            wanted = whole["steps"][step]
            assert distance(wanted["rates"], facts["rates"]) < 1e-12, (name, step)
            assert distance(wanted["samples"], facts["samples"]) < 1e-4, (name, step)
            if kind != "random":
                assert distance(wanted["loss"], facts["loss"]) <= 1e-6, (name, step)
        # a bias before batch statistics has no gradient but rounding, of which Adam makes whole steps
        if kind == "plain":
            assert distance(whole["model"], found["model"]) <= 1e-6, name
            assert distance(whole["optimizer"], found["optimizer"]) <= 1e-6, name


@pytest.mark.parametrize(
    ("before", "now", "strategy"),
    [
        (1, 2, "ddp"),
        (3, 2, "folder"),
        pytest.param(1, 3, "ddp", marks=ALL),
        pytest.param(2, 1, "ddp", marks=ALL),
        pytest.param(2, 3, "ddp", marks=ALL),
        pytest.param(3, 2, "ddp", marks=ALL),
        pytest.param(1, 2, "fsdp2", marks=ALL),
        pytest.param(2, 1, "fsdp2", marks=ALL),
        pytest.param(2, 3, "fsdp2", marks=ALL),
        pytest.param(2, 3, "folder", marks=ALL),
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
