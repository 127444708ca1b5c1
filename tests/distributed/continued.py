"""Runs on some ranks, saves at several places, and compares what goes on from there with what was never stopped."""

import json
from pathlib import Path
from typing import Any

import torch

from tests.distributed.elastic_worker import GLOBAL_BATCH
from tests.distributed.launchers import start

EVEN, UNEVEN = 4 * GLOBAL_BATCH, 4 * GLOBAL_BATCH + 5
"""Samples of an epoch: of four steps, and of a fifth with fewer, of which every rank has a smaller last batch."""
BY_BOTH = {1: 2, 2: 1, 3: 2}
"""Ranks → batches of a step; the batch size makes up for the rest."""


def fit(launcher: str, folder: Path, count: int, accumulate: int, *facts: dict[str, Any]) -> None:
    shared = {"folder": str(folder), "ranks": count, "accumulate": accumulate}
    words = ["-m", "tests.distributed.elastic_worker", json.dumps([{**shared, **one} for one in facts])]
    start(launcher, count, folder, *words)


def places(ranks: int, accumulate: int, samples: int) -> dict[str, tuple[str, int]]:
    """Where checkpoints are saved → their file, and the first step after it.

    ``frozen`` is before the first unfreezing, ``within`` within an epoch, ``last`` after its last batch but before its
    end, ``open`` within a step, if that has several batches.
    """
    size = GLOBAL_BATCH // (ranks * accumulate)
    batches = -(-samples // (ranks * size))
    steps = -(-batches // accumulate)
    found = {
        "frozen": (2 * accumulate, 3),
        "last": (batches, steps + 1),
        "within": (batches + 2 * accumulate, steps + 3),
    }
    if accumulate > 1:
        found["open"] = (batches + accumulate + 1, steps + 2)
    files = {name: (f"batch{read}.ckpt", first) for name, (read, first) in found.items()}
    return {"epoch": ("epoch.ckpt", steps + 1), **files}


def load(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def distance(one: Any, other: Any) -> float:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((distance(value, other[key]) for key, value in one.items()), default=0.0)
    return float((torch.as_tensor(one).double() - torch.as_tensor(other).double()).abs().max())


def continued(
    folder: Path,
    before: int,
    now: int,
    strategy: str,
    kind: str = "plain",
    accumulate: dict[int, int] = BY_BOTH,
    launcher: str = "ranks",
    samples: int = EVEN,
) -> float:
    """Compares continuations on `now` ranks with the run on `before` ranks that was not stopped.

    Returns:
        The largest difference of a weight, a loss or the optimizer's state, 0 if the number of ranks is the same.
    """
    saved = places(before, accumulate[before], samples)
    if before == now and strategy != "ddp":
        saved.pop("open", None)  # sharded gradients that wait for a step are not saved, which is told
    batches = [int(file[5:-5]) for file, _ in saved.values() if file != "epoch.ckpt"]
    both = {"strategy": strategy, "kind": kind, "samples": samples}
    fit(launcher, folder, before, accumulate[before], {"name": "whole", "save": batches, **both})
    again = [{"name": name, "path": str(folder / file), **both} for name, (file, _) in saved.items()]
    fit(launcher, folder, now, accumulate[now], *again)
    # the same rank, whose batch statistics are its own
    whole = load(folder / f"whole-{now - 1 if before == now else 0}.pt")
    off = []
    for name, (_, first) in saved.items():
        found = load(folder / f"{name}-{now - 1}.pt")
        assert min(found["steps"]) == first, name
        if name == "open":  # what was read of its first step before is not noted
            del found["steps"][first]
        off.append(apart(whole, found, "plain" if before == now else kind))
        assert off[-1] <= (0 if before == now else 1e-6), name
    return max(off)


def apart(whole: Any, found: Any, kind: str) -> float:
    """Asserts equal unfreezings, rates and samples; how far losses, weights and the optimizer's state are off."""
    assert found["unfrozen_at"] == whole["unfrozen_at"]
    off = [0.0]
    for step, facts in found["steps"].items():
        wanted = whole["steps"][step]
        assert distance(wanted["rates"], facts["rates"]) < 1e-12, step
        assert distance(wanted["samples"], facts["samples"]) < 1e-4, step
        if kind != "random":
            off.append(distance(wanted["loss"], facts["loss"]))
    # a bias before batch statistics has no gradient but rounding, of which Adam makes whole steps
    if kind in ("plain", "shards"):
        off += [distance(whole[key], found[key]) for key in ("model", "optimizer")]
    return max(off)
