"""Memory and time of a run against the same training written by hand in torch."""

import gc
import statistics
import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from tests.gpu.model import CLASSES, COLUMNS, Tower, loader, task, trainer

AIM, BOUND = 1.02, 1.10
"""The ratio that we aim at, and above which the check fails: small steps vary by some percent."""
ROUNDS, WARM_UP = 3, 10
"""Counted rounds, and steps of each run that are not counted."""


class ByHand(nn.Module):
    """The network that `HybridClassifier` builds: two towers, their standardized projections, and a linear head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = Tower(width)
        self.table = nn.Sequential(nn.Linear(COLUMNS, 16), nn.ReLU())
        sizes = (2 * width, 16)
        self.norms = nn.ModuleList([nn.BatchNorm1d(size, affine=False) for size in sizes])
        self.projections = nn.ModuleList([nn.Linear(size, 64) for size in sizes])
        self.head = nn.Linear(128, CLASSES)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        features = (self.image(batch["image"]), self.table(batch["table"]))
        layers = zip(features, self.norms, self.projections, strict=True)
        vectors = [projection(norm(values)).relu() for values, norm, projection in layers]
        return self.head(torch.cat(vectors, dim=1))


class Stopwatch(pl.Callback):
    """Seconds from the first counted batch to the end of the last, with all of the device's work."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == WARM_UP:
            synchronize(pl_module.device.type)
            self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        synchronize(pl_module.device.type)
        self.seconds = time.perf_counter() - self.started


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak(device: str) -> int:
    """Bytes that tensors took at most since the last call."""
    if device != "cuda":
        return 0
    found = torch.cuda.max_memory_allocated()
    gc.collect()  # a Trainer and its module are a cycle, whose memory would count for what comes next
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return found


def ours(device: str, data: Any, width: int, epochs: int) -> float:
    model, stopwatch = task(f"{len(data) * epochs // 2} steps", {"args": {"width": width}}), Stopwatch()
    trainer(device, max_epochs=epochs, log_every_n_steps=50, callbacks=[stopwatch]).fit(model, data)
    return stopwatch.seconds


def by_hand(device: str, data: Any, width: int, epochs: int) -> float:
    torch.manual_seed(0)
    model = ByHand(width).to(device)
    tower, others = model.image, [p for name, p in model.named_parameters() if not name.startswith("image.")]
    tower.requires_grad_(False).eval()
    groups = [{"params": tower.parameters(), "lr": 0.001}, {"params": others, "lr": 0.01}]
    optimizer = torch.optim.AdamW(groups, fused=True)
    step, started = 0, 0.0
    for _ in range(epochs):
        for on_cpu in data:
            batch = {name: value.to(device, non_blocking=True) for name, value in on_cpu.items()}
            if step == WARM_UP:
                synchronize(device)
                started = time.perf_counter()
            if step == len(data) * epochs // 2:
                tower.requires_grad_(True).train()
            loss = nn.functional.cross_entropy(model(batch), batch["target"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
    synchronize(device)
    return time.perf_counter() - started


def against_by_hand(device: str) -> str:
    """Time and memory of a run, half of it with a frozen tower, are those of a loop written by hand."""
    width, batch, side, batches, epochs = (64, 256, 64, 40, 3) if device == "cuda" else (16, 32, 32, 20, 2)
    data = loader(batch * batches, batch=batch, side=side)
    ratios, sizes = [], []
    for index in range(ROUNDS + 1):
        seconds, bytes_ = [], []
        for way in (ours, by_hand):
            peak(device)
            seconds.append(way(device, data, width, epochs))
            bytes_.append(peak(device))
        if index:  # the first round only warms up
            ratios.append(seconds[0] / seconds[1])
            sizes.append(bytes_[0] / max(bytes_[1], 1))
    ratio, size = statistics.median(ratios), statistics.median(sizes)
    memory = f", memory × {size:.2f}" if device == "cuda" else ""
    said = f"time × {ratio:.3f} (aim {AIM}){memory}, {1000 * seconds[0] / (batches * epochs - WARM_UP):.1f} ms a step"
    assert device != "cuda" or max(ratio, size) <= BOUND, said
    return said
