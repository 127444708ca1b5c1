"""One of two ranks of `test_exact_resume.py`: compares a run with its continuations, and writes what differs."""

import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning import FSDP2Strategy
from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.resume.resuming import MODELS, differences

STRATEGIES = {
    "ddp": lambda: DDPStrategy(process_group_backend="gloo"),
    "fsdp2": lambda: FSDP2Strategy(process_group_backend="gloo"),
}


def main(model: str, loader: str, folder: Path, options: str) -> None:
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    settings = {"devices": 2, "every": 1, **json.loads(options)}
    strategy = STRATEGIES[settings.pop("strategy", "ddp")]
    result = differences(MODELS[model], loader, folder, strategy=strategy, **settings)
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
    end_process_group()
