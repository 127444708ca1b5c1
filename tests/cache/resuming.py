"""A cached fit that is saved after every batch, and its continuations; also one rank of two."""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.cache.fits import Fit, fit, task

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
    return {**done.model.state_dict(), **{name: torch.tensor(value) for name, value in done.metrics.items()}}


def differences(folder: Path, loader: str, unfreeze: Any, every: int = 1, **options: Any) -> tuple[int, list[str]]:
    """How many checkpoints were continued, and what then differed by a single bit."""

    def run(path: Path | None = None, callbacks: Any = ()) -> Fit:
        own = {**options, "strategy": DDPStrategy(process_group_backend="gloo")} if "devices" in options else options
        return fit(task(unfreeze, cache=True), loader, path, callbacks, **own)

    whole = run(callbacks=[AfterBatch(folder)])
    problems = []
    if "cached/old" not in whole.keys[0]:
        problems.append("nothing was served")
    paths = sorted(folder.glob("*.ckpt"))[::every]
    for path in paths:
        again = run(path)
        rest = len(again.losses)
        if again.losses != whole.losses[len(whole.losses) - rest :]:
            problems.append(f"{path.name}: losses")
        for name, value in state(whole).items():
            if not torch.equal(value, state(again)[name]):
                problems.append(f"{path.name}: {name}")
    return len(paths), problems


def on_ranks(model: Any, loader: str) -> Fit:
    return fit(model, loader, devices=2, strategy=DDPStrategy(process_group_backend="gloo"), max_epochs=2)


def main(folder: Path, loader: str, options: str) -> None:
    """Compares, on one of two ranks, and also the two ranks with one process."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = differences(folder, loader, devices=2, **json.loads(options))
    rank = torch.distributed.get_rank()
    live, cached = (on_ranks(task("3 steps", cache=cache), loader) for cache in (False, True))
    gap = max(abs(one - other) for one, other in zip(live.losses, cached.losses, strict=True))
    result = {"found": found, "gap": gap, "seen": [live.seen, cached.seen], "served": len(cached.keys[0]) > 3}
    (folder / f"{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    end_process_group()
