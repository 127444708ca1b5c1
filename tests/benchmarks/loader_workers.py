"""How fast the training loader of a manifest of images is, by the number of its workers.

JPEG files of 256 pixels that are read with ``size: 128``, all of them in the memory of the system (a first pass reads
them once). For each number of workers, kept from epoch to epoch or started anew in each: samples per second of an
epoch, the median over rounds, and the same where each batch is followed by work of the main process on one core, as a
step is that does not wait for a device; the processor time of a sample, of all processes together, which does not
depend on what else runs. The default of ``data.workers`` on this machine is printed beside them.

RESULT loader_workers_cpu: milliseconds of processor time of a sample without workers.
RESULT loader_workers_default: samples per second with the default / without workers.
RESULT loader_workers_kept: seconds of an epoch with workers that are kept / started anew, with the default.

    python tests/benchmarks/loader_workers.py --workers 0 1 2 4 --rounds 5 --threads 1
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from hybrid_lightning.data.loaders import worker_count
from hybrid_lightning.data.manifest import ManifestDataModule
from hybrid_lightning.data.samples import SampleDataset, make_loader
from hybrid_lightning.errors import counted

SAMPLES, BATCH, SIDE, SIZE = 1024, 32, 256, 128


class Speed(NamedTuple):
    """What one way to load takes."""

    samples: float  # per second
    beside_work: float  # the same with work of the main process after each batch
    cpu: float  # milliseconds of a sample


def write_manifest(folder: Path, samples: int) -> Path:
    """``rows.csv`` and its images, which are smooth, as photographs are."""
    random = np.random.default_rng(0)
    lines = ["file,label,split"]
    for row in range(samples):
        small = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{row}.jpg", quality=90)
        split = "val" if row in (1, 2) else "train"
        lines.append(f"{row}.jpg,{'ab'[row % 2]},{split}")
    (folder / "rows.csv").write_text("\n".join(lines))
    return folder / "rows.csv"


def dataset_of(path: Path) -> SampleDataset:
    inputs = {"photo": {"image": "file", "size": SIZE}}
    data = ManifestDataModule(str(path), inputs, target="label", split_column="split", batch_size=BATCH)
    data.setup("fit")
    return data.datasets["train"]


def work(seconds: float) -> None:
    """Keeps one core busy."""
    ends = time.process_time() + seconds
    while time.process_time() < ends:
        pass


def epoch(loader: Any, seconds: float = 0.0) -> int:
    """Reads all batches, each followed by so much work; returns the number of samples."""
    samples = 0
    for batch in loader:
        samples += len(batch["target"])
        work(seconds)
    return samples


def cpu_time() -> float:
    """Of this process and of those that it has started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def speed_of(dataset: SampleDataset, workers: int, persistent: bool, rounds: int, seconds: float) -> Speed:
    """Medians over epochs, the first one left out."""
    loader: Any = make_loader(dataset, BATCH, workers, persistent, None, None)
    begun = cpu_time()
    speeds: dict[float, list[float]] = {0.0: [], seconds: []}
    worked, read = 0.0, 0
    for index in range(rounds + 1):
        for of_batch, found in speeds.items():
            started = time.perf_counter()
            samples = epoch(loader, of_batch)
            if index:
                found.append(samples / (time.perf_counter() - started))
            worked += of_batch * len(loader)
            read += samples
    del loader  # ends the workers, whose time counts from then on
    cpu = cpu_time() - begun - worked
    alone, beside = map(statistics.median, speeds.values())
    return Speed(alone, beside, 1000 * cpu / read)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=SAMPLES, help="Images.")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4], help="Numbers of workers.")
    parser.add_argument("--rounds", type=int, default=5, help="Counted epochs of each kind after one that is not.")
    parser.add_argument("--step_ms", type=float, default=100, help="Work of the main process after each batch.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*worker processes in total")  # more than cores are tried on purpose
    with tempfile.TemporaryDirectory() as folder:
        dataset = dataset_of(write_manifest(Path(folder), options.samples))
        default = worker_count(1, len(dataset) // BATCH)
        epoch(make_loader(dataset, BATCH, 0, False, None, None))
        found: dict[tuple[int, bool], Speed] = {}
        for workers in sorted({*options.workers, 0, default}):
            for persistent in (True, False) if workers else (False,):
                speed = speed_of(dataset, workers, persistent, options.rounds, options.step_ms / 1000)
                found[workers, persistent] = speed
                kept = "" if not workers else " kept" if persistent else " started in each epoch"
                print(
                    f"{counted(workers, 'worker')}{kept}: {speed.samples:.0f} samples/s, "
                    f"{speed.beside_work:.0f} beside {options.step_ms:g} ms of work a batch; "
                    f"{speed.cpu:.2f} ms of processor time a sample",
                    flush=True,
                )
    cores = len(os.sched_getaffinity(0))
    print(f"default on {counted(cores, 'core')}: {counted(default, 'worker')}, kept")
    best = found[default, default > 0]
    print(f"RESULT loader_workers_cpu {found[0, False].cpu:.3f} ms")
    print(f"RESULT loader_workers_default {best.samples / found[0, False].samples:.3f} ratio")
    print(f"RESULT loader_workers_kept {found[default, False].samples / best.samples:.3f} ratio")


if __name__ == "__main__":
    main()
