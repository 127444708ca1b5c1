"""Ranks that were started differently are told by name before they wait for each other."""

import platform
import sys
from collections.abc import Mapping, Sized
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import shared_log_keys

_NOT_COMPARED = ("trainer.default_root_dir", "config", "ckpt_path")
"""Keys that may differ between machines, beside texts that are paths."""
_SHOWN = 6


class SameOnRanks(Callback):
    """Compares config, versions and sizes of the data between the ranks of a run, and what they log."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        # not imported, because the package's front door imports this module
        package = sys.modules["hybrid_lightning"]
        self._facts = {
            "version of hybrid_lightning": str(package.__version__),
            "version of torch": torch.__version__,
            "version of lightning": lightning.__version__,
            "version of Python": platform.python_version(),
        }
        for key, value in config.items():
            is_path = isinstance(value, str) and ("/" in value or "\\" in value) and not key.endswith(".fold")
            if not is_path and not key.startswith(_NOT_COMPARED):
                self._facts[key] = repr(value)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compares what is known before the data are read."""
        refuse_differences(trainer, self._facts)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares the sizes of the data."""
        sizes = {
            "batches of training": str(trainer.num_training_batches),
            "batches of validation": str(trainer.num_val_batches),
        }
        loaders = CombinedLoader(trainer.train_dataloader).flattened
        for number, loader in enumerate(loaders):
            dataset = getattr(loader, "dataset", None)
            if isinstance(dataset, Sized):
                sizes[f"samples of training loader {number}"] = str(len(dataset))
        refuse_differences(trainer, sizes)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares what the steps of the epoch have logged, before Lightning puts it together."""
        _refuse_other_keys(trainer)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares what the validation has logged."""
        _refuse_other_keys(trainer)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares what the test has logged."""
        _refuse_other_keys(trainer)


def _refuse_other_keys(trainer: Trainer) -> None:
    """Raises `ConfigError` if the ranks have logged other keys, or the same ones in another order."""
    keys = shared_log_keys(trainer)
    facts = {key.replace(".", ": ", 1): f"logged as number {number}" for number, key in enumerate(keys, start=1)}
    refuse_differences(
        trainer,
        facts,
        "the ranks have logged different values, which cannot be put together",
        "Log each key on all ranks, in the same order, or with sync_dist=False",
    )


_STARTED = "the ranks were started differently, and would wait for each other"
_REMEDY = "Start all with the same command, config, data and versions"


def refuse_differences(
    trainer: Trainer, facts: Mapping[str, str], problem: str = _STARTED, remedy: str = _REMEDY
) -> None:
    """Raises `ConfigError` on all ranks if one of them has other facts. Collective: call it on every rank."""
    if trainer.world_size == 1 or not torch.distributed.is_initialized():
        return
    of_ranks: list[dict[str, str]] = [{} for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(of_ranks, dict(facts))
    lines = []
    keys: dict[str, str] = {}
    for own in of_ranks:
        keys |= own
    for key in keys:
        values = [own.get(key, "not there") for own in of_ranks]
        other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            lines.append(f"{key}: {values[0]:.80} on rank 0, {values[other]:.80} on rank {other}")
    if lines:
        more = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise ConfigError(f"{problem}: {'; '.join(lines[:_SHOWN])}{more}. {remedy}.")
