"""One rank of `test_manifest.py`: draws of balanced sampling, their exact resume, and sharded prediction."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning import FSDP2Strategy, ManifestDataModule
from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.resume.resuming import differences
from tests.shards import tower_shards
from tests.tiny import hybrid, trainer

INPUTS = {"old": {"numeric": list("abcd")}, "new": {"numeric": list("dcba")}}


class Draws(pl.Callback):
    """The rows of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[list[int]] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.epochs.append([])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.epochs[-1] += batch["id"].tolist()


class Seen(pl.Callback):
    """The rows of each predicted batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def on_predict_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *places: int) -> None:
        self.batches.append(batch["id"].tolist())


def data(batch_size: int, rows: int = 48) -> ManifestDataModule:
    lines = [
        f"{row},{row % 5},{row % 3},{-row},{'ab'[row % 4 == 0]},{'train' if row < 40 else 'val'}" for row in range(rows)
    ]
    path = Path(f"rows-{rows}-{os.environ.get('LOCAL_RANK', 0)}.csv")
    path.write_text("\n".join(["a,b,c,d,label,split", *lines]))
    return ManifestDataModule(
        str(path), INPUTS, "label", split_column="split", batch_size=batch_size, workers=0, sampling="balanced"
    )


def draws(ranks: int) -> Any:
    seen = Draws()
    strategy: Any = DDPStrategy(process_group_backend="gloo") if ranks > 1 else "auto"
    fitting = trainer(max_epochs=2, devices=ranks, strategy=strategy, callbacks=[seen])
    pl.seed_everything(3, verbose=False)
    fitting.fit(hybrid(), datamodule=data(8 // ranks))
    return seen.epochs


def resume(ranks: int, folder: Path, kind: str) -> Any:
    def loader() -> Any:
        if kind == "resume_shards":
            return tower_shards("shards", 4)
        made = data(4)
        made.setup("fit")
        return made.train_dataloader()

    strategy = lambda: DDPStrategy(process_group_backend="gloo")  # noqa: E731
    return differences(lambda: hybrid("3 steps"), loader, folder, every=6, strategy=strategy, devices=ranks)


def predict(ranks: int) -> Any:
    seen, made = Seen(), data(2)
    made.setup("fit")
    state = made.state_dict()
    new = data(2, rows=5)
    new.predict_path = new.path
    new.load_state_dict(state)
    strategy = FSDP2Strategy(process_group_backend="gloo")
    trainer(devices=ranks, strategy=strategy, callbacks=[seen]).predict(hybrid(), datamodule=new)
    return seen.batches


def main(kind: str, ranks: int, folder: Path) -> None:
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.chdir(folder)
    if kind.startswith("resume"):
        found = resume(ranks, folder, kind)
    else:
        found = {"draws": draws, "predict": predict}[kind](ranks)
    torch.save(found, folder / f"{kind}-{ranks}-{os.environ.get('LOCAL_RANK', 0)}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    end_process_group()
