"""What the layout of the buckets of DistributedDataParallel may and may not do."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from hybrid_lightning import ExactResume
from tests.processes import succeed_on
from tests.tiny import Foreign, batches, trainer

STEPS = 5


class Watching(Callback):
    """Counts what somebody's hooks see: those of a parameter, and of the communication of all gradients."""

    def __init__(self, kind: str) -> None:
        self.kind, self.seen = kind, 0

    def see(self, *_: Any) -> None:
        self.seen += 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last: Any = list(pl_module.parameters())[-1]
        if self.kind == "gradient":
            last.register_hook(self.see)
        elif self.kind == "accumulated gradient":
            last.register_post_accumulate_grad_hook(self.see)
        else:
            strategy: Any = trainer.strategy
            strategy.model.register_comm_hook(self, communicate)


def communicate(state: Watching, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    if bucket.is_last():
        state.see()
    group: Any = None
    return allreduce_hook(group, bucket)


@pytest.mark.parametrize("kind", ["gradient", "accumulated gradient", "communication"])
def test_hooks_of_somebody_see_the_steps_alone(kind: str, ddp_alone: DDPStrategy) -> None:
    watching = Watching(kind)
    run = trainer(callbacks=[watching, ExactResume()], strategy=ddp_alone, max_epochs=1)
    run.fit(Foreign(), batches())
    assert watching.seen == run.global_step == STEPS


@pytest.mark.filterwarnings("ignore")
def test_ranks_of_which_one_has_a_hook_do_the_same() -> None:
    succeed_on(2, "-m", "tests.distributed.watch_worker")


def test_a_trainer_fits_several_times(ddp_alone: DDPStrategy) -> None:
    model, run = Foreign(), trainer(callbacks=[ExactResume()], strategy=ddp_alone, max_epochs=1)
    for epochs in (1, 2):
        run.fit_loop.max_epochs = epochs
        run.fit(model, batches())
    assert run.global_step == 2 * STEPS
    assert all(parameter.isfinite().all() for parameter in model.parameters())
