"""Features that a closed-form start has computed are served, and not computed again."""

from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from hybrid_lightning import FrozenFeatureCache, HybridClassifier, from_config
from hybrid_lightning.data.in_memory import DictDataset
from tests.cache.fits import SAMPLES, Tower, assert_equal_fits, fit, in_memory, task

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
START = SAMPLES + 11  # the closed-form fit reads the training samples, its validation the others
VERIFIED = 8 + 1  # a full and a ragged batch


def begin(**options):
    torch.manual_seed(0)
    parts = {"old": {"module": Tower, "unfreeze": "never"}, "new": {"module": "torch.nn.Identity"}}
    return HybridClassifier(num_classes=2, parts=parts, start="probe", lr=0.001, **options)


def test_the_training_samples_run_once_for_the_start_and_all_epochs():
    live = fit(begin(cache=False))
    cached = fit(begin(cache=True))
    assert live.seen - cached.seen >= 2 * SAMPLES
    assert cached.cache.serving == ["old"]
    assert_equal_fits(live, cached)


def test_without_an_offer_they_run_again():
    def refuse(self, network, features):
        pass

    taken = fit(begin(cache=True)).seen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenFeatureCache, "offer", refuse)
        assert fit(begin(cache=True)).seen == taken + SAMPLES - VERIFIED


def test_an_offer_in_another_order_is_not_taken():
    class Reversed(pl.LightningDataModule):
        """The samples for closed-form fits in another order than those of the training loader."""

        def __init__(self):
            super().__init__()
            entries = in_memory().dataset.entries
            self.plain_train_dataset = DictDataset({key: value.flip(0) for key, value in entries.items()})

        def train_dataloader(self):
            return in_memory()

        def val_dataloader(self):
            return in_memory(11)

    def losses(cache):
        model = begin(cache=cache)
        runner = pl.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        Tower.seen = 0
        torch.manual_seed(7)
        runner.fit(model, Reversed())
        return float(runner.callback_metrics["val/loss"])

    assert losses(True) == pytest.approx(losses(False), abs=1e-5)


def test_nothing_is_held_once_the_fit_runs():
    assert fit(begin(cache=True)).cache._choices.offered == {}


def test_parts_that_stay_frozen_longer_are_decided_apart(monkeypatch):
    monkeypatch.setattr("hybrid_lightning.cache.choices.FEWEST_READS", 2 * START)
    monkeypatch.setattr("hybrid_lightning.cache.choices.pays", lambda saved: True)
    own = {
        "short": {"module": Tower, "unfreeze": "1 epochs", "input": "old"},
        "kept": {"module": Tower, "unfreeze": "never", "input": "old"},
        "new": {"module": "MLP", "args": {"hidden": [5]}},
    }
    cache = fit(task(parts=own)).cache
    assert cache._choices.decided == {"short": False, "kept": True}


@pytest.mark.exhaustive
def test_the_quickstart_is_served():
    served = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            found = sorted(batch.get("cached", {}))
            if found not in served:
                served.append(found)

    options = {"enable_progress_bar": False, "enable_checkpointing": False, "logger": False}
    model, data, trainer = from_config(QUICKSTART, trainer=options)
    trainer.callbacks.append(Look())
    trainer.fit(model, data)
    assert served == [["encoder", "kernels"], ["kernels"]]
