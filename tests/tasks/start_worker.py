"""One rank of `tasks/test_start.py`: begins at the closed-form solution, and saves what the network is then."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning import HybridClassifier
from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.small import loader

PARTS = {"series": {"module": "RandomConvolutions", "args": {"features": 168}}, "table": "torch.nn.Identity"}


class SaveAtTheFirstBatch(pl.Callback):
    """Saves the weights before the first step, and the metrics of the start."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step == 0:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            state = {name: tensor.clone() for name, tensor in pl_module.network.state_dict().items()}
            torch.save({"state": state, "metrics": metrics}, self.path)


def begin(ranks: int, path: Path) -> None:
    """A fit of one step."""
    pl.seed_everything(0)
    strategy: Any = DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto"
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(60, 3, generator=generator)
    data = {"series": torch.randn(60, 24, generator=generator), "table": table, "target": table.argmax(1)}
    trainer = pl.Trainer(
        max_steps=1, devices=ranks, strategy=strategy, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[SaveAtTheFirstBatch(path)],
    )  # fmt: skip
    model = HybridClassifier(num_classes=3, parts=PARTS, start="probe")
    val = {name: tensor[:21] for name, tensor in data.items()}
    trainer.fit(model, loader(data, 10, shuffle=True), loader(val, 5))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*(LeafSpec|many workers|Using `DistributedSampler`|Total length).*")
    torch.set_num_threads(1)
    begin(int(sys.argv[1]), Path(sys.argv[2]) / f"{os.environ.get('LOCAL_RANK', 0)}.pt")
    end_process_group()
