"""Whether sets and intervals hold the truth as often as they promise, and what temperature and threshold change.

Each set is resplit at random: 300 training, 200 validation, 200 calibration rows, and the rest, about 1,100, for the
test; nothing is chosen by test rows. Every run is at its defaults but for ``calibrate``, and its best checkpoint is
tested as it is served and, for "before", as it was trained (``--select joint``).

- noisy digits: 1,797 digits of scikit-learn, 8 × 8, under noise of the size of their contrast; ten classes.
- rare: the same images, and whether they show an eight; 10 % do, and the threshold is for F1.
- values: 1,800 generated rows of six numbers and a number that is lognormal, learned with ``transform: log``.

RESULT coverage: mean share of test rows of the noisy digits whose set, of 90 %, holds their class; and its deviation
over resplits, the mean number of classes in a set, and the same of intervals (in place of a size, the mean width
over the standard deviation of the test targets). Then before and after: calibration error and log loss of the digits,
F1 of the eights.

    python tests/benchmarks/coverage.py --resplits 20 --threads 1
"""

import argparse
import logging
import statistics
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader

from hybrid_lightning import HybridClassifier, HybridRegressor, HybridTask
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint

ENDS = {"train": 300, "val": 500, "calibration": 700, "test": None}
"""Split → where it ends among the rows; it begins where the one before ends."""
EPOCHS = 20
PART = {"x": {"module": "MLP", "args": {"hidden": [64]}}}


def noisy_digits() -> tuple[Tensor, Tensor]:
    """Images as 64 numbers, and classes."""
    digits = load_digits()
    images = torch.from_numpy(digits.data).float()
    images = (images - images.mean()) / images.std()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return images + noise, torch.from_numpy(digits.target)


def rare() -> tuple[Tensor, Tensor]:
    """The same images, and whether each is an eight."""
    images, digits = noisy_digits()
    return images, (digits == 8).long()


def values() -> tuple[Tensor, Tensor]:
    """Numbers, and what depends on three of them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1800, 6, generator=generator)
    noise = torch.randn(1800, generator=generator)
    return x, (x[:, 0] + 0.5 * x[:, 1] * x[:, 2] + 0.5 * noise).exp()


class Resplit(pl.LightningDataModule):
    """Rows in a random order of a seed, which are cut into splits."""

    def __init__(self, rows: tuple[Tensor, Tensor], seed: int, transform: str | None = None) -> None:
        super().__init__()
        x, target = rows
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        self.entries = {"x": x[order], "target": target[order]}
        self.target_transform = transform

    def _loader(self, split: str) -> DataLoader[dict[str, Tensor]]:
        names = list(ENDS)
        before = names[names.index(split) - 1]
        first = 0 if split == "train" else ENDS[before]
        rows = {name: tensor[first : ENDS[split]] for name, tensor in self.entries.items()}
        return DataLoader(DictDataset(rows), 32, shuffle=split == "train", collate_fn=as_batch)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Training batches."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation batches."""
        return self._loader("val")

    def calibration_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches that nothing but the quantile reads."""
        return self._loader("calibration")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Test batches."""
        return self._loader("test")


def measured(model: HybridTask, data: Resplit) -> tuple[dict[str, float], dict[str, float]]:
    """The test metrics of the best checkpoint of a run as it was trained, and as it is served."""
    with tempfile.TemporaryDirectory() as folder:
        best = BestCheckpoint(folder, "best", monitor="main")
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            logger=False,
            callbacks=[best],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        found = []
        for served in (False, True):
            model.serves_selection = served
            path = Path(best.best_model_path)
            [metrics] = trainer.test(model, data, ckpt_path=path, weights_only=True, verbose=False)
            found.append({name.removeprefix("test/"): value for name, value in metrics.items()})
    return found[0], found[1]


def model_of(name: str) -> HybridTask:
    """The task of a set."""
    if name == "values":
        return HybridRegressor(parts=PART, calibrate={"coverage": 0.9})
    if name == "rare":
        metrics = [{"name": "F1Score", "class": 1, "as": "f1"}]
        return HybridClassifier(num_classes=2, parts=PART, metrics=metrics, calibrate={"threshold": "f1"})
    return HybridClassifier(num_classes=10, parts=PART, calibrate={"coverage": 0.9})


def main() -> None:
    """Prints a row per resplit and set, and the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resplits", type=int, default=20, help="at least 2")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    sets = {"digits": noisy_digits(), "rare": rare(), "values": values()}
    columns: dict[str, list[float]] = {}
    for seed in range(options.resplits):
        for name, rows in sets.items():
            pl.seed_everything(seed, verbose=False)
            data = Resplit(rows, seed, "log" if name == "values" else None)
            before, after = measured(model_of(name), data)
            if name == "values":
                after["interval_width"] /= float(data.entries["target"][ENDS["calibration"] :].std())
            for metric, value in after.items():
                columns.setdefault(f"{name}_{metric}", []).append(value)
                if metric in before:
                    columns.setdefault(f"{name}_{metric}_before", []).append(before[metric])

    def result(name: str, column: str, unit: str) -> None:
        print(f"RESULT {name} {statistics.mean(columns[column]):.4f} {unit}")

    for column, found in columns.items():
        print(f"{column:<34} {' '.join(f'{value:.3f}' for value in found)}")
    result("coverage", "digits_coverage", "share")
    print(f"RESULT coverage_deviation {statistics.stdev(columns['digits_coverage']):.4f} share")
    result("coverage_set_size", "digits_set_size", "classes")
    result("coverage_accuracy", "digits_accuracy", "share")
    result("coverage_of_intervals", "values_coverage", "share")
    print(f"RESULT coverage_of_intervals_deviation {statistics.stdev(columns['values_coverage']):.4f} share")
    result("coverage_interval_width", "values_interval_width", "deviations")
    for metric in ("calibration_error", "loss"):
        result(f"coverage_{metric}_before", f"digits_{metric}_before", "nats" if metric == "loss" else "share")
        result(f"coverage_{metric}_after", f"digits_{metric}", "nats" if metric == "loss" else "share")
    result("coverage_f1_before", "rare_f1_before", "f1")
    result("coverage_f1_after", "rare_f1", "f1")


if __name__ == "__main__":
    main()
