import lightning.pytorch as pl
import pytest

from hybrid_lightning.cache.decision import Outlook, Seconds, outlook, pays, saving
from hybrid_lightning.cache.splits import Split
from tests.cache.fits import fit, task


def looks(unfreeze, **options):

    found = []

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            splits = [
                Split("train", trainer.train_dataloader, True, 8),
                Split("val", trainer.val_dataloaders, False, 8),
            ]
            tensors = list(pl_module.network.parts["old"].parameters())
            found.append(outlook(trainer, tensors, splits))

    fit(task(unfreeze, cache=False), callbacks=[Look()], **options)
    return found


def test_the_outlook_counts_what_is_read_until_the_part_trains():
    assert looks("never") == [Outlook(epochs, epochs * (30 + 11)) for epochs in (3, 2, 1)]
    assert looks("2 epochs") == [Outlook(epochs, epochs * (30 + 11)) for epochs in (2, 1, 1)]
    assert looks("never", accumulate_grad_batches=2)[0].epochs == 3
    assert looks("never", val_check_interval=2)[0].reads == 3 * (30 + 2 * 11)
    assert looks("never", limit_train_batches=2)[0].reads == 3 * (16 + 11)
    [first, *_] = looks({"plateau": "val/loss", "patience": "9 validations"})
    assert first.epochs == 1.5


def test_the_fill_counts_against_what_is_saved():
    seconds = Seconds(live=0.1, served=0.01)
    assert saving(Outlook(1, 30), seconds, 30) < 0
    assert saving(Outlook(3, 90), seconds, 30) == pytest.approx(90 * 0.09 - 3)
    assert saving(Outlook(3, 90), seconds, 0) == pytest.approx(90 * 0.09), "if all is there before"
    assert pays(2.0)
    assert not pays(0.1)
