"""What an epoch of a frozen phase costs with the cache: against the same live, and against bare Lightning on features.

Model, data, batch size and clipping of ``configs/elpv_frozen.yaml``, whose images only a frozen encoder reads, on the
first ``--rows`` training rows. A round runs in turn, in one process and with the same number of threads:

- our ``fit`` with ``cache: false`` and with ``cache: true``, both with all default callbacks and a CSV log;
- bare Lightning without logger, callbacks, clipping and metrics, with the same fusion and head, on the same features in
  memory, from a DataLoader of the same batch size that gives whole batches;
- a loop written by hand over that DataLoader.

An epoch is timed from its start to its last training batch, in CPU time, so that other programs count little; the
first one of a run, with the fill, is left out.

RESULT frozen_epoch: median over rounds of an epoch live / an epoch cached.
RESULT cached_epoch: median over rounds of an epoch cached / an epoch of bare Lightning.
RESULT cached_epoch_loop: median over rounds of an epoch cached / an epoch of the loop.

    python tests/benchmarks/frozen_epoch.py --rows 512 --rounds 5 --epochs 40 --threads 1
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
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hybrid_lightning import ElpvDataModule, HybridClassifier
from hybrid_lightning.cli.config_files import read_config
from hybrid_lightning.data.in_memory import DictDataset, as_batch, pick

CONFIG = read_config(Path(__file__).parents[2] / "configs" / "elpv_frozen.yaml")
OPTIONS = CONFIG["model"]["init_args"]
BATCH = CONFIG["data"]["init_args"]["batch_size"]
Batch = dict[str, Any]
Loader = DataLoader[Batch]


class Stopwatch(pl.Callback):
    """CPU seconds of each epoch from its start to the end of its last training batch."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.started = time.process_time()
        self.epochs.append(0.0)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.epochs[-1] = time.process_time() - self.started

    @property
    def epoch(self) -> float:
        """The median without the first."""
        return statistics.median(self.epochs[1:])


class Rest(nn.Module):
    """What is left of the network when the encoder's features are given."""

    def __init__(self, model: HybridClassifier) -> None:
        super().__init__()
        parts = model.built().parts
        self.kind, self.fusion, self.head = parts["kind"], parts["fusion"], parts["head"]
        self.train()  # the encoder's features were computed in eval mode

    def forward(self, batch: Batch) -> Tensor:
        features = {"cell": batch["cell"], "kind": self.kind(batch["type"])}
        outputs: Tensor = self.head(self.fusion(features))
        return outputs


class Bare(pl.LightningModule):
    """As one would write it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch), batch["target"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.network.parameters(), lr=1e-3, fused=True)


def new_model(cache: bool) -> HybridClassifier:
    torch.manual_seed(0)
    return HybridClassifier(**{**OPTIONS, "cache": cache})


def loader(samples: Batch, shuffle: bool = True) -> Loader:
    return DataLoader(DictDataset(samples), batch_size=BATCH, shuffle=shuffle, collate_fn=as_batch)


@contextlib.contextmanager
def quiet() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def ours(cache: bool, epochs: int, train: Batch, val: Batch, folder: str) -> float:
    stopwatch = Stopwatch()
    trainer = pl.Trainer(
        max_epochs=epochs,
        gradient_clip_val=CONFIG["trainer"]["gradient_clip_val"],
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=[stopwatch],
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    with quiet():
        trainer.fit(new_model(cache), loader(train), loader(val, shuffle=False))
    return stopwatch.epoch


def bare(rest: Rest, features: Batch, epochs: int) -> float:
    stopwatch = Stopwatch()
    off = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=[stopwatch], **off)
    with quiet():
        trainer.fit(Bare(rest), loader(features))
    return stopwatch.epoch


def by_hand(rest: Rest, features: Batch, epochs: int) -> float:
    optimizer = torch.optim.AdamW(rest.parameters(), lr=1e-3, fused=True)
    batches = loader(features)
    seconds = []
    for _ in range(epochs):
        started = time.process_time()
        for batch in batches:
            loss = nn.functional.cross_entropy(rest(batch), batch["target"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds[1:])


def encoded(model: HybridClassifier, samples: Batch) -> Batch:
    """The samples with the encoder's features in place of the images."""
    network = model.built().eval()
    with torch.no_grad():
        found = [network.features(batch, parts=["cell"])["cell"] for batch in loader(samples, shuffle=False)]
    return {"cell": torch.cat(found), "type": samples["type"], "target": samples["target"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512, help="Training rows; a sixth as many for validation.")
    parser.add_argument("--rounds", type=int, default=3, help="Counted rounds after one that is not.")
    parser.add_argument("--epochs", type=int, default=12, help="Of the fits that read features; live ones have 2.")
    parser.add_argument("--size", type=int, help="Height and width of the images, in place of the config's.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of torch.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    given = CONFIG["data"]["init_args"]
    data = ElpvDataModule(**{**given, "size": options.size or given["size"]})
    data.setup()
    train = pick(data.splits["train"].entries, torch.arange(options.rows))
    val = pick(data.splits["val"].entries, torch.arange(min(options.rows // 6, len(data.splits["val"]))))
    model = new_model(cache=False).build(pick(train, torch.arange(2)))
    features = encoded(model, train)
    ratios: list[tuple[float, float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.rounds + 1):
            live = ours(False, 2, train, val, folder)
            cached = ours(True, options.epochs, train, val, folder)
            lightning = bare(Rest(model), features, options.epochs)
            loop = by_hand(Rest(model), features, options.epochs)
            name = "warm-up" if index == 0 else f"round {index}"
            print(f"{name}: live {live:.3f} s, cached {cached:.4f}, bare Lightning {lightning:.4f}, loop {loop:.4f}")
            if index:
                ratios.append((live / cached, cached / lightning, cached / loop))
    for position, name in enumerate(("frozen_epoch", "cached_epoch", "cached_epoch_loop")):
        print(f"RESULT {name} {statistics.median(ratio[position] for ratio in ratios):.3f} ratio")


if __name__ == "__main__":
    main()
