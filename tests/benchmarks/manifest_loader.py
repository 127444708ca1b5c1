"""How fast a manifest of images and a table is read, against a plain dataset that reads the same files.

Ours is the training loader of `ManifestDataModule`: PNG files of 64 × 64 pixels, a table of 5 columns of numbers and
2 of categories. The other is a torch dataset with the paths in a list and the table in tensors, the same calls of
Pillow and numpy for an image, torch's default collation and `DataLoader`. A round reads all samples with both, in one
process without workers, and every other round in the other order.

RESULT manifest_loader: median over rounds of our samples per second / those of the plain dataset.

    python tests/benchmarks/manifest_loader.py --rounds 60 --threads 1
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hybrid_lightning.data.manifest import ManifestDataModule

SAMPLES, BATCH, SIZE = 512, 32, 64
NUMBERS = [f"number_{index}" for index in range(5)]


class Plain(Dataset[dict[str, Any]]):
    """What somebody would write who has the paths and the table at hand."""

    def __init__(self, paths: list[str], numeric: Tensor, categorical: Tensor, target: Tensor) -> None:
        self.paths, self.numeric, self.categorical, self.target = paths, numeric, categorical, target

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with Image.open(self.paths[index]) as image:
            ImageOps.exif_transpose(image, in_place=True)
            value = torch.from_numpy(np.array(image)).float().div_(255).permute(2, 0, 1)
        table = {"numeric": self.numeric[index], "categorical": self.categorical[index]}
        return {"photo": value, "table": table, "target": self.target[index], "id": index}


def write_manifest(folder: Path) -> Path:
    """``rows.csv`` and its images."""
    random = np.random.default_rng(0)
    lines = [",".join(["file", *NUMBERS, "site", "device", "label", "split"])]
    for row in range(SAMPLES):
        smooth = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIZE, SIZE))
        smooth.save(folder / f"{row}.png")
        numbers = [f"{number:.3f}" for number in random.normal(size=5)]
        split = "val" if row % 8 in (1, 2) else "train"
        lines.append(",".join([f"{row}.png", *numbers, f"s{row % 7}", f"d{row % 3}", "ab"[row % 2], split]))
    (folder / "rows.csv").write_text("\n".join(lines))
    return folder / "rows.csv"


def loaders(path: Path) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Ours and the plain one, over the same rows."""
    inputs = {"photo": {"image": "file"}, "table": {"numeric": NUMBERS, "categorical": ["site", "device"]}}
    options: dict[str, Any] = {"target": "label", "split_column": "split", "batch_size": BATCH, "workers": 0}
    data = ManifestDataModule(str(path), inputs, **options)
    data.setup("fit")
    ours = data.datasets["train"]
    table = ours.samples.entries["table"].batch(ours.rows)
    assert isinstance(table, dict)
    paths = [str(path.parent / f"{row}.png") for row in ours.rows.tolist()]
    plain = Plain(paths, table["numeric"], table["categorical"], ours.targets)
    return data.train_dataloader(), DataLoader(plain, BATCH, shuffle=True)


def seconds_of(loader: DataLoader[Any], clock: Callable[[], float]) -> float:
    started = clock()
    samples = sum(len(batch["target"]) for batch in loader)
    assert samples >= len(loader.dataset) - 1  # type: ignore[arg-type]
    return clock() - started


def check_equal(ours: DataLoader[Any], plain: DataLoader[Any]) -> None:
    """Both have to give the same values."""
    indices = [5, 3, 100]
    a = ours.collate_fn([ours.dataset[index] for index in indices])
    b = torch.utils.data.default_collate([plain.dataset[index] for index in indices])
    assert torch.equal(a["photo"], b["photo"])
    assert all(torch.equal(a["table"][name], b["table"][name]) for name in b["table"])
    assert torch.equal(a["target"], b["target"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="Counted rounds after one that is not.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that others use.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    ratios: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        both = loaders(write_manifest(Path(folder)))
        check_equal(*both)
        speeds: list[tuple[float, float]] = []
        for index in range(options.rounds + 1):
            order = (0, 1) if index % 2 else (1, 0)
            seconds = {which: seconds_of(both[which], clock) for which in order}
            if index:
                ratios.append(seconds[1] / seconds[0])
                count = len(both[1].dataset)  # type: ignore[arg-type]
                speeds.append((count / seconds[0], count / seconds[1]))
    ours, plain = (statistics.median(speed[which] for speed in speeds) for which in (0, 1))
    ratios.sort()
    print(
        f"{ours:.0f} and {plain:.0f} samples/s; half of the ratios: {ratios[len(ratios) // 4]:.3f} to "
        f"{ratios[-1 - len(ratios) // 4]:.3f}"
    )
    print(f"RESULT manifest_loader {statistics.median(ratios):.3f} ratio")


if __name__ == "__main__":
    main()
