import pytest
import torch

from hybrid_lightning import ExactResume, FrozenFeatureCache, GradualUnfreezing, HybridClassifier
from hybrid_lightning.cache.options import CacheOptions
from hybrid_lightning.tasks.default_callbacks import cache_options, default_callbacks
from tests.small import classifier, loader, table, trainer


def test_features_are_served_after_what_unfreezes_and_before_loaders_are_seeded():
    kinds = [type(callback) for callback in default_callbacks([], {}, CacheOptions("auto"))]
    assert kinds.index(GradualUnfreezing) < kinds.index(FrozenFeatureCache) < kinds.index(ExactResume)
    assert FrozenFeatureCache not in [type(callback) for callback in default_callbacks([], {}, CacheOptions(False))]


class OwnStep(HybridClassifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("given", "of_own_step"), [("auto", False), (True, True), (False, False)])
def test_auto_leaves_steps_of_a_user_s_own_alone(given, of_own_step):
    assert cache_options(HybridClassifier, given) == (given, None)
    assert cache_options(OwnStep, given) == (of_own_step, None)


def test_views_for_steps_of_a_user_s_own_are_off_with_a_line_unless_forced(caplog):
    caplog.set_level("INFO")
    assert cache_options(HybridClassifier, {"views": 4}) == ("auto", 4)
    assert cache_options(OwnStep, {"views": 4, "mode": True}) == (True, 4)
    assert not caplog.messages
    assert cache_options(OwnStep, {"views": 4}) == (False, None)
    assert "Write {views: 4, mode: true} if they do not." in caplog.text


def test_the_option_is_stored_in_checkpoints_and_followed(tmp_path):
    data = loader({"x": table(), "target": torch.arange(27) % 3})
    runner = trainer()
    runner.fit(classifier(cache=False), data)
    runner.save_checkpoint(tmp_path / "x.ckpt")
    assert HybridClassifier.load_from_checkpoint(tmp_path / "x.ckpt").settings.cache is False
