"""One rank of `tasks/test_start.py`: begins at the closed-form solution, and saves what the network is then."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning import HybridClassifier
from hybrid_lightning.distributed.fsdp2 import end_process_group
from hybrid_lightning.distributed.sharding import whole
from tests.small import loader

PARTS = {"series": {"module": "RandomConvolutions", "args": {"features": 168}}, "table": "torch.nn.Identity"}


class SaveAtBatch(pl.Callback):
    """Saves the weights and the metrics before the first batch after a step."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.step = step

    @property
    def state_key(self) -> str:
        return f"SaveAtBatch {self.step}"

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step == self.step:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            state = {name: whole(tensor).clone() for name, tensor in pl_module.network.state_dict().items()}
            torch.save({"state": state, "metrics": metrics}, self.path)


def begin(strategy: str, path: Path, ckpt_path: Path | None = None) -> None:
    """A run of two steps, which saves what stands before each, and a checkpoint of the start."""
    pl.seed_everything(0)
    used: Any = strategy
    if strategy == "ddp":
        used = DDPStrategy(process_group_backend="gloo")
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(60, 3, generator=generator)
    data = {"series": torch.randn(60, 24, generator=generator), "table": table, "target": table.argmax(1)}
    keep = ModelCheckpoint(path.parent, "continued" if ckpt_path else "0", monitor="val/loss")
    trainer = pl.Trainer(
        max_steps=2, devices=1 if strategy == "auto" else 2, strategy=used, accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[keep, SaveAtBatch(path, 0), SaveAtBatch(path.with_suffix(".later"), 1)],
    )  # fmt: skip
    model = HybridClassifier(num_classes=3, parts=PARTS, start="probe")
    val = {name: tensor[:21] for name, tensor in data.items()}
    loaders = loader(data, 10, shuffle=True), loader(val, 5)
    trainer.fit(model, *loaders, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", ".*(LeafSpec|many workers|Using `DistributedSampler`|Total length|Checkpoint directory).*"
    )
    torch.set_num_threads(1)
    folder, rank = Path(sys.argv[2]), os.environ.get("LOCAL_RANK", 0)
    begin(sys.argv[1], folder / f"{rank}.pt")
    begin(sys.argv[1], folder / f"{rank}-continued.pt", folder / "0.ckpt")
    end_process_group()
