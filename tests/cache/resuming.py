"""A cached run that is saved after every batch, and its continuations; also one rank of two."""

import json
import logging
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy, end_process_group
from hybrid_lightning.distributed.sharding import whole
from tests.cache import stages
from tests.cache.fits import Fit, FollowEpochs, Tower, fit, task

VIEWS = {"views": 2, "mode": True}
PLATEAU = {"plateau": "val/loss", "patience": "1 validations", "min_delta": 9}


class AfterBatch(pl.Callback):
    """Saves after every batch and every validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        trainer.save_checkpoint(self.folder / f"batch-{trainer.global_step:02}.ckpt")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"validation-{trainer.global_step:02}.ckpt")


def state(done: Fit) -> dict[str, torch.Tensor]:
    found = {name: whole(value) for name, value in done.model.state_dict().items()}
    return {**found, **{name: torch.tensor(value) for name, value in done.metrics.items()}}


def strategy(loader: str) -> Any:
    kind = FSDP2Strategy if loader == "sharded" else DDPStrategy
    return kind(process_group_backend="gloo")


def differences(
    folder: Path,
    loader: str,
    unfreeze: Any,
    every: int = 1,
    cache: Any = True,
    **options: Any,
) -> tuple[int, list[str]]:
    """How many checkpoints were continued, and what then differed by a single bit; `loader` ``stages`` has images."""
    make, data, first = task, "files" if loader == "sharded" else loader, "cached/old"
    if loader == "stages":
        make, data, first = partial(stages.task, stages.Backbone), stages.samples, "cached/image"

    def run(path: Path | None = None, callbacks: Any = ()) -> Fit:
        own = {**options, "strategy": strategy(loader)} if "devices" in options else options
        return fit(make(unfreeze, cache=cache), data, path, callbacks, **own)

    reference = run(callbacks=[AfterBatch(folder)])
    expected = state(reference)
    problems = []
    if first not in reference.keys[0]:
        problems.append("nothing was served")
    paths = sorted(folder.glob("*.ckpt"))[::every]
    for path in paths:
        again = run(path)
        rest = len(again.losses)
        if again.losses != reference.losses[len(reference.losses) - rest :]:
            problems.append(f"{path.name}: losses")
        found = state(again)
        for name, value in expected.items():
            if not torch.equal(value, found[name]):
                problems.append(f"{path.name}: {name}")
    return len(paths), problems


def on_ranks(model: Any, data: Any, loader: str, callbacks: Any = ()) -> Fit:
    # the first forward pass is that of the cache
    return fit(
        model, data, callbacks=callbacks, devices=2, strategy=strategy(loader), max_epochs=2, num_sanity_val_steps=0
    )


class Failing(Tower):
    """Fails in the middle of a forward pass, in the small batches with which only the cache begins."""

    is_armed = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        between = self.first(x)
        if Failing.is_armed and len(x) == 2:
            raise RuntimeError("no pairs")
        return self.second(self.dropout(torch.tanh(between)))


class Arm(pl.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        Failing.is_armed = True


def losses_after_a_failure(cache: bool) -> list[float]:
    Failing.is_armed = False
    parts = {"old": {"module": Failing, "unfreeze": "never"}, "new": {"module": "MLP", "args": {"hidden": [5]}}}
    model = task(parts=parts, cache=cache)
    return fit(model, "files", callbacks=[Arm()], devices=2, strategy=strategy("sharded")).losses


def main(folder: Path, loader: str, options: str) -> None:
    """Compares, on one of two ranks, and also the two ranks with one process."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = differences(folder, loader, devices=2, **json.loads(options))
    rank = torch.distributed.get_rank()
    if loader == "stages":
        schedule = stages.top_down(stages.SIX[0], start=2, unit="steps")
        models = [stages.task(unfreeze=schedule, cache=cache) for cache in (False, True)]
        live, cached = (on_ranks(model, stages.samples, loader) for model in models)
    elif loader == "shifted":
        live = on_ranks(task(cache=False), "versions", loader, [FollowEpochs()])
        cached = on_ranks(task(cache=VIEWS), loader, loader)
    else:
        data = "files" if loader == "sharded" else loader
        live, cached = (on_ranks(task("3 steps", cache=cache), data, loader) for cache in (False, True))
    gap = max(abs(one - other) for one, other in zip(live.losses, cached.losses, strict=True))
    if loader == "sharded":
        assert losses_after_a_failure(False) == losses_after_a_failure(True)
    result = {"found": found, "gap": gap, "seen": [live.seen, cached.seen], "served": len(cached.keys[0]) > 3}
    (folder / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    end_process_group()
