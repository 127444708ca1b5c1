"""What each process of a run holds of one manifest of ten million rows, with ranks and workers of one machine.

The manifest is generated as Parquet: a path in each row, all different (of one of 100 small images, through links to
their folder), a label of 3, a group of 100 rows, by which the split is drawn, and a number. The ranks (gloo) train a
small network on images and numbers for 100 steps, with ``checks: false``, and write ``split.csv``. Measured by each
process: the time from the DataModule to the first batch, the peak of resident memory until the last step, and then the
memory by ``/proc/self/smaps_rollup``, where a page that n processes share counts for 1/n in each (PSS), and what a
worker has alone as private. Imports are not in the times, but in the memory, and are printed.

RESULT manifest_ranks_seconds: wall clock of the slowest rank until its first batch.
RESULT manifest_ranks_cpu_seconds: processor time of a rank until its first batch, the most of them.
RESULT manifest_ranks_peak: MB, the largest peak of a rank.
RESULT manifest_ranks_held: MB of a rank and its workers together at the last step, the most of them.
RESULT manifest_ranks_worker: MB that a worker does not share, the most of them.

    python tests/benchmarks/manifest_ranks.py --rows 10000000 --ranks 2 --workers 2 --threads 1
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pyarrow
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning import HybridClassifier
from hybrid_lightning.data.manifest import ManifestDataModule

sys.path.insert(0, str(Path(__file__).parent))
from side_by_side import started

IMAGES, LINKS, ROWS_OF_GROUP, STEPS = 100, 1000, 100, 100


def write_manifest(folder: Path, rows: int) -> Path:
    """``rows.parquet`` and the images, behind names such as ``d012/d345/image_006.png``."""
    import pyarrow.compute as compute
    from PIL import Image
    from pyarrow import parquet

    random = np.random.default_rng(0)
    for index in range(IMAGES):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"image_{index:03}.png")
    for index in range(LINKS):
        (folder / f"d{index:03}").symlink_to(".")

    def chosen(words: list[str], indices: Any) -> pyarrow.Array:
        return pyarrow.array(words).take(pyarrow.array(indices))

    numbers = np.arange(rows)
    folders = [f"d{index:03}" for index in range(LINKS)]
    images = [f"image_{index:03}.png" for index in range(IMAGES)]
    outer = chosen(folders, numbers // (IMAGES * LINKS) % LINKS)
    inner = chosen(folders, numbers // IMAGES % LINKS)
    groups = pyarrow.array(random.permutation(numbers) // ROWS_OF_GROUP).cast(pyarrow.string())
    table = pyarrow.table(
        {
            "path": compute.binary_join_element_wise(outer, inner, chosen(images, numbers % IMAGES), "/"),
            "label": chosen(["cat", "dog", "bird"], random.integers(0, 3, rows)),
            "group": compute.binary_join_element_wise("patient", groups, "_"),
            "number": random.normal(size=rows).round(4),
        }
    )
    parquet.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


def memory_of(process: int) -> dict[str, float]:
    """MB by name: ``rss``, ``pss`` and ``private``."""
    kilobytes: dict[str, int] = {}
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]:
        name, amount = line.split()[:2]
        kilobytes[name.rstrip(":")] = int(amount)
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"rss": kilobytes["Rss"] / 1024, "pss": kilobytes["Pss"] / 1024, "private": private / 1024}


def peak_memory() -> float:
    """MB; what ``getrusage`` gives would begin with the peak of the process that has started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith("VmHWM"))
    return int(found.split()[1]) / 1024


def children() -> list[int]:
    """The processes that this one has started."""
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        found += [int(word) for word in path.read_text().split()]
    return found


class Watch(pl.Callback):
    """The time of the first batch, and the memory at the last step."""

    def __init__(self) -> None:
        self.started, self.imports = time.perf_counter(), memory_of(os.getpid())["rss"]
        self.cpu_started = time.process_time()
        self.found: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        self.found["set_up"] = time.perf_counter() - self.started

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.found["seconds"] = time.perf_counter() - self.started
            self.found["cpu_seconds"] = time.process_time() - self.cpu_started

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step < STEPS:
            return
        trainer.strategy.barrier()  # so that each process still holds what it shares
        self.found["peak"] = peak_memory()
        self.found["imports"] = self.imports
        self.found["rank"] = memory_of(os.getpid())
        self.found["workers"] = [memory_of(child) for child in children()]
        trainer.strategy.barrier()


def rank(path: str, ranks: int, workers: int, threads: int) -> None:
    """Trains for some steps; prints what was found as a line of JSON."""
    torch.set_num_threads(threads)
    pyarrow.set_cpu_count(threads)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    watch = Watch()
    inputs = {"photo": {"image": "path"}, "table": {"numeric": ["number"]}}
    data = ManifestDataModule(path, inputs, target="label", split_by="group", workers=workers, checks=False)
    parts = {"photo": {"module": "ConvExtractor", "args": {"channels": [4]}}, "table": {"module": "MLP"}}
    trainer = pl.Trainer(
        max_steps=STEPS,
        limit_val_batches=0,
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto",
        callbacks=[watch],
        logger=CSVLogger(str(Path(path).parent)),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(HybridClassifier(num_classes=3, parts=parts), data)
    print(json.dumps(watch.found), flush=True)


def run_ranks(path: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What each rank found."""
    words = [__file__, "--open", str(path), "--ranks", str(options.ranks)]
    words += ["--workers", str(options.workers), "--threads", str(options.threads)]
    with started(words, options.ranks, options.threads, output=subprocess.PIPE) as processes:
        outputs = [process.communicate(timeout=1800)[0] for process in processes]
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def held(found: dict[str, Any]) -> float:
    """MB of a rank and its workers, shared pages counted once."""
    return float(found["rank"]["pss"] + sum(worker["pss"] for worker in found["workers"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="Rows of the manifest.")
    parser.add_argument("--ranks", type=int, default=2, help="Ranks, all on this machine.")
    parser.add_argument("--workers", type=int, default=2, help="Workers of each rank.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch and of pyarrow, in each rank.")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        rank(options.open, options.ranks, options.workers, options.threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = write_manifest(Path(folder), options.rows)
        print(f"{options.rows:,} rows, {path.stat().st_size / 1e6:.0f} MB")
        found = run_ranks(path, options)
    for number, one in enumerate(found):
        own, of_workers = one["rank"], one["workers"]
        print(
            f"rank {number}: first batch after {one['seconds']:.1f} s ({one['cpu_seconds']:.1f} s of processor time); "
            f"peak {one['peak']:.0f} MB, {one['imports']:.0f} of them imports; then {own['rss']:.0f} MB, with its "
            f"workers {held(one):.0f}"
        )
        for worker in of_workers:
            print(f"  worker: {worker['rss']:.0f} MB, {worker['private']:.0f} of them not shared")
    workers = [worker["private"] for one in found for worker in one["workers"]]
    print(f"RESULT manifest_ranks_seconds {max(one['seconds'] for one in found):.1f} seconds")
    print(f"RESULT manifest_ranks_cpu_seconds {max(one['cpu_seconds'] for one in found):.1f} seconds")
    print(f"RESULT manifest_ranks_peak {max(one['peak'] for one in found):.0f} MB")
    print(f"RESULT manifest_ranks_held {max(map(held, found)):.0f} MB")
    print(f"RESULT manifest_ranks_worker {max(workers, default=0):.0f} MB")


if __name__ == "__main__":
    main()
