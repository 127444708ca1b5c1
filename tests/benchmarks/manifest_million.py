"""What it costs to open a manifest of a million rows, until the first training batch is there.

The manifest is generated: a path (of one of 100 small images), an id, the split, 5 columns of numbers, 2 of categories
and a label, as CSV (about 100 MB) and as Parquet. In a process of its own for each, `ManifestDataModule` reads it,
checks every column, fits the statistics, and gives the first batch of a run, of images and a table, without workers.
Files are not looked for beforehand (``checks: false``). Imports of Python are not timed, but are in the memory.

RESULT manifest_million: seconds, for the slower of the formats.
RESULT manifest_million_memory: the larger peak of the process's resident memory.

    python tests/benchmarks/manifest_million.py --rows 1000000 --threads 1
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FORMATS = ("csv", "parquet")
NUMBERS = [f"number_{index}" for index in range(5)]


def write_manifest(folder: Path, rows: int) -> None:
    """``rows.csv``, ``rows.parquet`` and the images."""
    import pyarrow
    import pyarrow.compute as compute
    from PIL import Image
    from pyarrow import csv, parquet

    random = np.random.default_rng(0)
    for index in range(100):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"image_{index:03}.png")

    def chosen(words: list[str]) -> pyarrow.Array:
        return pyarrow.array(words).take(pyarrow.array(random.integers(0, len(words), rows)))

    numbers = {name: pyarrow.array(random.normal(size=rows).round(4)) for name in NUMBERS}
    ids = compute.binary_join_element_wise("sample", pyarrow.array(np.arange(rows)).cast(pyarrow.string()), "_")
    table = pyarrow.table(
        {
            "path": chosen([f"image_{index:03}.png" for index in range(100)]),
            "id": ids,
            "split": chosen(["train", "train", "train", "val", "test"]),
            **numbers,
            "site": chosen([f"site {index}" for index in range(40)]),
            "device": chosen(["a", "b", "c"]),
            "label": chosen(["cat", "dog", "bird"]),
        }
    )
    csv.write_csv(table, folder / "rows.csv")
    parquet.write_table(table, folder / "rows.parquet")


def peak_memory() -> float:
    """MB; what ``getrusage`` gives would begin with the peak of the process that has started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith("VmHWM"))
    return int(found.split()[1]) / 1024


def open_manifest(path: str, threads: int) -> None:
    """Prints the seconds and the peak of resident memory in MB."""
    import pyarrow
    import torch
    import torchmetrics  # noqa: F401  what a run has imported

    from hybrid_lightning.data.manifest import ManifestDataModule

    torch.set_num_threads(threads)
    pyarrow.set_cpu_count(threads)
    imported = peak_memory()
    started = time.perf_counter()
    data = ManifestDataModule(
        path,
        inputs={"photo": {"image": "path"}, "table": {"numeric": NUMBERS, "categorical": ["site", "device"]}},
        target="label",
        id="id",
        split_column="split",
        workers=0,
        checks=False,
    )
    data.setup("fit")
    set_up = time.perf_counter() - started
    batch = next(iter(data.train_dataloader()))
    assert batch["photo"].shape == (32, 3, 16, 16)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "set_up": set_up, "memory": peak_memory(), "imports": imported}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="Rows of the manifest.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch and of pyarrow.")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="Formats of the manifest.")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        open_manifest(options.open, options.threads)
        return
    seconds, memory = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_manifest(Path(folder), options.rows)
        for suffix in options.formats:
            path = Path(folder, f"rows.{suffix}")
            command = [sys.executable, __file__, "--open", str(path), "--threads", str(options.threads)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{suffix}, {path.stat().st_size / 1e6:.0f} MB: {found['set_up']:.2f} s to set up, "
                f"{found['seconds']:.2f} s with the first batch; {found['memory']:.0f} MB, {found['imports']:.0f} of "
                f"them imports"
            )
            seconds.append(found["seconds"])
            memory.append(found["memory"])
    print(f"RESULT manifest_million {max(seconds):.2f} seconds")
    print(f"RESULT manifest_million_memory {max(memory):.0f} MB")


if __name__ == "__main__":
    main()
