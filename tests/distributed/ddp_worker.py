"""One rank of `test_ddp.py`: fits the tiny model and saves what the rank holds."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from hybrid_lightning import GradientClipping, GradientNormMonitor, GradualUnfreezing, NonFiniteGradients
from hybrid_lightning.data.in_memory import as_batch
from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.tiny import Foreign, batches, hybrid, trainer

GLOBAL_BATCH = 8


def loader(ranks: int, rank: int) -> DataLoader[Any]:
    """The rank's share of the same global batches in the same order."""
    dataset = batches().dataset
    sampler = DistributedSampler(dataset, ranks, rank, shuffle=False)  # type: ignore[arg-type]
    return DataLoader(dataset, GLOBAL_BATCH // ranks, sampler=sampler, collate_fn=as_batch)


class Judged(Foreign):
    """Each rank validates to a value of its own; only their mean stops falling after the first epoch."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        mean = 3.0 if self.trainer.current_epoch == 0 else 2.0
        share = 1 + self.trainer.current_epoch * (-1) ** self.global_rank if self.trainer.world_size > 1 else 1
        self.log("val/loss", mean * share)


class Drift(pl.Callback):
    """Changes the last bits of one value on the second rank alone."""

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_rank == 1:
            with torch.no_grad():
                pl_module.head.bias[0] += 1e-6


class Poison(pl.Callback):
    """One nan in one gradient, on the second rank alone."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 3:
            pl_module.head.bias.grad[0] = float("nan")


class Reducer(pl.Callback):
    """Asserts at every step that the wrapper reduces exactly what trains."""

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        wrapper = trainer.strategy.model
        if isinstance(wrapper, DistributedDataParallel):
            reduced = wrapper._get_ddp_logging_data()["num_parameter_tensors"]
            assert reduced == sum(p.requires_grad for p in pl_module.parameters())


def main(kind: str, ranks: int, folder: Path) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", ".*(LeafSpec|many workers|sync_dist=True|not finite in|val_dataloader|on_before_batch_transfer).*"
    )
    torch.set_num_threads(1)
    schedule: dict[str, Any] = {"start": "2 steps", "every": "2 steps"}
    if kind == "plateau":
        schedule = {"plateau": "val/loss", "patience": "1 validations"}
    if kind == "task":
        model: pl.LightningModule = plain_norm(hybrid(schedule, dropout=0.0, unfreezing={"check_ranks": "epochs"}))
        callbacks: list[pl.Callback] = [Reducer()]
    else:
        model = plain_norm(Judged() if kind == "plateau" else Foreign())
        unfreezing = GradualUnfreezing({"backbone": schedule}, check_ranks="epochs")
        callbacks = [unfreezing, GradientNormMonitor(), Reducer(), *([Drift()] if kind == "drift" else [])]
        if kind == "poison":
            clipping = GradientClipping({"backbone": "agc", "head": {"zclip": {"warm_up": "3 steps"}}})
            callbacks = [Poison(), NonFiniteGradients("skip"), clipping, *callbacks]
    ddp = DDPStrategy(process_group_backend="gloo", static_graph=kind == "static")
    strategy = ddp if ranks > 1 else "auto"
    # torch fails on a static graph without synchronisation, that is with accumulation (also without us)
    accumulate = 1 if kind == "static" else 2
    options = {"gradient_clip_val": 0.5, "accumulate_grad_batches": accumulate, "use_distributed_sampler": False}
    runner = trainer(devices=ranks, strategy=strategy, callbacks=callbacks, **options)
    runner.fit(model, Lazy(runner, ranks))
    torch.save(model.state_dict(), folder / f"{kind}-{ranks}-{runner.global_rank}.pt")
    steps = {group["name"]: group["unfrozen_at"] for group in runner.optimizers[0].param_groups}
    (folder / f"{kind}-{ranks}-{runner.global_rank}.json").write_text(json.dumps(steps))


def plain_norm(model: Any) -> Any:
    """Without batch statistics, which differ between half batches and whole ones."""
    if isinstance(model, Foreign):
        model.backbone.first[1] = torch.nn.LayerNorm(6)
        model.backbone.second[1] = torch.nn.Identity()
        return model
    model.build(next(iter(batches())))
    tower: Any = model.built().parts["old"]
    tower.first[1] = torch.nn.LayerNorm(6)
    tower.second[1] = torch.nn.Identity()
    return model


class Lazy(pl.LightningDataModule):
    """Makes the loader once the rank is known."""

    def __init__(self, runner: pl.Trainer, ranks: int) -> None:
        super().__init__()
        self.runner, self.ranks = runner, ranks

    def train_dataloader(self) -> DataLoader[Any]:
        return loader(self.ranks, self.runner.global_rank)

    def val_dataloader(self) -> DataLoader[Any]:
        return loader(self.ranks, self.runner.global_rank)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
    end_process_group()
