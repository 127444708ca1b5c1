import os

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, IterableDataset, Subset

from hybrid_lightning import ConfigError, FrozenFeatureCache, GradualUnfreezing, HybridClassifier
from hybrid_lightning.data.in_memory import DictDataset
from hybrid_lightning.unfreezing.promises import FrozenValues
from tests.cache.fits import BATCH, LOADERS, Files, Tower, assert_equal_fits, entries, files, fit, in_memory, task
from tests.tiny import Foreign, batches, trainer

SAMPLES = 30 + 11
BEFORE = 2 + 11  # the example and the sanity check
CHECKED = 2 + 2 + 8 + 1  # samples of a split that are looked at and compared with a live forward


# Equal to a live fit


@pytest.mark.parametrize("loader", LOADERS)
def test_a_frozen_part_runs_once_per_sample_and_the_fit_is_as_without_the_cache(loader, lines):
    live, cached = fit(task(cache=False), loader), fit(task(cache=True), loader)
    assert_equal_fits(live, cached)
    assert cached.keys[0] == {"new", "target", "cached", "cached_index", "cached/old"}
    assert all(keys == cached.keys[0] for keys in cached.keys)
    assert live.seen == BEFORE + 3 * SAMPLES
    assert cached.seen <= BEFORE + SAMPLES + 2 * CHECKED
    assert lines() == ["cache: old, 30 + 11 rows, 0.0 MB: computed once, instead of 3 times"]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "unfreeze", ["2 epochs", "6 steps", {"plateau": "val/loss", "patience": "1 validations", "min_delta": 9}]
)
def test_an_unfreezing_reads_the_samples_again_from_the_next_batch_on(loader, unfreeze):
    options = {"max_epochs": 5, "val_check_interval": 3 if isinstance(unfreeze, dict) else None}
    live, cached = (fit(task(unfreeze, cache=cache), loader, **options) for cache in (False, True))
    assert_equal_fits(live, cached, steps=20)
    served = ["cached/old" in keys for keys in cached.keys]
    assert served == sorted(served, reverse=True)
    assert served[0]
    assert not served[-1]
    trained = ["old" in keys for keys in cached.keys]
    assert trained == [not is_served for is_served in served]
    assert live.model.network.parts["old"].first.weight.requires_grad


def test_a_part_that_is_frozen_again_is_served_from_the_next_epoch_on():
    unfreeze = {"start": "1 epochs", "freeze": "6 steps"}
    live, cached = (fit(task(unfreeze, cache=cache), max_epochs=4) for cache in (False, True))
    assert_equal_fits(live, cached, steps=16)
    assert ["cached/old" in keys for keys in cached.keys] == [True] * 4 + [False] * 4 + [True] * 8


TWO = {
    "stem": {"module": Tower, "input": "old", "unfreeze": "never"},
    "body": {"module": "MLP", "args": {"hidden": [3]}, "input": "stem"},
    "side": {"module": Tower, "input": "new", "unfreeze": "6 steps"},
}


@pytest.mark.parametrize("loader", LOADERS)
def test_the_other_parts_are_served_on_when_one_unfreezes(loader):
    live, cached = (fit(task(parts=TWO, cache=cache), loader) for cache in (False, True))
    assert_equal_fits(live, cached)
    common = {"target", "cached", "cached_index", "cached/stem"}
    assert cached.keys[0] == {*common, "cached/side"}
    assert {*common, "new"} <= cached.keys[6], "the epoch in which it unfreezes"
    assert cached.keys[-1] == {*common, "new"}
    assert "cached/side" not in cached.keys[6]


