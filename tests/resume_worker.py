"""One of two ranks of `test_exact_resume.py`: compares a fit with its continuations, and writes what differs."""

import json
import logging
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.strategies import DDPStrategy

from tests.callbacks.resuming import MODELS, differences


def main(model: str, loader: str, folder: Path, options: str) -> None:
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    settings = {"devices": 2, "every": 1, **json.loads(options)}
    result = differences(MODELS[model], loader, folder, strategy=gloo, **settings)
    (folder / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(result))


def gloo() -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
