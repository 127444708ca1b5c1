"""Which loaders a fit makes, and how often."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from hybrid_lightning import ExactResume
from tests.processes import free_port
from tests.tiny import Foreign, batches, trainer


class Costly(pl.LightningDataModule):
    made = 0

    def train_dataloader(self) -> DataLoader[Any]:
        self.made += 1
        return batches(shuffle=True)


def test_several_ranks_ask_the_user_for_the_training_loader_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    data, strategy = Costly(), DDPStrategy(process_group_backend="gloo", cluster_environment=Alone())
    try:
        trainer(callbacks=[ExactResume()], strategy=strategy, max_epochs=2).fit(Foreign(), data)
    finally:
        torch.distributed.destroy_process_group()
    assert data.made == 1
    assert isinstance(strategy.lightning_module, Foreign)


class Alone(LightningEnvironment):
    """One process, which needs no others to begin."""

    @property
    def creates_processes_externally(self) -> bool:
        return True
