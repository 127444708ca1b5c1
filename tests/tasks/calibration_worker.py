"""One rank of `tasks/test_calibrate_output.py`: fits, tests the best checkpoint and saves the metrics."""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.small import trainer
from tests.tasks.test_calibrate_output import SMOOTH, Clouds, classifier


def main(strategy: str, folder: Path) -> None:
    pl.seed_everything(0)
    used: Any = DDPStrategy(process_group_backend="gloo") if strategy == "ddp" else strategy
    best = ModelCheckpoint(folder, "best", monitor="val/loss", enable_version_counter=False)
    options = {"devices": 2 if strategy == "ddp" else 1, "strategy": used, "callbacks": [best]}
    runner = trainer(enable_checkpointing=True, **options)
    # at this rate the weights stay those of one process
    model = classifier(lr=1e-9, calibrate={"coverage": 0.9}, **SMOOTH)
    runner.fit(model, Clouds())
    [values] = runner.test(model, Clouds(), ckpt_path=folder / "best.ckpt", weights_only=True, verbose=False)
    (folder / f"{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(values))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings(
        "ignore", ".*(LeafSpec|many workers|Using `DistributedSampler`|Total length|Checkpoint directory).*"
    )
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
    end_process_group()
