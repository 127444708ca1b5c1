"""Features of several versions of training samples, where reading these draws random numbers."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from hybrid_lightning import ConfigError, ExactResume, FrozenFeatureCache, GradualUnfreezing
from hybrid_lightning.cache.options import CacheOptions
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.resume.seeded_loaders import DatasetView, Drawn, hashed, seed_cpu
from tests.cache.fits import (
    BATCH,
    NOISY,
    SAMPLES,
    FollowEpochs,
    Noisy,
    Shifted,
    assert_equal_fits,
    entries,
    fit,
    task,
)
from tests.small import changed, command
from tests.tables import write_rows

TWO = {"views": 2, "mode": True}
STAYS = "cache: old stays live: "


def version(dataset, seed, number, index):
    """A sample as it was promised to be drawn."""
    seed_cpu(hashed(seed, "view", number, index))
    return dataset[index]


class Watch(pl.Callback):
    """The training batches as the module gets them, with their epochs, and the seed of the run."""

    def __init__(self):
        self.batches = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        [resume] = [callback for callback in trainer.callbacks if isinstance(callback, ExactResume)]
        self.seed = resume.seed
        self.batches.append((trainer.current_epoch, batch))


# What is served


@pytest.mark.parametrize("loader", NOISY)
def test_an_epoch_serves_the_versions_whose_number_is_its_own_modulo_the_views(loader):
    watch = Watch()
    found = fit(task(cache=TWO), loader, callbacks=[watch])
    assert found.keys[0] == {"new", "target", "cached", "cached_index", "cached/old"}
    tower = found.model.network.parts["old"].eval()
    for epoch, batch in watch.batches:
        rows = batch["cached_index"].tolist()
        samples = [version(Noisy(), watch.seed, epoch % 2, row) for row in rows]
        old = torch.stack([sample["old"] for sample in samples])
        torch.testing.assert_close(batch["cached"]["old"], tower(old), rtol=0, atol=1e-5)
    assert {epoch for epoch, _ in watch.batches} == {0, 1, 2}


def test_a_frozen_part_runs_once_per_version_and_the_line_says_so(lines):
    seen = [fit(task(cache={**TWO, "views": views}), "noisy", max_epochs=8).seen for views in (1, 3)]
    looked_at = 2 + BATCH + 1  # the layout, and what is compared with a live forward
    assert seen[1] - seen[0] == 2 * (SAMPLES + looked_at)
    assert lines() == [
        "cache: old, 1 view of training samples, 30 × 1 + 11 rows, 0.0 MB: computed once, instead of 8 times",
        "cache: old, 3 views of training samples, 30 × 3 + 11 rows, 0.0 MB: computed once, instead of 8 times",
    ]


def test_a_fit_is_as_one_that_reads_these_versions_live():
    live = fit(task(cache=False), "versions", callbacks=[FollowEpochs()], max_epochs=5)
    cached = fit(task(cache=TWO), "shifted", max_epochs=5)
    assert_equal_fits(live, cached, steps=20)
    assert "cached/old" in cached.keys[-1]


@pytest.mark.parametrize("unfreeze", ["never", "6 steps"])
def test_entries_that_are_read_live_are_of_the_same_version(unfreeze):
    watch = Watch()
    found = fit(task(unfreeze, cache=TWO), "shifted", callbacks=[watch])
    assert "cached/old" in found.keys[0]
    for epoch, batch in watch.batches[:8]:
        rows = batch["cached_index"].tolist()
        samples = [version(Shifted(), watch.seed, epoch % 2, row) for row in rows]
        for key in {"old", "new"} & set(batch):
            assert torch.equal(batch[key], torch.stack([sample[key] for sample in samples])), key
    assert ("old" in found.keys[-1]) == (unfreeze != "never")


def test_after_the_last_part_has_unfrozen_new_versions_are_drawn_from_the_next_epoch_on():
    found = fit(task("6 steps", cache=TWO), "noisy", max_epochs=4)
    assert all("cached_index" in keys for keys in found.keys[:8])
    assert found.keys[8:] == [{"old", "new", "target"}] * 8


def test_without_random_numbers_one_version_is_kept_as_ever(lines):
    found = [fit(task(cache=cache), "files") for cache in (False, TWO)]
    assert_equal_fits(*found)
    assert lines() == ["cache: old, 30 + 11 rows, 0.0 MB: computed once, instead of 3 times"]


def test_a_version_is_the_same_for_every_index_that_names_the_sample():
    view = DatasetView(Noisy(), 5, 1)
    one, other = view[-1], view.__getitems__(Drawn("0/0/0/0", [3, torch.tensor(29).numpy()[()]], 7))[1]
    assert torch.equal(one["old"], other["old"])
    assert not torch.equal(one["old"], DatasetView(Noisy(), 5, 0)[29]["old"])
    assert not torch.equal(one["old"], DatasetView(Noisy(), 6, 1)[29]["old"])


# Where it stays live


def test_views_are_not_asked_for_by_themselves(lines):
    fit(task(cache=True), "noisy")
    assert lines() == [STAYS + "reading a sample draws random numbers, as a random transform does."]


def test_a_dataset_that_draws_from_a_generator_of_its_own_is_refused(lines):
    class Own(Noisy):
        generator = torch.Generator()

        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return {**sample, "new": sample["new"] + torch.rand(4, generator=self.generator)}

    fit(task(cache=TWO), lambda size=SAMPLES: DataLoader(Own(size), BATCH))
    [line] = lines()
    assert line.startswith(STAYS + "views need transforms that draw from torch, numpy or random; 'new' changes")


def test_a_dataset_that_reads_whole_batches_is_refused(lines):
    class Whole(DictDataset):
        def __getitems__(self, indices):
            batch = super().__getitems__(indices)
            return {**batch, "old": batch["old"] + torch.rand(len(indices), 1)}

    def whole(size=SAMPLES):
        return DataLoader(Subset(Whole(entries(size)), range(size)), BATCH, collate_fn=as_batch)

    fit(task(cache=TWO), whole)
    assert lines() == [STAYS + "views need a dataset that reads sample by sample; this one reads whole batches."]


def test_an_augmentation_of_whole_batches_is_refused(lines):
    class Augmented(type(task())):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {**batch, "old": batch["old"] + torch.rand(())} if self.trainer.training else batch

    model = task(cache=TWO)
    model.__class__ = Augmented
    fit(model, "files")
    [line] = lines()
    assert line.startswith(STAYS + "what it reads changes at random from epoch to epoch, with whole batches")


def test_without_exact_resume_there_is_no_seed_to_draw_from(lines):
    fit(task(cache=TWO), "noisy", callbacks=[ExactResume(enabled=False)])
    assert lines() == [STAYS + "views are drawn from the seed of ExactResume, which is off."]


# Decision


def test_no_more_epochs_than_views_save_nothing_unless_forced(lines, monkeypatch):
    monkeypatch.setattr("hybrid_lightning.cache.choices.FEWEST_READS", 0)
    monkeypatch.setattr("hybrid_lightning.cache.choices.pays", lambda saved: True)
    caches = ({"views": 3}, {"views": 3, "mode": True}, {"views": 1})
    served = ["cached/old" in fit(task(cache=cache), "noisy").keys[0] for cache in caches]
    assert served == [False, True, True]
    said = "3 views save nothing in the frozen epochs (3). Ask for fewer views or more epochs."
    assert lines()[0] == STAYS + said


def test_a_fit_too_short_for_a_cache_says_so_to_those_who_ask_for_views(lines):
    fit(task(cache={"views": 2}), "noisy")
    assert lines() == [STAYS + "123 samples are read in the frozen steps, too few for features to save time."]


def test_each_version_counts_in_the_fill(monkeypatch):
    filled = []

    def saving(ahead, seconds, rows, disk):
        filled.append(rows)
        return 9.0

    monkeypatch.setattr("hybrid_lightning.cache.choices.FEWEST_READS", 0)
    monkeypatch.setattr("hybrid_lightning.cache.choices.saving", saving)
    fit(task(cache={"views": 4}), "noisy", max_epochs=5)
    assert filled == [4 * SAMPLES + 11]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"views": 0}, r"^model\.cache\.views: 0 is not a number at least 1 and at most 64\."),
        ({"views": 65}, r"^model\.cache\.views: 65 is not a number at least 1 and at most 64\."),
        ({"views": 2.5}, r"^model\.cache\.views: 2\.5 is not a whole number\."),
        ({"view": 2}, r"^model\.cache: unknown key 'view'\. Did you mean 'views'\?"),
        ({"mode": True}, r"^model\.cache: it lacks 'views'\. Write such as \{views: 4\}"),
        ({"views": 2, "mode": "yes"}, r"^model\.cache\.mode: unknown value yes\. Possible: auto, true, false\."),
    ],
)
def test_an_option_that_cannot_be_is_refused(given, says):
    with pytest.raises(ConfigError, match=says):
        task(cache=given)


def test_the_option_is_one_of_the_four_forms():
    forms = ["auto", True, False, {"views": 4}]
    assert [CacheOptions.parse(form) for form in forms] == [("auto", None), (True, None), (False, None), ("auto", 4)]


# Files and restarts


def of_files(more=(), views=3, **options):
    callbacks = [GradualUnfreezing({"old": "never"}), FrozenFeatureCache(True, 0.0, views), *more]
    return fit(task(cache=False), "noisy", callbacks=callbacks, **{"max_epochs": 4, **options})


class Crash(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 6:
            trainer.save_checkpoint("crash.ckpt")
            raise RuntimeError("the power is gone")


def names(folder):
    return sorted(path.name.rsplit("-", 1)[0] for path in folder.glob("feature_cache_0/*.features"))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
def test_a_restart_finds_the_files_of_each_version_and_goes_on_with_them(tmp_path):
    whole = of_files()
    with pytest.raises(RuntimeError, match="power"):
        of_files(more=[Crash()])
    assert names(tmp_path) == ["train.0-old", "train.1-old", "train.2-old", "val-old"]
    again = of_files(path="crash.ckpt")
    assert again.losses == whole.losses[6:]
    assert again.seen < whole.seen - 3 * SAMPLES
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
def test_another_number_of_views_is_decided_anew_from_the_next_epoch_on():
    with pytest.raises(RuntimeError, match="power"):
        of_files(more=[Crash()])
    again = of_files(path="crash.ckpt", views=2)
    served = ["cached/old" in keys for keys in again.keys]
    assert served == [False] * 2 + [True] * 8
    assert again.cache.state_dict()["views"] == 2


# From the command line


def test_images_with_random_transforms_are_served_and_a_run_continues(lines, tmp_path):
    random = np.random.default_rng(0)
    rows = []
    for row in range(24):
        pixels = random.integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{row}.png")
        rows.append({"photo": f"{row}.png", "size": row, "label": "ab"[row % 2]})
    write_rows(tmp_path / "m.csv", rows)
    crop = {"class_path": "RandomCrop", "init_args": {"size": 8, "padding": 2}}
    inputs = {"photo": {"image": "photo", "size": 8, "train": [crop]}, "size": {"numeric": ["size"]}}
    data = {"path": "m.csv", "inputs": inputs, "target": "label", "batch_size": 4, "workers": 0}
    parts = {"photo": {"module": "ConvExtractor", "args": {"channels": [4]}, "unfreeze": "never"}}
    own = changed(
        {
            "init.parts": {**parts, "size": {"module": "MLP"}},
            "init.num_classes": 2,
            "init.cache": TWO,
            "data": {"class_path": "ManifestDataModule", "init_args": data},
            "trainer": {"max_epochs": 3, "log_every_n_steps": 1, "enable_progress_bar": False, "accelerator": "cpu"},
        }
    )
    assert command("fit", "--name", "run", config=own) == 0
    [line] = lines()
    assert line.startswith("cache: photo, 2 views of training samples, ")
    checkpoint = str(next(tmp_path.glob("runs/run/**/last.ckpt")))
    assert command("fit", "--ckpt_path", checkpoint, "--trainer.max_epochs", "5", config=own) == 0
    assert lines()[1].startswith("cache: photo, 2 views of training samples, ")
