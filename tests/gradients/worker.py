"""One rank of the test of norms on two ranks: fits, and saves what was logged and what was computed by hand."""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning import FSDP2Strategy, GradientNormMonitor, GradualUnfreezing
from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.distributed.ddp_worker import Lazy, plain_norm
from tests.distributed.fsdp2_worker import SCHEDULE, ForeignSharded
from tests.gradients.by_hand import ByHand, Rows
from tests.tiny import hybrid, trainer

STRATEGIES: dict[str, Any] = {"ddp": lambda: DDPStrategy(process_group_backend="gloo"), "fsdp2": FSDP2Strategy}


def make(kind: str) -> tuple[pl.LightningModule, list[pl.Callback]]:
    if kind == "foreign":
        return plain_norm(ForeignSharded()), [GradualUnfreezing({"backbone": SCHEDULE})]
    return plain_norm(hybrid(SCHEDULE, dropout=0.0)), []


def fit(kind: str, strategy: str, folder: Path) -> None:
    model, callbacks = make(kind)
    by_hand, rows = ByHand(), Rows(folder)
    options = {"gradient_clip_val": 0.05, "accumulate_grad_batches": 2, "log_every_n_steps": 1, "max_epochs": 3}
    runner = trainer(
        devices=2,
        strategy=STRATEGIES[strategy](),
        callbacks=[*callbacks, by_hand, GradientNormMonitor(stages=True)],
        logger=rows,
        use_distributed_sampler=False,
        **options,
    )
    runner.fit(model, Lazy(runner, 2))
    saved = {"rows": rows.rows, "before": by_hand.before, "after": by_hand.after, "ratios": by_hand.ratios}
    (folder / f"{kind}-{runner.global_rank}.json").write_text(json.dumps(saved))


def main(strategy: str, folder: Path) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", ".*(LeafSpec|many workers|val_dataloader|on_before_batch_transfer).*")
    torch.set_num_threads(1)
    for kind in ("task", "foreign"):
        fit(kind, strategy, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    end_process_group()
