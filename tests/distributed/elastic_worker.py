"""One rank of `continued.py`: fits on some ranks, from the start or from a checkpoint of another number of ranks."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

from hybrid_lightning import FSDP2Strategy
from hybrid_lightning.distributed.fsdp2 import end_process_group
from hybrid_lightning.distributed.sharding import whole
from tests.distributed.ddp_worker import plain_norm
from tests.resume.resuming import Augmented
from tests.shards import tower_shards
from tests.tiny import batches, hybrid, trainer

GLOBAL_BATCH = 12
"""Samples of a step on all ranks together."""
STRATEGIES: dict[str, Any] = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: FSDP2Strategy(process_group_backend="gloo"),
    "folder": lambda: FSDP2Strategy(save_distributed_checkpoint=True, process_group_backend="gloo"),
}


class Watch(pl.Callback):
    """Losses, rates and samples of each step over all ranks; saves at the end of an epoch and after some batches."""

    def __init__(self, folder: Path | None, batches: list[int]) -> None:
        self.folder, self.batches, self.read = folder, batches, 0
        self.steps: dict[int, Any] = {}
        self.window: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        facts = torch.tensor([float(outputs["loss"]), *batch["old"].double().sum(0), batch["target"].sum()])
        self.window.append(trainer.strategy.all_gather(facts).view(-1, 6).double())
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            of_window = torch.stack(self.window)
            rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
            loss, samples = of_window[..., 0].mean(1).sum(), of_window[..., 1:].sum((0, 1))
            self.steps[trainer.global_step] = {"loss": loss, "samples": samples, "rates": rates}
            self.window = []
        self.read += 1
        if self.folder and self.read in self.batches:
            trainer.save_checkpoint(self.folder / f"batch{self.read}.ckpt")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.folder and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.folder / "epoch.ckpt")


def loader(ranks: int, accumulate: int, facts: dict[str, Any]) -> DataLoader[Any]:
    size = GLOBAL_BATCH // (ranks * accumulate)
    if facts["kind"] == "shards":
        return tower_shards(facts["folder"], size)
    return DataLoader(Augmented(facts["samples"]), size, shuffle=True)


def model(kind: str) -> Any:
    options: dict[str, Any] = {"rates": {"shape": "cosine"}, "dropout": 0.5 if kind == "random" else 0.0}
    if kind == "all ranks":
        options["fusion"] = {"args": {"standardize": "samples_of_all_ranks"}}
    task = hybrid({"start": "3 steps", "every": "3 steps"}, **options)
    return task if kind == "random" else plain_norm(task)


def fit(facts: dict[str, Any]) -> None:
    ranks, accumulate = facts["ranks"], facts["accumulate"]
    path = facts.get("path")
    strategy = "auto" if ranks == 1 and facts["strategy"] == "ddp" else STRATEGIES[facts["strategy"]]()
    watch = Watch(None if path else Path(facts["folder"]), facts.get("save", []))
    options = {"devices": ranks, "strategy": strategy, "accumulate_grad_batches": accumulate, "max_epochs": 3}
    runner = trainer(callbacks=[watch], gradient_clip_val=0.5, **options)
    task = model(facts["kind"])
    torch.manual_seed(2 if path else 1)
    training = loader(ranks, accumulate, facts)
    runner.fit(task, training, batches(12), ckpt_path=path, weights_only=True)
    optimizer = runner.optimizers[0]
    state = {"model": task.state_dict(), "optimizer": optimizer.state_dict()["state"]}
    unfrozen_at = {group["name"]: group["unfrozen_at"] for group in optimizer.param_groups}
    found = {**tree_map(whole, state), "unfrozen_at": unfrozen_at, "steps": watch.steps}
    torch.save(found, Path(facts["folder"]) / f"{facts['name']}-{runner.global_rank}.pt")


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", message="Exact resume")
    os.environ["PL_GLOBAL_SEED"] = "5"
    torch.set_num_threads(1)
    for facts in json.loads(sys.argv[1]):
        fit(facts)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # where Lightning has started them, the others are killed when the first one ends
    end_process_group()
