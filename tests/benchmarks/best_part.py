"""Whether what a run leaves is as good as its best part, on a generated set in the shape of houses.

400 training and 100 validation rows (generated anew by each seed): four frozen photo encodings, 4 × 1280 numbers of
which a few say a little of the value, beside a table of four numbers that says most of it. Everything is at its
default: `ConcatFusion`, AdamW, 20 epochs at 3e-3. The test rows, 2,000, choose nothing.

Columns: R² on the test rows of what ``best.ckpt`` serves, of its joint network, of the table's part trained alone with
the same settings, and of ridge regression on the table in closed form.

RESULT best_part: mean over seeds of (R² served - R² of the table trained alone), over the standard error of that mean.
RESULT best_part_difference: that mean. RESULT best_part_joint and best_part_joint_difference: the same of the joint
network in place of what is served. RESULT best_part_worse: seeds in which what was selected is worse on the test rows
than the joint network.

    python tests/benchmarks/best_part.py --seeds 0 1 2 3 4 5 6 7 8 9 --threads 1
"""

import argparse
import logging
import statistics
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from hybrid_lightning import HybridRegressor
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.probe.score import score
from hybrid_lightning.probe.vote import fit_vote

TRAINING, VALIDATION, TEST = 400, 100, 2000
PHOTOS = 4 * 1280
PARTS = {"photos": {"module": "torch.nn.Identity"}, "table": {"module": "MLP"}}


class Houses(pl.LightningDataModule):
    """The generated set of a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rows = TRAINING + VALIDATION + TEST
        table = torch.randn(rows, 4, generator=generator)
        hidden = torch.randn(rows, generator=generator)  # what photos show and the table does not say
        value = table @ torch.tensor([1.0, 0.6, -0.4, 0.2]) + 0.4 * hidden
        value += 0.4 * torch.randn(rows, generator=generator)
        photos = torch.randn(rows, PHOTOS, generator=generator)
        photos[:, :40] += 0.4 * hidden[:, None]
        self.entries = {"photos": photos, "table": table, "target": value}

    def rows(self, first: int, last: int) -> dict[str, Tensor]:
        """The entries of some rows."""
        return {name: tensor[first:last] for name, tensor in self.entries.items()}

    def _loader(self, first: int, last: int, shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(DictDataset(self.rows(first, last)), 32, shuffle, collate_fn=as_batch)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Training batches."""
        return self._loader(0, TRAINING, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Validation batches."""
        return self._loader(TRAINING, TRAINING + VALIDATION)


def fit_and_score(data: Houses, seed: int, parts: dict[str, dict[str, str]]) -> tuple[float, float]:
    """R² on the test rows of what a run's best checkpoint serves, and of its joint network."""
    pl.seed_everything(seed, verbose=False)
    entries = data.rows(TRAINING + VALIDATION, TRAINING + VALIDATION + TEST)
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, "best", monitor="val/loss")
        trainer = pl.Trainer(
            max_epochs=20,
            accelerator="cpu",
            logger=False,
            callbacks=[best],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(HybridRegressor(parts=parts, lr=3e-3), data)
        model = HybridRegressor.load_from_checkpoint(Path(best.best_model_path))
    found = []
    for _ in range(2):
        with torch.no_grad():
            predicted = model.predictions(model(entries))
        found.append(score(predicted[:, None], entries["target"], "values").value)
        model.built().selection = None
    return found[0], found[1]


def main() -> None:
    """Prints a row per seed, and the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    differences = []
    of_joint = []
    worse = 0
    lines = ["seed  served  joint  table alone  ridge on the table"]
    for seed in options.seeds:
        data = Houses(seed)
        served, joint = fit_and_score(data, seed, PARTS)
        alone, _ = fit_and_score(data, seed, {"table": PARTS["table"]})
        training, test = data.rows(0, TRAINING), data.rows(TRAINING + VALIDATION, TRAINING + VALIDATION + TEST)
        vote = fit_vote(training["table"], training["target"], "values", outputs=1)
        ridge = score(vote(test["table"]), test["target"], "values").value
        differences.append(served - alone)
        of_joint.append(joint - alone)
        worse += served < joint
        lines.append(f"{seed:>4}  {served:6.3f}  {joint:5.3f}  {alone:11.3f}  {ridge:18.3f}")
    print("\n".join(lines))
    for name, values in (("best_part", differences), ("best_part_joint", of_joint)):
        mean = statistics.mean(values)
        error = statistics.stdev(values) / len(values) ** 0.5
        print(f"RESULT {name} {mean / error:.2f} standard_errors")
        print(f"RESULT {name}_difference {mean:.4f} R2")
    print(f"RESULT best_part_worse {worse} seeds")


if __name__ == "__main__":
    main()
