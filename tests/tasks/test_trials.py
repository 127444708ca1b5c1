import pytest
import torch
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner

from hybrid_lightning import ConfigError, HybridClassifier, InMemoryDataModule
from hybrid_lightning.data.in_memory import DictDataset
from tests.small import table
from tests.tiny import batches, hybrid, trainer


class Rates(HybridClassifier):
    """Remembers, for each training batch, the rates of the parts and whether they train."""

    def training_step(self, batch, batch_idx):
        groups = self.trainer.optimizers[0].param_groups
        rates = {group["part"]: group["lr"] for group in groups}
        trains = {group["part"] for group in groups if any(p.requires_grad for p in group["params"])}
        self.seen = [*getattr(self, "seen", []), (rates, trains)]
        return super().training_step(batch, batch_idx)


def watched(unfreeze, **options):
    model = hybrid(unfreeze, **options)
    model.__class__ = Rates
    return model


def test_a_rate_is_searched_with_shares_kept_and_frozen_parts_frozen(tmp_path):
    model = watched("2 epochs")
    options = {"num_training": 14, "early_stop_threshold": None}
    Tuner(trainer(default_root_dir=tmp_path)).lr_find(model, batches(), **options)
    assert len(model.seen) == 14
    for rates, trains in model.seen:
        assert rates["old"] == pytest.approx(0.1 * rates["new"])
        assert trains == {"new", "fusion", "head"}
    assert model.lr == model.settings.lr != 0.01


def test_the_rate_that_was_found_is_the_one_that_is_used_shown_and_saved(tmp_path, capsys):
    model = watched("2 epochs")
    finder = LearningRateFinder(num_training_steps=14, early_stop_threshold=None)
    runner = trainer(callbacks=[finder], default_root_dir=tmp_path)
    runner.fit(model, batches())
    found = finder.optimal_lr.suggestion()
    assert model.lr == model.saved_settings()["lr"] == found != 0.01
    of_fit = model.seen[14:]
    assert len(of_fit) == 20
    for rates, _ in of_fit:
        assert (rates["old"], rates["new"]) == (pytest.approx(0.1 * found), pytest.approx(found))
    assert f"{found:.3g}" in capsys.readouterr().out.split("head")[1]


def test_a_scheduler_of_one_s_own_says_how_a_rate_is_searched(tmp_path):
    model = hybrid("never", scheduler={"class_path": "StepLR", "init_args": {"step_size": 1}})
    with pytest.raises(ConfigError, match=r"model.scheduler: .* update_attr=False"):
        Tuner(trainer(default_root_dir=tmp_path)).lr_find(model, batches(), num_training=14, early_stop_threshold=None)


class Sized(InMemoryDataModule):
    def load(self):
        entries = {"old": table(64), "new": table(64), "target": torch.arange(64) % 2}
        return dict.fromkeys(("train", "val"), DictDataset(entries))


def test_a_batch_size_is_searched_with_everything_in_training(tmp_path):
    model = watched("3 epochs")
    runner = trainer(default_root_dir=tmp_path)
    Tuner(runner).scale_batch_size(model, datamodule=Sized(batch_size=2), steps_per_trial=2, max_trials=2)
    assert {frozenset(trains) for _, trains in model.seen} == {frozenset({"old", "new", "fusion", "head"})}


def test_a_rate_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"model\.lr"):
        hybrid().lr = -1.0


def test_a_rate_set_by_hand_is_that_of_the_next_fit():
    model = hybrid("never")
    model.lr = 0.5
    runner = trainer(max_epochs=1)
    runner.fit(model, batches())
    assert {group["part"]: group["lr"] for group in runner.optimizers[0].param_groups}["new"] == 0.5


def test_a_rate_may_be_set_between_two_fits_also_with_a_scheduler_of_one_s_own():
    model = hybrid("never", scheduler={"class_path": "StepLR", "init_args": {"step_size": 1}})
    trainer(max_steps=1).fit(model, batches())
    model.lr = 0.5
    runner = trainer(max_steps=1)
    runner.fit(model, batches())
    assert runner.optimizers[0].param_groups[-1]["initial_lr"] == 0.5


class Alone(HybridClassifier):
    """Leaves out what a task brings along."""

    def configure_callbacks(self):
        return []


def test_a_task_that_leaves_out_the_callbacks_that_freeze_is_refused():
    model = Alone(num_classes=2, parts={"old": "MLP"})
    with pytest.raises(ConfigError, match=r"^Alone\.configure_callbacks: .*super\(\)\.configure_callbacks\(\)"):
        trainer().fit(model, batches())
