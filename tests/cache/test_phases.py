"""Parts that are unfrozen stage by stage: what is served moves to the deepest frozen stage."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from hybrid_lightning.cache.decision import may_be_kept
from hybrid_lightning.cache.filling import Filling
from tests.cache.fits import assert_equal_fits, fit
from tests.cache.stages import (
    SIX,
    Backbone,
    Checkpointed,
    Early,
    Gate,
    Stage,
    Tokens,
    Unet,
    Wide,
    samples,
    task,
    top_down,
)

STEPS = 3  # per epoch
TWO = top_down(*SIX[:2])


def served(found):
    """What was served in the first batch of each epoch."""
    epochs = []
    for keys in found.keys[::STEPS]:
        names = sorted(key.removeprefix("cached/") for key in keys if key.startswith("cached/"))
        epochs.append(" ".join(names))
    return epochs


def both(module=Backbone, epochs=7, make=samples, **options):
    """A live fit, and a cached one that is equal to it."""
    live = fit(task(module, cache=False, **options), make, max_epochs=epochs, log_every_n_steps=1)
    cached = fit(task(module, cache=True, **options), make, max_epochs=epochs, log_every_n_steps=1)
    assert_equal_fits(live, cached, steps=epochs * STEPS)
    return live, cached


# What is served


def test_the_boundary_is_the_deepest_frozen_stage_of_each_phase():
    _, cached = both()
    expected = ["image", "image/stages.4", "image/stages.3", "image/stages.2", "image/pool", "image/stages.0", ""]
    assert served(cached) == expected
    assert "image" not in cached.keys[STEPS]
    assert "image" in cached.keys[-1], "in the last epoch all of it trains"


def test_frozen_stages_run_once_per_phase_and_sample():
    live, cached = both(epochs=8, unfreeze=top_down(SIX[0], start=0))
    assert served(cached) == ["image/stages.4"] * 8
    first, *_, last = cached.model.network.parts["image"].stages
    in_both = live.model.network.parts["image"].stages
    assert in_both[0].seen > 8 * (24 + 11)
    assert first.seen < in_both[0].seen / 2
    assert last.seen > 8 * (24 + 11)


def test_nothing_of_it_is_left_in_the_module_or_in_checkpoints():
    live, cached = both(epochs=3, unfreeze=TWO)
    assert live.model.state_dict().keys() == cached.model.state_dict().keys()
    assert not any("forward" in vars(module) for module in cached.model.modules())
    image = torch.randn(5, 3, 8, 8)
    module = cached.model.network.parts["image"].eval()
    assert torch.isfinite(module(image)).all()


def test_layers_of_a_transformer():
    _, cached = both(Tokens, epochs=5, unfreeze=top_down("layers.2", "layers.1", "layers.0", "embed"))
    assert served(cached) == ["image", "image/layers.1", "image/layers.0", "image/embed", ""]


def test_a_part_of_a_chain_needs_nothing_of_the_parts_before_it():
    before = {"stem": {"module": Stage, "args": {"inputs": 3, "outputs": 3}, "input": "image_", "unfreeze": "never"}}

    def make(number=30):
        loader = samples(number)
        loader.dataset.entries["image_"] = loader.dataset.entries.pop("image")
        return loader

    _, cached = both(epochs=3, unfreeze=TWO, make=make, before=before, image={"input": "stem"})
    assert served(cached) == ["image", "image/stages.4", "image/stages.3"]
    assert "image_" not in cached.keys[-1]


def test_samples_may_lack_the_part():
    _, cached = both(epochs=3, unfreeze=TWO, make=lambda number=30: samples(number, gaps=True))
    assert served(cached) == ["image", "image/stages.4", "image/stages.3"]


def test_what_unfreezes_within_an_epoch_is_live_until_the_next_one():
    _, cached = both(epochs=4, unfreeze=top_down(*SIX[:2], start=3, every=5, unit="steps"))
    assert served(cached) == ["image", "image/stages.4", "image/stages.4", "image/stages.3"]
    at_step_8 = cached.keys[8]
    assert "image" in at_step_8, "the stage that gave what was served trains from this step on"
    assert not any(key.startswith("cached/") for key in at_step_8)


def test_logged_values_are_those_of_a_live_fit():
    live, cached = both(epochs=3, unfreeze=TWO)
    one, other = live.trainer.callback_metrics, cached.trainer.callback_metrics
    assert one.keys() == other.keys()
    assert any(name.startswith("grad_norm/image") for name in one)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-5)


# What stays live


@pytest.mark.parametrize("gate", [1.0, 0.0])
def test_a_skip_over_the_boundary_stays_live_even_if_its_gate_is_closed(gate, lines):
    options = {"image": {"args": {"gate": gate}}, "unfreeze": top_down("up", "gate", every=0)}
    live, cached = both(Unet, epochs=2, **options)
    assert served(cached) == ["image", ""]
    assert live.losses == cached.losses
    line = lines()[-1]
    assert line.startswith("cache: image stays live: run from image/middle on it differs from a live forward by ")
    assert line.endswith("as what follows reads something else, too.")


def test_nothing_is_kept_behind_what_varies_in_training():
    _, cached = both(Early, epochs=3, unfreeze=TWO)
    assert served(cached) == ["image", "image/stages.0", "image/stages.0"]


def test_statistics_that_follow_the_batches_and_compiled_parts_stay_live():
    cached = fit(task(unfreeze=top_down(SIX[0]), cache=True, image={"batch_norm": "train"}), samples, max_epochs=2)
    assert served(cached) == ["", ""]


def test_an_earlier_and_smaller_output_is_taken_where_the_deepest_does_not_fit(monkeypatch):
    rows = 24 + 11
    monkeypatch.setattr("hybrid_lightning.cache.choices.may_be_kept", lambda size, *_: size < rows * 16 * 64 * 4)
    _, cached = both(Wide, epochs=3, unfreeze=top_down("2", "1"))
    assert served(cached) == ["image", "image/0", "image/0"]


def test_what_fits_nowhere_stays_live(monkeypatch, lines):
    monkeypatch.setattr("hybrid_lightning.cache.choices.may_be_kept", lambda *_: False)
    _, cached = both(epochs=2, unfreeze=top_down(SIX[0]))
    assert served(cached) == ["image", ""]
    assert lines()[-1] == "cache: image stays live: its features take 0.0 GB, too much for memory and disk."


def test_features_fit_into_memory_or_into_a_share_of_the_free_disk(tmp_path):
    assert may_be_kept(5, 5, tmp_path / "new", 1)
    assert may_be_kept(6, 5, tmp_path / "new", 2)
    assert not may_be_kept(1e18, 5, tmp_path / "new", 1)


class Failing(nn.Sequential):
    """Looks at the values of what it reads."""

    def __init__(self):
        super().__init__(Stage(3, 4), Stage(4, 4))

    def forward(self, x):
        assert bool(x.isfinite().all())
        assert float(x.abs().sum()) != float(x.numel())
        return super().forward(x).mean((2, 3))


def test_a_module_that_refuses_placeholders_stays_live(lines):
    live, cached = both(Failing, epochs=2, unfreeze=top_down("1"))
    assert live.losses == cached.losses
    assert served(cached) == ["image", ""]
    assert lines()[-1].startswith("cache: image stays live: AssertionError")


def test_if_the_boundary_fails_later_the_other_parts_are_served_on(monkeypatch, lines):
    layout = Filling._layout

    def refuse(self):
        if any("/" in place for place in self.parts):
            raise OSError(28, "No space left on device")
        return layout(self)

    monkeypatch.setattr(Filling, "_layout", refuse)
    before = {"other": {"module": Gate, "args": {"value": 2.0}, "unfreeze": "never", "pool": "mean"}}
    _, cached = both(epochs=2, unfreeze=top_down(SIX[0]), before=before, make=with_other)
    assert served(cached) == ["image other", "other"]
    assert "No space left" in lines()[-2]


def with_other(number=30):
    loader = samples(number)
    loader.dataset.entries["other"] = loader.dataset.entries["image"].flip(0)
    return loader


# Decisions


def test_each_boundary_is_decided_once_and_stored(monkeypatch, lines):
    monkeypatch.setattr("hybrid_lightning.cache.choices.FEWEST_READS", 0)
    timed = []

    def pays(saved):
        timed.append(saved)
        return len(timed) != 2

    monkeypatch.setattr("hybrid_lightning.cache.choices.pays", pays)
    found = fit(task(unfreeze=top_down(*SIX[:2], start=3, every=3)), samples, max_epochs=9)
    assert served(found) == ["image"] * 3 + [""] * 3 + ["image/stages.3"] * 3
    boundaries = {"image/stages.4": "", "image/stages.3": "image/stages.3"}
    assert found.cache.state_dict()["boundaries"] == boundaries
    assert "saves about" in lines()[0]
    assert lines()[1].startswith("cache: image/stages.4 stays live: serving features would save ")


class Crash(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint("crash.ckpt")
            raise RuntimeError("the power is gone")


def test_a_restart_follows_a_decision_without_a_timing(monkeypatch):
    monkeypatch.setattr("hybrid_lightning.cache.choices.FEWEST_READS", 0)
    monkeypatch.setattr("hybrid_lightning.cache.choices.pays", lambda saved: True)
    schedule = top_down(SIX[0], start=0)
    with pytest.raises(RuntimeError, match="power"):
        fit(task(unfreeze=schedule), samples, callbacks=[Crash()])
    monkeypatch.setattr("hybrid_lightning.cache.choices.measure", None)
    again = fit(task(unfreeze=schedule), samples, path="crash.ckpt")
    assert served(again) == ["image/stages.4"]


def test_a_part_whose_backward_pass_runs_its_start_again_stays_live(lines):
    _, cached = both(Checkpointed, epochs=3, unfreeze=TWO)
    assert served(cached) == ["image", "", ""]
    assert "activations are checkpointed" in lines()[1]
