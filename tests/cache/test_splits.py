import lightning.pytorch as pl
import torch

from hybrid_lightning.cache.splits import CannotCacheError, Split
from hybrid_lightning.cache.variation import varying_keys
from tests.cache.fits import Files, entries, files, in_memory, task
from tests.tiny import trainer


def varying(loader, hook=None):
    """The keys of the training samples that vary, asked within a run."""
    found = []

    class Ask(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if hook is not None:
                pl_module.on_after_batch_transfer = hook
            try:
                found.append(varying_keys(trainer, pl_module, Split("train", loader, True, 8)))
            except CannotCacheError as problem:
                found.append(str(problem))
            trainer.should_stop = True

    trainer(callbacks=[Ask()], max_epochs=1, limit_train_batches=1).fit(task(cache=False), in_memory())
    return found[0]


def test_plain_samples_do_not_vary():
    assert varying(in_memory()) == set()
    assert varying(files()) == set()


def test_reading_that_draws_random_numbers_is_found_even_where_nothing_changes():
    assert "draws random numbers" in varying(files(random="new"))


def test_keys_that_change_with_a_generator_of_their_own_are_found():
    class Own(Files):
        generator = torch.Generator()

        def __getitem__(self, index):
            return {**super().__getitem__(index), "old": torch.rand(4, generator=self.generator)}

    assert varying(torch.utils.data.DataLoader(Own(), 8)) == {"old"}


def test_a_hook_that_changes_a_key_at_random_is_found_even_if_it_changed_nothing_this_time():
    def rarely(batch, dataloader_idx):
        return {**batch, "new": torch.where(torch.rand(()) < 1e-9, 0.0, batch["new"])}

    assert varying(in_memory(), rarely) == {"new"}


def test_a_hook_that_changes_a_key_in_place_at_random_is_found():
    def noise(batch, dataloader_idx):
        batch["old"].add_(torch.rand(()))
        return batch

    assert varying(in_memory(), noise) == {"old"}


def test_a_hook_that_always_does_the_same_is_no_obstacle():
    assert varying(in_memory(), lambda batch, dataloader_idx: {**batch, "old": batch["old"] * 2}) == set()


def test_batches_have_to_be_dicts():
    class Pairs(Files):
        def __getitem__(self, index):
            return (entries()["old"][index], 0)

    assert "dicts" in varying(torch.utils.data.DataLoader(Pairs()))


def test_rows_are_spread_over_the_dataset():
    split = Split("train", in_memory(), True, 8)
    assert split.spread_rows(3) == [0, 14, 29]
    assert split.spread_rows(99) == list(range(30))
