"""One fit of `ranks.py`, on one or two gloo ranks; each rank saves its parameters after every epoch."""

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, DistributedSampler

from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.conformance.model import BATCH, STAGES, Module, loader, sgd, trainer
from tests.conformance.tools import TOOLS


class Share(pl.LightningDataModule):
    """The rank's share of the same global batches, in the same order; made once the rank is known."""

    def train_dataloader(self) -> DataLoader[Any]:
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        sampler = DistributedSampler(loader().dataset, ranks, rank, shuffle=False)
        return loader(BATCH // ranks, sampler=sampler)


class Save(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        torch.save(pl_module.state_dict(), self.folder / f"{trainer.global_rank}-{trainer.current_epoch}.pt")


def main(name: str, ranks: int, strategy: str, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    (tool,) = (tool for tool in TOOLS if tool.name == name)
    options = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2, "use_distributed_sampler": False}
    runner = trainer(tool, STAGES, folder, Save(folder), devices=ranks, strategy=strategy, **options)
    runner.fit(Module(tool, STAGES, optimizer=sgd), Share())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    end_process_group()
