"""How fast small images are read from tar shards, against the same images as single files.

Both are the training loader of `ManifestDataModule` without workers, over PNG files of 64 × 64 pixels: a CSV of paths
in their order on disk, and shards of 512 samples in theirs. A round reads all samples with both, every other round in
the other order. ``--cold`` asks the system, before each reading, to forget what it has read of these files; names and
sizes of files stay known to it, so that a shared file system, which asks a server for each file, gains more.

RESULT shard_loader: median over rounds of the shards' samples per second / those of the files.

    python tests/benchmarks/shard_loader.py --rounds 20 --threads 1
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, SequentialSampler

from hybrid_lightning.data.manifest import ManifestDataModule
from hybrid_lightning.data.shard_writing import write_shards

SAMPLES, BATCH, SIZE = 4096, 64, 64


def write_files(folder: Path) -> ManifestDataModule:
    """The images and their manifest, as data."""
    random = np.random.default_rng(0)
    lines = ["file,label,split"]
    for row in range(SAMPLES):
        smooth = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIZE, SIZE))
        smooth.save(folder / f"{row:05}.png")
        lines.append(f"{row:05}.png,{'ab'[row % 2]},train")
    (folder / "rows.csv").write_text("\n".join(lines))
    inputs = {"photo": {"image": "file"}}
    return ManifestDataModule(
        str(folder / "rows.csv"), inputs, "label", split_column="split", batch_size=BATCH, workers=0
    )


def in_order(data: ManifestDataModule) -> DataLoader[Any]:
    """The training samples as they lie on disk."""
    data.setup("fit")
    dataset = data.datasets["train"]
    return DataLoader(dataset, BATCH, sampler=SequentialSampler(dataset), collate_fn=dataset.collate)


def forget(folder: Path) -> None:
    """Asks the system to drop the pages of all files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of(loader: DataLoader[Any], clock: Callable[[], float]) -> float:
    started = clock()
    assert sum(len(batch["target"]) for batch in loader) == SAMPLES
    return clock() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="Counted rounds after one that is not.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that others use.")
    parser.add_argument("--cold", action="store_true", help="Forget what was read, before each reading.")
    parser.add_argument("--folder", help="On which disk; left out: that of temporary files.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    speeds: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        files = write_files(folder)
        loaders = [in_order(files)]
        write_shards(files, folder / "shards", 512)
        shards = ManifestDataModule(
            {"train": f"{folder}/shards/train-*.tar"}, {"photo": {"image": "photo.png"}}, "json.label"
        )
        loaders.insert(0, in_order(shards))
        os.sync()
        for index in range(options.rounds + 1):
            seconds = [0.0, 0.0]
            for which in (0, 1) if index % 2 else (1, 0):
                if options.cold:
                    forget(folder)
                seconds[which] = seconds_of(loaders[which], clock)
            if index:
                speeds.append((SAMPLES / seconds[0], SAMPLES / seconds[1]))
    ratios = sorted(ours / single for ours, single in speeds)
    ours, single = (statistics.median(speed[which] for speed in speeds) for which in (0, 1))
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(f"{ours:.0f} and {single:.0f} samples/s; half of the ratios: {low:.3f} to {high:.3f}")
    print(f"RESULT shard_loader {statistics.median(ratios):.3f} ratio")


if __name__ == "__main__":
    main()