def test_a_user_s_own_data_module_and_a_subset_are_served():
    class Own(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(Subset(Files(40), range(4, 34)), BATCH, shuffle=True)

        def val_dataloader(self):
            return files(11)

    found = []
    for cache in (False, True):
        model, runner = task(cache=cache), trainer(max_epochs=3)
        torch.manual_seed(7)
        Tower.seen = 0
        runner.fit(model, datamodule=Own())
        found.append((Tower.seen, runner.callback_metrics["val/loss"]))
    assert found[1][0] < found[0][0]
    torch.testing.assert_close(found[0][1], found[1][1])


def test_the_fit_draws_the_same_random_numbers_with_and_without_the_cache():
    class Draws(pl.Callback):
        def __init__(self):
            self.drawn = []

        def on_train_epoch_start(self, trainer, pl_module):
            self.drawn.append(float(torch.rand(())))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.drawn.append(float(torch.rand(())))

    draws = [Draws(), Draws()]
    for cache, draw in zip((False, True), draws, strict=True):
        fit(task("6 steps", cache=cache), "files", callbacks=[draw])
    assert draws[0].drawn == draws[1].drawn


def test_samples_that_may_lack_the_part_are_served():
    def gaps(samples=30):
        own = entries(samples)
        own["present/old"] = torch.arange(samples) % 3 > 0
        return DataLoader(DictDataset(own), BATCH, collate_fn=lambda batch: batch, shuffle=samples == 30)

    fusion = {"args": {"standardize": "features", "modality_dropout": 0.3}}
    parts = {"old": {"module": Tower, "unfreeze": "never"}, "new": {"module": "MLP", "args": {"hidden": [5]}}}
    found = []
    for cache in (False, True):
        torch.manual_seed(0)
        found.append(fit(HybridClassifier(num_classes=2, parts=parts, fusion=fusion, lr=0.01, cache=cache), gaps))
    assert_equal_fits(*found)
    assert "cached/old" in found[1].keys[0]
    assert "present/old" in found[1].keys[0]


def test_a_random_part_is_served_although_it_has_no_parameters():
    parts = {"old": {"module": "RandomFourierFeatures"}, "new": {"module": "MLP", "args": {"hidden": [5]}}}
    found = [fit(task(parts=parts, cache=cache)) for cache in (False, True)]
    assert_equal_fits(*found)
    assert found[1].keys[0] == {"new", "target", "cached", "cached_index", "cached/old"}


def test_the_gradients_of_a_step_are_those_of_a_live_one():
    gradients = []

    class Look(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 0:
                found = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
                gradients.append({name: grad.clone() for name, grad in found.items()})

    for cache in (False, True):
        fit(task(cache=cache), callbacks=[Look()], max_steps=1)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-6)


def test_in_lower_precision_features_have_that_precision():
    live, cached = (fit(task(cache=cache), precision="bf16-mixed") for cache in (False, True))
    assert "cached/old" in cached.keys[0]
    torch.testing.assert_close(torch.tensor(live.losses), torch.tensor(cached.losses), rtol=0, atol=2e-2)


# Live where it has to be


def augmented(model):
    class Augmented(type(model)):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            if self.trainer.training:
                batch = {**batch, "old": batch["old"] + torch.rand(())}
            return batch

    model.__class__ = Augmented
    return model


def test_an_augmentation_of_what_the_part_reads_makes_it_live(lines):
    found = [fit(augmented(task(cache=cache))) for cache in (False, True)]
    assert found[0].losses == found[1].losses
    assert lines() == ["cache: old stays live: what it reads changes at random from epoch to epoch."]


def test_an_augmentation_of_what_another_part_reads_does_not():
    def other(model):
        class Augmented(type(model)):
            def on_after_batch_transfer(self, batch, dataloader_idx):
                if self.trainer.training:
                    batch = {**batch, "new": batch["new"] + torch.rand(())}
                return batch

        model.__class__ = Augmented
        return model

    found = [fit(other(task(cache=cache))) for cache in (False, True)]
    assert_equal_fits(*found)
    assert "cached/old" in found[1].keys[0]


def test_random_transforms_make_it_live(lines):
    found = [fit(task(cache=cache), lambda *size: files(*size, random="old")) for cache in (False, True)]
    assert found[0].losses == found[1].losses
    assert lines() == ["cache: old stays live: reading a sample draws random numbers, as a random transform does."]


def test_several_parts_that_stay_live_are_named_in_one_line(lines):
    fit(task(parts=TWO, cache=True), lambda *size: files(*size, random="old"))
    why = "reading a sample draws random numbers, as a random transform does"
    assert lines()[0] == f"cache: stem, side stay live: {why}."


def test_what_another_part_reads_is_read_anew_where_the_dataset_changes_it_with_a_generator_of_its_own():
    class Own(Files):
        generator = torch.Generator()

        def __getitem__(self, index):
            return {**super().__getitem__(index), "new": torch.rand(4, generator=self.generator)}

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rows.update(batch["new"][:, 0].tolist())

    rows = set()
    found = fit(task(cache=True), lambda size=30: DataLoader(Own(size), BATCH), callbacks=[Look()])
    assert "cached/old" in found.keys[0]
    assert len(rows) == 3 * 30


class Norm(Tower):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(super().forward(x))


@pytest.mark.parametrize("mode", ["frozen", "train"])
def test_a_normalization_with_batch_statistics_makes_it_live(mode):
    parts = {**TWO, "side": {"module": Norm, "input": "new", "unfreeze": "never", "batch_norm": mode}}
    found = fit(task(parts=parts, cache=True))
    assert ("cached/side" in found.keys[0]) == (mode == "frozen")
    assert "cached/stem" in found.keys[0]


class Drawing(Tower):
    def forward(self, x):
        return super().forward(x) + torch.rand(len(x), 1)


def test_a_part_that_differs_from_a_live_forward_is_live_and_the_line_says_by_how_much(lines):
    parts = {"old": {"module": Drawing, "unfreeze": "never"}, "new": {"module": "MLP"}}
    found = [fit(task(parts=parts, cache=cache)) for cache in (False, True)]
    assert found[0].losses == found[1].losses
    [line] = lines()
    assert line.startswith("cache: old stays live: cached features differ from those of a live forward by ")


def test_hooks_that_need_what_would_be_left_out_make_it_live(lines):
    class Own(type(task())):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            assert batch["old"].ndim == 2
            return batch

    def own(cache):
        model = task(cache=cache)
        model.__class__ = Own
        return model

    found = [fit(own(cache)) for cache in (False, True)]
    assert found[0].losses == found[1].losses
    assert lines() == ["cache: old stays live: KeyError: 'old'."]


def test_iterable_datasets_and_foreign_modules_are_untouched():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([{key: value[i] for key, value in entries().items()} for i in range(30)])

    def stream(*size):
        return DataLoader(Stream(), BATCH)

    found = [fit(task(cache=cache), stream, max_epochs=1) for cache in (False, True)]
    assert found[0].losses == found[1].losses
    assert found[1].seen == found[0].seen
    losses = []
    for callbacks in ([], [FrozenFeatureCache(True)]):
        unfreezing = GradualUnfreezing({"backbone": "never"})
        model, runner = Foreign(), trainer(callbacks=[unfreezing, *callbacks], max_epochs=1)
        torch.manual_seed(3)
        runner.fit(model, batches(shuffle=True))
        losses.append(model.head.weight)
    assert torch.equal(*losses)


def test_steps_of_a_user_s_own_are_not_cached_unless_they_ask_for_it():
    class Own(type(task())):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx)

    for cache, expected in (("auto", None), (True, True)):
        model = task(cache=cache)
        model.__class__ = Own
        found = fit(model, max_epochs=1)
        assert (found.cache and found.cache.mode) == expected


