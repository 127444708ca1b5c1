"""One rank of `test_fsdp2.py`: fits a small model under a strategy and saves what the rank holds, made whole."""

import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from hybrid_lightning import (
    FSDP2Strategy,
    GradientClipping,
    GradientNormMonitor,
    GradualUnfreezing,
    named_param_groups,
    shard,
)
from hybrid_lightning.data.in_memory import as_batch
from hybrid_lightning.distributed.fsdp2 import end_process_group
from hybrid_lightning.distributed.sharding import whole
from tests.distributed.ddp_worker import Lazy, plain_norm
from tests.tiny import Foreign, Tower, hybrid, trainer

BATCHES_BEFORE = (0, 2, 4)
"""Batches of an epoch of five before each of its three steps; with accumulation 2 the last step has one batch."""
SCHEDULE = {"start": "2 steps", "every": "2 steps"}
PARTS = {"backbone": "backbone", "head": "head"}
STAGES = {
    "backbone": {
        "first": ["backbone.first", "backbone.token"],
        "second": ["backbone.second"],
        "third": ["backbone.third"],
    }
}


class WithToken(Tower):
    """A tower with a parameter outside its blocks, which only the wrap unit of the whole tower can hold."""

    def __init__(self) -> None:
        super().__init__(4, dropout=0.0)
        self.token = torch.nn.Parameter(torch.ones(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.token.sum(0))


class ForeignSharded(Foreign):
    """Somebody else's module, which shards itself as a user would, and evaluates the sharded networks."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = WithToken()

    def groups(self) -> list[dict[str, Any]]:
        return named_param_groups(self, PARTS, lr=0.01, stages=STAGES)

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, FSDP2Strategy):
            groups = self.groups()
            for network in (self.backbone, self.head):
                shard(network, self.device_mesh["data_parallel"], groups)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.head(self.backbone(batch["old"]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups())


class Watch(pl.Callback):
    """Asserts that what is frozen stands still, keeps what was logged, and saves checkpoints after some steps."""

    def __init__(self, folder: Path, steps: list[int]) -> None:
        self.folder, self.steps = folder, steps
        self.logged: list[dict[str, float]] = []
        self.step = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        groups = [group for group in trainer.optimizers[0].param_groups if group["unfrozen_at"] is None]
        self.frozen = [(group, [whole(p.detach()).clone() for p in group["params"]]) for group in groups]

    def keep(self, trainer: pl.Trainer) -> None:
        self.logged.append({key: float(value) for key, value in trainer.callback_metrics.items()})

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            trains = group["unfrozen_at"] is not None
            assert all(parameter.requires_grad is trains for parameter in group["params"]), group["name"]
        for group, values in self.frozen:
            now = [] if group["unfrozen_at"] is not None else [whole(p.detach()) for p in group["params"]]
            assert all(map(torch.equal, now, values)), group["name"]
        self.keep(trainer)
        if trainer.global_step in self.steps and trainer.global_step > self.step:
            self.step = trainer.global_step
            trainer.save_checkpoint(self.folder / f"step{self.step}.ckpt")


class Reductions(pl.Callback):
    """Asserts that a backward pass reduces what trains and nothing else, and that nothing else has optimizer state."""

    def __init__(self) -> None:
        self.bytes = 0
        # torch 2.13 calls it by another name than torch before
        name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
        original = getattr(dist, name)
        setattr(dist, name, lambda *args, **options: self.counted(original, *args, **options))

    def counted(self, original: Any, output: Tensor, input: Tensor, **options: Any) -> Any:
        self.bytes += input.nbytes
        return original(output, input, **options)

    def on_after_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        trained = [p for group in trainer.optimizers[0].param_groups for p in group["params"] if p.requires_grad]
        assert self.bytes == sum(self.padded(parameter, trainer.world_size) for parameter in trained)
        self.bytes = 0

    @staticmethod
    def padded(parameter: Tensor, ranks: int) -> int:
        """Bytes of a gradient of which each rank gets equally many rows."""
        rows = -(-len(parameter) // ranks) * ranks
        return rows * parameter[0].numel() * parameter.element_size()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        assert all(parameter.requires_grad for parameter in trainer.optimizers[0].state)


def make(kind: str) -> tuple[pl.LightningModule, list[pl.Callback]]:
    if kind == "foreign":
        limits = {"backbone": {"value": 0.05}, "head": {"zclip": {"z": 1.0, "warm_up": "3 steps"}}}
        callbacks = [GradualUnfreezing({"backbone": SCHEDULE}), GradientClipping(limits), GradientNormMonitor()]
        return plain_norm(ForeignSharded()), callbacks
    task = hybrid(SCHEDULE, dropout=0.0, untrained={"clip": {"agc": 0.02}})
    return task if kind == "batch statistics" else plain_norm(task), []


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
        loader = super().train_dataloader()
        rows = [list(batch) for batch in loader.batch_sampler or ()]
        return DataLoader(loader.dataset, batch_sampler=Rows(rows, self.skip), collate_fn=as_batch)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return super().train_dataloader()


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
    folder, ranks = Path(facts["folder"]), facts["ranks"]
    model, callbacks = make(facts["kind"])
    watch = Watch(folder, [] if resume else facts.get("resume", []))
    strategy = FSDP2Strategy(facts.get("sharded_files", False)) if ranks > 1 else "auto"
    options = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2, "use_distributed_sampler": False}
    callbacks += [watch, Reductions()] if ranks > 1 else [watch]
    runner = trainer(devices=ranks, strategy=strategy, callbacks=callbacks, log_every_n_steps=1, **options)
    if runner.global_rank:  # the weights that count are those of the first rank
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.zero_()
    data = Skipping(runner, ranks, BATCHES_BEFORE[resume % len(BATCHES_BEFORE)])
    runner.fit(model, data, ckpt_path=folder / f"step{resume}.ckpt" if resume else None)
    assert all(isinstance(p, DTensor) is (ranks > 1) for g in runner.optimizers[0].param_groups for p in g["params"])
    watch.keep(runner)  # with the last validation's metrics
    state = {**whole_state(runner, model), "logged": watch.logged}
    torch.save(state, folder / f"{name}-{runner.global_rank}.pt")


def main(name: str, facts: dict[str, Any]) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*(LeafSpec|many workers|val_dataloader|on_before_batch_transfer).*")
    warnings.filterwarnings("ignore", ".*(ended before the epoch|not resumable).*")  # Skipping knows its position
    torch.set_num_threads(1)
    fit(name, facts)
    for step in facts.get("resume", []):
        fit(f"{name}-from{step}", facts, step)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
    end_process_group()
