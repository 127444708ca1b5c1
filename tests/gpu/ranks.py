"""Checks on two devices: a run through unfreezings with clipping, and its continuation; each rank is a process."""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch.utils._pytree import tree_map

from hybrid_lightning import FSDP2Strategy
from hybrid_lightning.distributed.fsdp2 import end_process_group
from hybrid_lightning.distributed.sharding import whole
from tests.gpu.fits import SaveAt, state_of
from tests.gpu.model import BATCH, Skipped, fit, largest_distance, loader, task

ROOT = Path(__file__).parents[2]
RANKS, SECONDS, STEP = 2, 120, 4
"""The step is within an epoch, and after one unfreezing of three."""
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
STRATEGIES: dict[str, Any] = {"ddp": DDPStrategy, "fsdp2": FSDP2Strategy}


def two_ddp_ranks(device: str) -> str:
    """Equal ranks through unfreezings, and a continuation that is equal in every bit, with ddp."""
    return run(device, "ddp")


def two_fsdp2_ranks(device: str) -> str:
    """The same with fsdp2."""
    return run(device, "fsdp2")


def run(device: str, strategy: str) -> str:
    if device == "cuda" and torch.cuda.device_count() < RANKS:
        raise Skipped(f"needs {RANKS} devices, there is {torch.cuda.device_count()}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(RANKS), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        words = [sys.executable, "-m", "tests.gpu.ranks", device, strategy, folder]
        ranks = []
        for rank in map(str, range(RANKS)):
            environment = {**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}
            ranks.append(subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output))
        try:
            statuses = [rank.wait(timeout=SECONDS) for rank in ranks]
        finally:
            for rank_process in ranks:
                rank_process.kill()
        output.seek(0)
        assert not any(statuses), output.read()[-3000:]
    return f"{BACKENDS[device]}: ranks equal, resumed bit-equal from step {STEP}"


def rank(device: str, name: str, folder: Path) -> None:
    """One rank: fits, continues from a step, and compares."""
    options = {"devices": RANKS, "deterministic": True, "callbacks": [SaveAt(folder, (STEP,))]}
    model = task()
    runner = fit(device, model, data=halves(), strategy=made(device, name), **options)
    wanted = tree_map(whole, state_of(runner, model))
    for key, value in wanted["model"].items():
        on_device = value.to(runner.strategy.root_device)
        every = runner.strategy.all_gather(on_device)
        assert all(torch.equal(one, on_device) for one in every), f"{key} differs between the ranks"
    again = task()
    options["callbacks"] = []
    runner = fit(device, again, folder / f"{STEP}.ckpt", halves(), strategy=made(device, name), **options)
    distance = largest_distance(wanted, tree_map(whole, state_of(runner, again)))
    assert distance == 0, f"continued from step {STEP}: off by {distance:.1e}"


def made(device: str, name: str) -> Any:
    return STRATEGIES[name](process_group_backend=BACKENDS[device])


def halves() -> Any:
    return loader(batch=BATCH // RANKS)


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rank(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    end_process_group()
