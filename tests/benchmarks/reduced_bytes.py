"""Bytes that two ranks reduce in a step, before and after a backbone unfreezes, against what trains.

The model of ``configs/elpv.yaml`` with random weights on generated images of 64 pixels: EfficientNet-Lite0 is frozen
for a tenth of the run, an MLP on the cell's type trains from the start. Two gloo ranks. Under ddp a communication hook
of DistributedDataParallel counts the bytes of the buckets that are reduced; buffers, which it broadcasts besides, are
printed and not counted. Under fsdp2 the bytes that go into its reduce-scatters are counted, which are padded so that
all ranks have equal shares; parameters, which it gathers besides, are not counted.

RESULT reduced_bytes_frozen: bytes of a step / (4 × the number of trainable parameters) while the backbone is frozen.
RESULT reduced_bytes_unfrozen: the same after the unfreezing.
RESULT reduced_bytes_saved: bytes of a step while frozen / bytes after the unfreezing.
RESULT reduced_bytes_fsdp2_frozen, RESULT reduced_bytes_fsdp2_unfrozen, RESULT reduced_bytes_fsdp2_saved: under fsdp2.

    python tests/benchmarks/reduced_bytes.py
"""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.data import DataLoader

from hybrid_lightning import FSDP2Strategy, HybridClassifier
from hybrid_lightning.cli.config_files import read_config
from hybrid_lightning.data.in_memory import DictDataset, as_batch

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import started

ROOT = Path(__file__).parents[2]
RANKS, BATCH, STEPS, SIDE = 2, 8, 20, 64


class Count:
    """State of the hook: bytes and buckets since the last step."""

    reduced = 0
    buckets = 0


def counted(state: Count, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Reduces a bucket as DistributedDataParallel does by itself, and counts its bytes."""
    buffer = bucket.buffer()
    state.reduced += buffer.numel() * buffer.element_size()
    state.buckets += 1
    return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


class Watch(pl.Callback):
    """After each step: trainable parameters and reduced bytes."""

    def __init__(self, count: Count) -> None:
        self.count = count
        self.rows: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        trainable = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        self.rows.append((trainable, self.count.reduced))
        self.count.reduced = 0


def count_in(strategy: DDPStrategy, count: Count) -> None:
    """Gives each wrapper the hook, which Lightning gives on GPUs alone."""
    wrap = strategy.configure_ddp

    def wrap_and_count() -> None:
        wrap()
        strategy.model.register_comm_hook(count, counted)  # type: ignore[union-attr, operator]

    strategy.configure_ddp = wrap_and_count  # type: ignore[method-assign]


def count_reduce_scatters(count: Count) -> None:
    """Counts what goes into the reduce-scatters of this process."""
    # torch 2.13 calls it by another name than torch before
    name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
    original = getattr(dist, name)

    def counted_scatter(output: torch.Tensor, input: torch.Tensor, *rest: Any, **options: Any) -> Any:
        count.reduced += input.numel() * input.element_size()
        return original(output, input, *rest, **options)

    setattr(dist, name, counted_scatter)


def counting(name: str, count: Count) -> Strategy:
    """A strategy whose reductions are counted."""
    if name == "fsdp2":
        count_reduce_scatters(count)
        return FSDP2Strategy(process_group_backend="gloo")
    strategy = DDPStrategy(process_group_backend="gloo")
    count_in(strategy, count)
    return strategy


def model() -> HybridClassifier:
    facts = read_config(ROOT / "configs" / "elpv.yaml")["model"]["init_args"]
    parts = {**facts["parts"], "cell": {**facts["parts"]["cell"], "weights": None}}
    return HybridClassifier(**{**facts, "parts": parts, "cache": False})


def data() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    samples = RANKS * BATCH * STEPS
    images = torch.rand(samples, 3, SIDE, SIDE, generator=generator)
    kinds = torch.randn(samples, 2, generator=generator)
    entries = {"image": images, "type": kinds, "target": (kinds[:, 0] > 0).long()}
    return DataLoader(DictDataset(entries), BATCH, collate_fn=as_batch)


def rank(name: str) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    count = Count()
    watch = Watch(count)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "devices": RANKS, "max_epochs": 1, "gradient_clip_val": 1.0}
    trainer = pl.Trainer(
        strategy=counting(name, count), callbacks=[watch], enable_model_summary=False, **quiet, **options
    )
    task = model()
    trainer.fit(task, data())
    if os.environ["LOCAL_RANK"] == "0":
        report(name, watch.rows, sum(buffer.numel() * buffer.element_size() for buffer in task.buffers()))


def report(name: str, rows: list[tuple[int, int]], buffers: int) -> None:
    phases: dict[int, list[int]] = {}
    for trainable, reduced in rows:
        phases.setdefault(trainable, []).append(reduced)
    print(f"{name}, buffers: {buffers:,} bytes")
    shares = []
    for trainable, reduced in phases.items():
        shares.append(max(reduced) / (4 * trainable))
        print(f"{len(reduced)} steps: {trainable:,} trainable parameters, {min(reduced):,} to {max(reduced):,} bytes")
    frozen, unfrozen = phases.values()
    prefix = "reduced_bytes" if name == "ddp" else f"reduced_bytes_{name}"
    print(f"RESULT {prefix}_frozen {shares[0]:.4f} ratio")
    print(f"RESULT {prefix}_unfrozen {shares[1]:.4f} ratio")
    print(f"RESULT {prefix}_saved {max(frozen) / max(unfrozen):.4f} ratio")


def run(name: str) -> int:
    """Starts the ranks under a strategy, and waits for them; the largest of their exit statuses."""
    with started([__file__, name], RANKS, threads=1) as ranks:
        return max(process.wait(timeout=300) for process in ranks)


def main() -> int:
    if "LOCAL_RANK" in os.environ:
        rank(sys.argv[1])
        return 0
    return max(run("ddp"), run("fsdp2"))


if __name__ == "__main__":
    sys.exit(main())