def test_validate_and_test_read_the_raw_samples():
    model = task(cache=True)
    fit(model)
    Tower.seen = 0
    trainer().validate(model, in_memory(11))
    trainer().test(model, in_memory(11))
    assert Tower.seen == 22


# Decision


def test_a_short_fit_is_not_even_looked_at(lines):
    auto = fit(task(), "files")
    assert auto.reads == 2 + 3 * 30, "the example, and each epoch"
    assert auto.seen == BEFORE + 3 * SAMPLES
    assert lines() == []


def test_auto_follows_the_timing_and_says_so(lines, monkeypatch):
    monkeypatch.setattr("hybrid_lightning.cache.choices.FEWEST_READS", 0)
    fit(task())
    [line] = lines()
    assert line.startswith("cache: old stays live: serving features would save")
    monkeypatch.setattr("hybrid_lightning.cache.choices.pays", lambda saved: True)
    assert "cached/old" in fit(task()).keys[0]
    assert "saves about" in lines()[1]


@pytest.mark.parametrize("given", [1, "yes", None])
def test_the_option_is_auto_true_or_false(given):
    with pytest.raises(ConfigError, match=r"^model\.cache: "):
        task(cache=given)


def test_it_may_not_stand_before_the_unfreezing():
    callbacks = [FrozenFeatureCache(), GradualUnfreezing({"old": "never"})]
    with pytest.raises(ConfigError, match="stands before GradualUnfreezing"):
        fit(task(), callbacks=callbacks)


