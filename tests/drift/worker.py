"""One rank of `test_start_weights.py`: fits with `PretrainedDrift` and `L2SP`; saves what it logged and holds."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from hybrid_lightning import L2SP, ExactResume, FSDP2Strategy, GradientNormMonitor, GradualUnfreezing, PretrainedDrift
from hybrid_lightning.distributed.fsdp2 import end_process_group
from hybrid_lightning.distributed.sharding import whole
from tests.distributed.ddp_worker import Lazy, plain_norm
from tests.distributed.fsdp2_worker import ForeignSharded
from tests.tiny import hybrid, trainer

SCHEDULE = {"start": "2 steps", "every": "2 steps"}
STRATEGIES = {
    "one": lambda: "auto",
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: FSDP2Strategy(process_group_backend="gloo"),
    "folder": lambda: FSDP2Strategy(True, process_group_backend="gloo"),
}


class Batchwise(ForeignSharded):
    """Somebody's module, whose forward takes a batch and whose parts are named as the task's."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.backbone(batch["old"]))  # type: ignore[no-any-return]

    def groups(self) -> list[dict[str, Any]]:
        names = {"backbone": "old", "head": "head"}
        return [
            {**group, "part": names[group["part"]], "name": group["name"].replace("backbone", "old")}
            for group in super().groups()
        ]


class Keep(pl.Callback):
    """What was logged, and a checkpoint in the middle."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.keep(trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.keep(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.path and trainer.global_step == 6:
            trainer.save_checkpoint(self.path)

    def keep(self, trainer: pl.Trainer) -> None:
        kinds = ("drift/", "similarity/", "l2sp/")
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(kinds)})


def main(name: str, facts: dict[str, Any]) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*(LeafSpec|many workers|val_dataloader|on_before_batch_transfer|ckpt_path).*")
    torch.set_num_threads(1)
    folder, ranks = Path(facts["folder"]), 1 if facts["strategy"] == "one" else 2
    keep = Keep(None if "resume" in facts else folder / f"{name}.ckpt")
    watching: list[pl.Callback] = [L2SP(["old"], strength=1.0), PretrainedDrift(["old", "head"], reference_samples=16)]
    if facts["kind"] == "task":
        model: Any = plain_norm(hybrid(SCHEDULE, dropout=0.0, lr=0.03))
    else:
        model = plain_norm(Batchwise())
        watching += [GradualUnfreezing({"old": SCHEDULE}), GradientNormMonitor(), ExactResume()]
    runner = trainer(
        devices=ranks,
        strategy=STRATEGIES[facts["strategy"]](),
        callbacks=[*watching, keep],
        log_every_n_steps=1,
        gradient_clip_val=0.5,
        accumulate_grad_batches=2,
        use_distributed_sampler=False,
    )
    if runner.global_rank:  # the weights that count are those of the first rank
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.zero_()
    runner.fit(model, Lazy(runner, ranks), ckpt_path=folder / facts["resume"] if "resume" in facts else None)
    state = {key: whole(value).clone() for key, value in model.state_dict().items()}
    torch.save({"model": state, "logged": keep.logged}, folder / f"{name}-{runner.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
    end_process_group()
