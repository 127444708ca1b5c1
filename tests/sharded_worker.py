"""One rank of `test_strategies.py`: fits a small model under a strategy and saves what the rank holds, made whole."""

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from hybrid_lightning import FSDP2Strategy, GradientNormMonitor, GradualUnfreezing, named_param_groups, shard
from hybrid_lightning.data.in_memory import as_batch
from hybrid_lightning.sharding import whole
from tests.callbacks.tiny import Foreign, hybrid, trainer
from tests.distributed_worker import Lazy, plain_norm

BATCHES_BEFORE = (0, 2, 4)
"""Batches of an epoch of five before each of its three steps; with accumulation 2 the last step has one batch."""
SCHEDULE = {"start": "2 steps", "every": "2 steps"}
PARTS = {"parts": {"backbone": "backbone", "head": "head"}}
STAGES = {"backbone": ["backbone.first", "backbone.second", "backbone.third"]}


class ForeignSharded(Foreign):
    """Somebody else's module, which shards itself as a user would."""

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            groups = named_param_groups(self, PARTS["parts"], lr=0.01, stages=STAGES)
            for network in (self.backbone, self.head):
                shard(network, self.device_mesh["data_parallel"], groups)


class Watch(pl.Callback):
    """Asserts that what is frozen stands still, keeps the logged norms, and saves a checkpoint at every step."""

    def __init__(self, folder: Path, save: bool) -> None:
        self.folder, self.save = folder, save
        self.norms: list[dict[str, float]] = []
        self.step = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        self.before = [(g, [p.detach().clone() for p in g["params"]]) for g in groups]

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        for group, values in self.before:
            for parameter, before in zip(group["params"], values, strict=True):
                same = bool(whole(parameter.detach() == before).all())
                assert same or group["unfrozen_at"] is not None, group["name"]
                assert parameter.requires_grad is (group["unfrozen_at"] is not None)
        norms = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(("grad_norm", "clip"))}
        self.norms.append(norms)
        if self.save and (trainer.global_step > self.step):
            self.step = trainer.global_step
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")


def make(kind: str) -> tuple[pl.LightningModule, list[pl.Callback]]:
    if kind == "batch statistics":
        return hybrid(SCHEDULE, dropout=0.0), []
    if kind == "task":
        return plain_norm(hybrid(SCHEDULE, dropout=0.0)), []
    return plain_norm(ForeignSharded()), [GradualUnfreezing({"backbone": SCHEDULE}), GradientNormMonitor()]


def whole_state(runner: pl.Trainer, model: pl.LightningModule) -> dict[str, Any]:
    """Parameters, buffers and optimizer state, whole, and what unfroze when."""
    optimizer = runner.optimizers[0]
    state = {f"model/{name}": whole(value).clone() for name, value in model.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        state |= {f"optimizer/{index}/{key}": whole(value).clone() for key, value in entry.items()}
    steps = {group["name"]: group["unfrozen_at"] for group in optimizer.param_groups}
    return {"tensors": state, "unfrozen_at": steps}


class Skipping(Lazy):
    """Starts the first epoch at a batch, as a loader with a position would."""

    def __init__(self, runner: pl.Trainer, ranks: int, skip: int) -> None:
        super().__init__(runner, ranks)
        self.skip = skip

    def train_dataloader(self) -> DataLoader[Any]:
        whole = super().train_dataloader()
        rows = [list(batch) for batch in whole.batch_sampler]
        return DataLoader(whole.dataset, batch_sampler=Rows(rows, self.skip), collate_fn=as_batch)


class Rows:
    """Batches of indices; the first pass leaves the first ones out."""

    def __init__(self, rows: list[list[int]], skip: int) -> None:
        self.rows, self.skip = rows, skip

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[list[int]]:
        start, self.skip = self.skip, 0
        return iter(self.rows[start:])


def fit(name: str, facts: dict[str, Any], resume: int = 0) -> None:
    """Fits from the start, or from the checkpoint of a step."""
    folder, ranks, strategy = Path(facts["folder"]), facts["ranks"], facts["strategy"]
    model, callbacks = make(facts["kind"])
    watch = Watch(folder, facts.get("save", False) and not resume)
    options = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2, "use_distributed_sampler": False}
    if facts.get("folders"):
        strategy = FSDP2Strategy(save_distributed_checkpoint=True)
    runner = trainer(devices=ranks, strategy=strategy, callbacks=[*callbacks, watch], log_every_n_steps=1, **options)
    skip = BATCHES_BEFORE[resume % len(BATCHES_BEFORE)]
    path = folder / f"step{resume}.ckpt" if resume else None
    runner.fit(model, Skipping(runner, ranks, skip), ckpt_path=path, weights_only=True)
    if strategy != "auto":
        assert all(isinstance(p, DTensor) for p in runner.optimizers[0].param_groups[0]["params"])
    state = whole_state(runner, model)
    torch.save({**state, "norms": watch.norms}, folder / f"{name}-{runner.global_rank}.pt")


def main(name: str, facts: dict[str, Any]) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*(LeafSpec|many workers|val_dataloader|on_before_batch_transfer).*")
    warnings.filterwarnings("ignore", ".*(ended before the epoch|not resumable).*")  # Skipping knows its position
    torch.set_num_threads(1)
    if facts.get("fit", True):
        fit(name, facts)
    for step in facts.get("resume", []):
        fit(f"{name}-from{step}", facts, step)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
