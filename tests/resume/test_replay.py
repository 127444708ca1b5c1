"""Which loaders a fit makes, and how often."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from hybrid_lightning import ExactResume
from tests.tiny import Foreign, batches, trainer


class Costly(pl.LightningDataModule):
    made = 0

    def train_dataloader(self) -> DataLoader[Any]:
        self.made += 1
        return batches(shuffle=True)


def test_several_ranks_ask_the_user_for_the_training_loader_once(ddp_alone: DDPStrategy) -> None:
    data, strategy = Costly(), ddp_alone
    trainer(callbacks=[ExactResume()], strategy=strategy, max_epochs=2).fit(Foreign(), data)
    assert data.made == 1
    assert isinstance(strategy.lightning_module, Foreign)
