"""What a training step costs with us, against a loop written by hand.

The model, data, batch size, optimizer settings, clipping and unfreezing of ``configs/deep_cnn_gradual.yaml``. A round
runs in turn, in one process and with the same number of threads: our ``fit`` with its default callbacks, a CSV log and
a progress bar; a plain loop with the same fused Adam and ``clip_grad_norm_``; and that loop with Adam as most people
write it (not fused). Timed from the first batch to the last.

RESULT step_overhead: median over rounds of ours / the plain loop with the same fused optimizer.
RESULT step_overhead_unfused: median over rounds of ours / the plain loop with the unfused optimizer.

    python tests/benchmarks/step_overhead.py --rounds 7 --threads 1
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from hybrid_lightning import DigitsDataModule, HybridClassifier
from hybrid_lightning.cli.config_files import read_config
from hybrid_lightning.data.in_memory import as_batch

CONFIG = read_config(Path(__file__).parents[2] / "configs" / "deep_cnn_gradual.yaml")
FACTS = CONFIG["model"]["init_args"]
EPOCHS = 3
UNFREEZE_STEP = 20  # of 51


class Stopwatch(pl.Callback):
    """Seconds from the first training batch to the end of the last."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 0:
            self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seconds = time.perf_counter() - self.started


def loader(data: DigitsDataModule) -> DataLoader[dict[str, Any]]:
    return DataLoader(data.splits["train"], data.batch_size, shuffle=True, collate_fn=as_batch)


def ours(data: DigitsDataModule, folder: str) -> float:
    torch.manual_seed(0)
    model = HybridClassifier(**{**FACTS, "pretrained": {"lr_scale": 0.1, "unfreeze": f"{UNFREEZE_STEP} steps"}})
    stopwatch = Stopwatch()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        gradient_clip_val=CONFIG["trainer"]["gradient_clip_val"],
        accelerator="cpu",
        logger=CSVLogger(folder),
        log_every_n_steps=10,
        callbacks=[stopwatch],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # the progress bar
        trainer.fit(model, loader(data))
    return stopwatch.seconds


def by_hand(data: DigitsDataModule, fused: bool) -> float:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2))
    body = nn.Sequential(
        nn.Conv2d(32, 64, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8192, 5),
    )  # fmt: skip
    model = nn.Sequential(stem, body)
    stem.requires_grad_(False)
    groups = [{"params": stem.parameters(), "lr": 1e-4}, {"params": body.parameters(), "lr": 1e-3}]
    optimizer = torch.optim.Adam(groups, fused=fused)
    batches = loader(data)
    step = 0
    started = time.perf_counter()
    for _ in range(EPOCHS):
        for batch in batches:
            if step == UNFREEZE_STEP:
                stem.requires_grad_(True)
            loss = nn.functional.cross_entropy(model(batch["image"]), batch["target"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="Counted rounds after one that is not.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    data = DigitsDataModule(**CONFIG["data"]["init_args"])
    data.setup()
    ratios: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.rounds + 1):
            seconds = ours(data, folder), by_hand(data, fused=True), by_hand(data, fused=False)
            print("warm-up" if index == 0 else f"round {index}", "seconds:", *(f"{s:.3f}" for s in seconds))
            if index:
                ratios.append((seconds[0] / seconds[1], seconds[0] / seconds[2]))
    print(f"RESULT step_overhead {statistics.median(r[0] for r in ratios):.3f} ratio")
    print(f"RESULT step_overhead_unfused {statistics.median(r[1] for r in ratios):.3f} ratio")


if __name__ == "__main__":
    main()
