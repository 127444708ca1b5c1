"""What a training step costs on two ranks while a backbone is frozen.

Two gloo ranks fit a small head on a frozen backbone of about 5 M parameters. A round runs in turn, in the same two
processes and with the same number of threads, three `Trainer.fit` of the same model, data and AdamW:

- ours: `GradualUnfreezing`, which wraps the model anew so that DistributedDataParallel knows only what trains;
- find_unused: ``find_unused_parameters=True``, the backbone's ``requires_grad`` set to False after the wrap;
- lr zero: everything trains, the backbone at rate 0.

Timed on rank 0: the median time of a step, from one batch's start to the next, without the first steps.

RESULT ddp_phase_cost: median over rounds of ours / find_unused.
RESULT ddp_phase_cost_lr_zero: median over rounds of ours / lr zero.

    python tests/benchmarks/ddp_phase_cost.py --rounds 7 --threads 1
"""

import argparse
import logging
import os
import statistics
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hybrid_lightning import GradualUnfreezing, named_param_groups

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import started

RANKS, WIDTH, LAYERS, BATCH, STEPS, SKIPPED = 2, 1024, 5, 16, 30, 10


class Model(pl.LightningModule):
    """A backbone of 5.2 M parameters and a head of 10 k."""

    def __init__(self, backbone_rate: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, 10)
        self.backbone_rate = backbone_rate

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parts = {"backbone": "backbone", "head": "head"}
        return torch.optim.AdamW(
            named_param_groups(self, parts, lr=1e-3, rates={"backbone": {"lr_scale": self.backbone_rate}})
        )


class FlagsAfterTheWrap(pl.Callback):
    """Freezes the backbone when the model is wrapped already."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.backbone.requires_grad_(False)


class Stopwatch(pl.Callback):
    """The moment of each batch's start."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.moments.append(time.perf_counter())

    def step(self) -> float:
        """The median time of a step in milliseconds."""
        counted = self.moments[SKIPPED:]
        return 1000 * statistics.median(after - before for before, after in pairwise(counted))


def milliseconds(way: str) -> float:
    callbacks: dict[str, list[pl.Callback]] = {
        "ours": [GradualUnfreezing({"backbone": "never"})],
        "find_unused": [FlagsAfterTheWrap()],
        "lr_zero": [],
    }
    stopwatch = Stopwatch()
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=RANKS,
        strategy=DDPStrategy(process_group_backend="gloo", find_unused_parameters=way == "find_unused"),
        callbacks=[*callbacks[way], stopwatch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    x = torch.randn(RANKS * BATCH * STEPS, WIDTH, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), BATCH)
    model = Model(0.0 if way == "lr_zero" else 0.1)
    before = model.backbone[0][0].weight.detach().clone()
    trainer.fit(model, loader)
    if not torch.equal(before, model.backbone[0][0].weight):
        raise AssertionError(f"{way}: the backbone is not frozen")
    return stopwatch.step()


def rank(rounds: int, threads: int) -> None:
    torch.set_num_threads(threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    first = os.environ["LOCAL_RANK"] == "0"
    ratios: list[tuple[float, float]] = []
    for index in range(rounds + 1):
        ours, find_unused, lr_zero = (milliseconds(way) for way in ("ours", "find_unused", "lr_zero"))
        if first:
            name = f"round {index}" if index else "warm-up"
            print(
                f"{name} ms a step: ours {ours:.2f}, find_unused {find_unused:.2f}, lr zero {lr_zero:.2f}", flush=True
            )
        if index:
            ratios.append((ours / find_unused, ours / lr_zero))
    if first:
        print(f"RESULT ddp_phase_cost {statistics.median(r[0] for r in ratios):.3f} ratio")
        print(f"RESULT ddp_phase_cost_lr_zero {statistics.median(r[1] for r in ratios):.3f} ratio")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="Counted rounds after one that is not.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch, on each rank.")
    options = parser.parse_args()
    if "LOCAL_RANK" in os.environ:
        rank(options.rounds, options.threads)
        return 0
    words = [__file__, "--rounds", str(options.rounds), "--threads", str(options.threads)]
    with started(words, RANKS, options.threads) as ranks:
        return max(process.wait(timeout=120 * (options.rounds + 1)) for process in ranks)


if __name__ == "__main__":
    sys.exit(main())
