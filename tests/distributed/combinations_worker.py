"""Runs of `test_combinations.py`, on each of its ranks: a precision with the options that a part can have beside it."""

import dataclasses
import json
import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader

from hybrid_lightning import FSDP2Strategy, HybridClassifier
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.resume.resuming import SAMPLES, Run, differences, first_difference
from tests.tiny import Layers, batches, hybrid

STRATEGIES: dict[str, Callable[[], Any]] = {
    "one": lambda: "auto",
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: FSDP2Strategy(process_group_backend="gloo"),
}
RECOMPUTED = {"checkpoint_activations": True}
COMPILED = {"compile": {"backend": "aot_eager"}}
"""A backend that needs no C++ compiler."""
COMBINATIONS: dict[str, dict[str, Any]] = {"plain": {}, "recomputed": RECOMPUTED, "compiled": COMPILED}


def loader(has_gaps: bool) -> DataLoader[Any]:
    """Shuffled batches; with gaps, half of the samples lack the part that unfreezes."""
    entries = dict(batches(SAMPLES).dataset.entries)  # type: ignore[attr-defined]
    if has_gaps:
        entries["present/old"] = torch.arange(SAMPLES) % 2 == 0
    return DataLoader(DictDataset(entries), 4, shuffle=True, collate_fn=as_batch)


def task(options: dict[str, Any]) -> HybridClassifier:
    """A model of which three stages unfreeze one after the other, with dropout and batch statistics.

    Another part is of single layers, which runs again as a whole while each of its layers is a unit of fsdp2.
    """
    model = hybrid({"start": "3 steps", "every": "2 steps"})
    model.parts["old"] = dataclasses.replace(model.parts["old"], **options)
    model.parts["new"] = dataclasses.replace(model.parts["new"], module=Layers, args={}, **options)
    return model


def outcome(name: str, has_gaps: bool, folder: Path, **options: Any) -> dict[str, Any]:
    """How a run and its continuations compare, and it with one that has none of the options."""
    own, plain = partial(task, COMBINATIONS[name]), partial(task, {})
    data = partial(loader, has_gaps)
    folder.mkdir(exist_ok=True)
    number, found = differences(own, data, folder, every=9, **options)
    states = [Run(make, data, **options).state() for make in (own, plain)]
    difference = first_difference(states[0], states[1], "state")
    return {"continued": number, "differences": found, "against plain": difference}


def outcomes(strategy: str, precision: str, names: list[str], has_gaps: bool, folder: Path) -> dict[str, Any]:
    """Name of a combination → its outcome."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    options = {"precision": precision, "gradient_clip_val": 0.5, "devices": 1 if strategy == "one" else 2}
    found = {}
    for name in names:
        torch._dynamo.reset()
        counters.clear()
        found[name] = outcome(name, has_gaps, folder / name, strategy=STRATEGIES[strategy], **options)
        found[name]["graphs"] = counters["stats"]["unique_graphs"]
    return found


def main(strategy: str, precision: str, names: str, gaps: str, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = outcomes(strategy, precision, names.split(","), gaps == "gaps", folder)
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:5], Path(sys.argv[5]))
    end_process_group()
