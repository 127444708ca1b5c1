"""One rank of `test_ranks.py`: parameters are watched on the first rank alone, as loggers do."""

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from hybrid_lightning import ExactResume
from hybrid_lightning.distributed.fsdp2 import end_process_group
from tests.tiny import Foreign, batches, trainer


class WatchFirst(Callback):
    """Counts the gradients of a parameter."""

    seen = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 0:
            list(pl_module.parameters())[-1].register_hook(self.count)

    def count(self, *_: object) -> None:
        self.seen += 1


def main() -> None:
    watching = WatchFirst()
    strategy = DDPStrategy(process_group_backend="gloo")
    run = trainer(callbacks=[watching, ExactResume()], strategy=strategy, devices=2, max_epochs=1)
    run.fit(Foreign(), batches())
    assert watching.seen == (run.global_step if run.global_rank == 0 else 0)
    end_process_group()


if __name__ == "__main__":
    main()
