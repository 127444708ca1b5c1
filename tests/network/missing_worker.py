"""One rank of `test_missing_on_ranks.py`: fits two parts that samples lack; one rank has batches without one."""

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler

from hybrid_lightning import FSDP2Strategy, HybridClassifier
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.distributed.fsdp2 import end_process_group
from hybrid_lightning.distributed.sharding import whole
from tests.tiny import trainer

GLOBAL_BATCH = 8


class Lacking(pl.LightningDataModule):
    """40 samples; the second rank's first batch of each epoch has no ``a`` at all, its last one no ``b``."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()

    def train_dataloader(self) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        a, b = torch.randn(2, 40, 4, generator=generator)
        has_a = torch.rand(40, generator=generator) < 0.6
        has_b = ~has_a | (torch.rand(40, generator=generator) < 0.5)
        has_a[1:8:2], has_b[1:8:2] = False, True
        has_a[33:40:2], has_b[33:40:2] = True, False
        entries = {"a": a, "b": b, "present/a": has_a, "present/b": has_b, "target": (a.sum(1) > 0).long()}
        dataset = DictDataset(entries)
        assert self.trainer is not None
        sampler: DistributedSampler[Any] = DistributedSampler(
            dataset, self.ranks, self.trainer.global_rank, shuffle=False
        )
        return DataLoader(dataset, GLOBAL_BATCH // self.ranks, sampler=sampler, collate_fn=as_batch)


def main(kind: str, ranks: int, folder: Path) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", ".*(LeafSpec|many workers|val_dataloader|on_before_batch_transfer|TypedStorage|FSDP).*"
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = {
        "a": {"module": "MLP", "args": {"hidden": [6, 5]}, "unfreeze": "3 steps"},
        "b": {"module": "MLP", "args": {"hidden": [5]}},
    }
    fusion = {"module": "GatedFusion", "args": {"width": 8, "standardize": "features"}}
    model = HybridClassifier(num_classes=2, parts=parts, fusion=fusion, lr=0.01)
    strategies: dict[str, Any] = {"ddp": DDPStrategy(process_group_backend="gloo"), "fsdp2": FSDP2Strategy()}
    strategy = strategies[kind] if ranks > 1 else "auto"
    options = {"max_epochs": 2, "gradient_clip_val": 0.5, "use_distributed_sampler": False}
    runner = trainer(devices=ranks, strategy=strategy, **options)
    runner.fit(model, Lacking(ranks))
    weights = {name: whole(parameter.detach()).clone() for name, parameter in model.named_parameters()}
    torch.save(weights, folder / f"{kind}-{ranks}-{runner.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    end_process_group()