# Files


def of_files(more=(), **options):
    callbacks = [GradualUnfreezing({"old": "never"}), FrozenFeatureCache(True, 0.0), *more]
    return fit(task(cache=False), callbacks=callbacks, **options)


def test_beyond_the_budget_features_are_files_which_are_removed_in_the_end(tmp_path):
    class Look(pl.Callback):
        def on_train_batch_start(self, *_):
            found.append(sorted(path.name.split("-")[:2] for path in tmp_path.glob("feature_cache_0/*.features")))

    found = []
    live = fit(task(cache=False))
    callbacks = [GradualUnfreezing({"old": "never"}), FrozenFeatureCache(True, 0.0), Look()]
    mapped = fit(task(cache=False), callbacks=callbacks)
    assert_equal_fits(live, mapped)
    assert found[0] == [["train", "old"], ["val", "old"]]
    assert not (tmp_path / "feature_cache_0").exists()


def test_a_full_disk_falls_back_to_live(monkeypatch, lines, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    live, mapped = fit(task(cache=False)), of_files()
    assert live.losses == mapped.losses
    assert lines() == ["cache: old stays live: OSError: [Errno 28] No space left on device."]


class Crash(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint("crash.ckpt")
            raise RuntimeError("the power is gone")


def flip_a_byte(folder):
    path = next(folder.glob("feature_cache_0/train-old-*.features"))
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize("damaged", [False, True])
def test_a_restart_finds_the_files_and_computes_a_damaged_one_again(tmp_path, damaged):
    whole = of_files()
    with pytest.raises(RuntimeError, match="power"):
        of_files(more=[Crash()])
    if damaged:
        flip_a_byte(tmp_path)
        with pytest.warns(UserWarning, match="is damaged and computed again"):
            again = of_files(path="crash.ckpt")
    else:
        again = of_files(path="crash.ckpt")
    assert again.losses == whole.losses[-len(again.losses) :]
    assert again.seen < BEFORE + 2 * CHECKED + (30 if damaged else 0)
    assert not (tmp_path / "feature_cache_0").exists()


# What changes while it serves


@pytest.fixture
def _may_change(monkeypatch):
    """At the end of a run weights that were to stay frozen may have changed, which is an error else."""
    monkeypatch.setattr(FrozenValues, "refuse_changed", lambda self: None)


@pytest.mark.usefixtures("_may_change")
def test_weights_that_somebody_changes_are_noticed_at_the_next_epoch():
    class Change(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.network.parts["old"].second.bias.add_(1)

    found = [fit(task(cache=cache), callbacks=[Change()]) for cache in (False, True)]
    assert_equal_fits(*found)
    assert "cached/old" in found[1].keys[-1]


@pytest.mark.parametrize("unfreeze", ["never", {"stages": {"second": "0 steps", "*": "never"}}])
def test_weights_that_somebody_prunes_are_noticed_at_the_next_epoch(unfreeze):
    class Prune(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            prune.l1_unstructured(pl_module.network.parts["old"].first, "weight", amount=0.3)

    found = [fit(task(unfreeze, cache=cache), callbacks=[Prune()]) for cache in (False, True)]
    assert_equal_fits(*found)
    place = "cached/old" if unfreeze == "never" else "cached/old/first"
    assert place in found[1].keys[-1]


def test_writes_that_change_nothing_are_no_reason_to_start_again():
    class Write(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            found.append(trainer.train_dataloader.dataset)
            with torch.no_grad():
                pl_module.network.parts["old"].second.bias.add_(0)

    found = []
    fit(task(cache=True), callbacks=[Write()])
    assert found[0] is found[1] is found[2]


def test_features_are_given_up_when_their_part_trains():
    class Look(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            [cache] = [callback for callback in trainer.callbacks if isinstance(callback, FrozenFeatureCache)]
            found.append(sorted(key.split("-")[1] for key in cache._store._kept))

    found = []
    fit(task(parts={**TWO, "side": {**TWO["side"], "unfreeze": "1 epochs"}}, cache=True), callbacks=[Look()])
    assert found == [["side", "side", "stem", "stem"], ["stem", "stem"], ["stem", "stem"]]


@pytest.mark.usefixtures("_may_change")
def test_one_parameter_that_somebody_lets_train_gets_its_gradient_from_the_next_batch_on():
    class Thaw(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            bias = pl_module.network.parts["old"].first.bias
            moved.append(bias.grad is not None)
            bias.requires_grad_(batch_idx >= 1)

    moved = []
    assert "cached/old" in fit(task(cache=True), callbacks=[Thaw()], max_epochs=1).keys[0]
    assert moved == [False, False, True, True]


def test_a_checkpoint_at_the_end_still_says_what_was_served():
    found = fit(task(cache=True), max_steps=6)
    assert found.cache.state_dict() == {
        "decided": {"old": True},
        "boundaries": {},
        "serving": ["old"],
        "sizes": {"train": 8, "val": 8},
        "views": None,
        "viewed": [],
    }


@pytest.mark.parametrize("loader", ["files", "memory"])
def test_data_that_depend_on_the_epoch_are_noticed(loader):
    class Change(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            dataset = getattr(trainer.train_dataloader.dataset, "original", trainer.train_dataloader.dataset)
            dataset.entries["old"] += 1

    found = [fit(task(cache=cache), loader, callbacks=[Change()]) for cache in (False, True)]
    assert_equal_fits(*found)


def test_data_that_somebody_writes_to_through_numpy_are_noticed():
    class Change(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            dataset = getattr(trainer.train_dataloader.dataset, "original", trainer.train_dataloader.dataset)
            samples = dataset.entries["old"].numpy()  # of whose writes torch knows nothing
            samples += 1

    found = [fit(task(cache=cache), "memory", callbacks=[Change()]) for cache in (False, True)]
    assert_equal_fits(*found)


def test_loaders_that_are_made_anew_are_served():
    class Own(pl.LightningDataModule):
        def train_dataloader(self):
            return in_memory()

        def val_dataloader(self):
            return in_memory(11)

    losses = []
    for cache in (False, True):
        model = task(cache=cache)
        runner = trainer(max_epochs=3, reload_dataloaders_every_n_epochs=1)
        torch.manual_seed(7)
        Tower.seen = 0
        runner.fit(model, datamodule=Own())
        losses.append((Tower.seen, runner.callback_metrics["val/loss"]))
    torch.testing.assert_close(losses[0][1], losses[1][1])
    assert losses[1][0] < losses[0][0] - 20, "validation loaders that are made later are read live"
