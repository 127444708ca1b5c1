import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from hybrid_lightning import AverageWeights, ConfigError, GradualUnfreezing, HybridClassifier, NonFiniteGradients
from tests.tiny import Foreign, Tower, batches, hybrid, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
]
SCHEDULE = {"start": "3 steps", "every": "4 steps"}


class Recorded(Callback):
    """The weights after each optimizer step, and the step at which each was first seen to train."""

    def __init__(self):
        self.start, self.states, self.validated = {}, [], []

    def on_train_start(self, trainer, pl_module):
        self.start = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}

    def on_train_batch_end(self, trainer, pl_module, *batch):
        weights = {}
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                weights[name] = parameter.detach().clone()
        self.states.append(weights)

    def on_validation_epoch_start(self, trainer, pl_module):
        self.validated.append({name: tensor.clone() for name, tensor in pl_module.state_dict().items()})


def expected(states, name, half_life):
    values = [state[name].double() for state in states if name in state]
    weights = 2.0 ** (-torch.arange(len(values) - 1, -1, -1, dtype=torch.float64) / half_life)
    return torch.einsum("i,i...->...", weights / weights.sum(), torch.stack(values))


def fitted(folder, model=None, path=None, callbacks=(), **options):
    """A run, its record, and the last checkpoint."""
    model = model or hybrid(SCHEDULE, average={"ema": "4 steps"})
    record, last = Recorded(), ModelCheckpoint(folder, "last", monitor=None, enable_version_counter=False)
    quiet = {"num_sanity_val_steps": 0, "enable_checkpointing": True, "max_epochs": 3}
    runner = trainer(callbacks=[record, last, *callbacks], **{**quiet, **options})
    runner.fit(model, batches(), batches(16), ckpt_path=path, weights_only=True if path else None)
    return model, record, torch.load(folder / "last.ckpt", weights_only=True)


def test_the_average_of_each_weight_begins_at_its_unfreezing_and_a_checkpoint_holds_both(tmp_path):
    model, record, saved = fitted(tmp_path)
    averaged, trained = saved["state_dict"], saved["current_model_state"]
    names = dict(model.named_parameters())
    for name in names:
        torch.testing.assert_close(averaged[name], expected(record.states, name, 4).float())
        assert torch.equal(trained[name], record.states[-1][name])
    # the first update is that after the first step of the first stage, which frozen weights have no share in
    first = "network.parts.old.first.0.weight"
    assert not torch.equal(record.start[first], averaged[first])
    assert sum(first in state for state in record.states) == 4
    for name, tensor in record.validated[-1].items():
        assert torch.equal(tensor, averaged[name]), name
    for name, tensor in model.state_dict().items():  # after the run
        assert torch.equal(tensor, averaged[name]), name


def test_what_stays_frozen_is_as_it_was_bit_by_bit(tmp_path):
    _, record, saved = fitted(tmp_path, hybrid("never", average="ema"))
    for name, tensor in record.start.items():
        if name.startswith("network.parts.old"):
            assert torch.equal(tensor, saved["state_dict"][name]), name
            assert torch.equal(tensor, saved["current_model_state"][name]), name


def test_what_is_frozen_again_is_served_as_it_is(tmp_path):
    schedule = {"start": "2 steps", "every": "2 steps", "freeze": "10 steps"}
    _, _, saved = fitted(tmp_path, hybrid(schedule, average="ema"))
    for name, tensor in saved["current_model_state"].items():
        if name.startswith("network.parts.old"):
            assert torch.equal(tensor, saved["state_dict"][name]), name


def test_training_is_as_without_an_average(tmp_path):
    _, with_average, _ = fitted(tmp_path / "a")
    _, without, _ = fitted(tmp_path / "b", hybrid(SCHEDULE))
    for one, other in zip(with_average.states, without.states, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_files_give_the_average_and_a_fit_goes_on_from_what_trained(tmp_path):
    _, _, saved = fitted(tmp_path)
    path = tmp_path / "last.ckpt"
    loaded = HybridClassifier.load_from_checkpoint(path, trust=["tests"])
    started = hybrid(init_from=str(path)).build(next(iter(batches())))
    for name, tensor in saved["state_dict"].items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert torch.equal(started.state_dict()[name], tensor)
    _, record, _ = fitted(tmp_path / "plain", hybrid(SCHEDULE), path, max_epochs=4)
    _, averaged, _ = fitted(tmp_path / "again", path=path, max_epochs=4)
    for one, other in zip(record.states, averaged.states, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_fit_that_had_ended_before_leaves_the_average_too(tmp_path):
    _, _, saved = fitted(tmp_path)
    model, record, _ = fitted(tmp_path, path=tmp_path / "last.ckpt")
    assert not record.states
    assert all(torch.equal(tensor, saved["state_dict"][name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:gradients. step")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_update_belongs_to_an_optimizer_step_that_was_made(tmp_path, accumulate):
    class Poison(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 1:
                next(p for p in pl_module.parameters() if p.grad is not None).grad.fill_(torch.nan)

    model = hybrid("never", average={"ema": "4 steps"})
    callbacks = [NonFiniteGradients("skip"), Poison()]
    fitted(tmp_path, model, callbacks=callbacks, accumulate_grad_batches=accumulate, max_epochs=1)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    counts = set(saved["callbacks"]["AverageWeights"]["updates"].values())
    assert counts == {{1: 5, 2: 3}[accumulate] - 1}


def test_a_checkpoint_within_a_validation_has_both(tmp_path):
    class Saves(Callback):
        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, *rest):
            if not batch_idx:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    _, _, saved = fitted(tmp_path, callbacks=[Saves()])
    within = torch.load(tmp_path / "within.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(within[key][name], tensor) for name, tensor in saved[key].items())


def test_a_checkpoint_after_the_fit_has_both(tmp_path):
    model, _, saved = fitted(tmp_path)
    model.trainer.save_checkpoint(tmp_path / "after.ckpt")
    after = torch.load(tmp_path / "after.ckpt", weights_only=True)
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(after[key][name], tensor) for name, tensor in saved[key].items())


def test_a_tensor_in_two_places_has_one_average(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = nn.Linear(4, 4)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    parts = {"old": {"module": Tied()}}
    model = HybridClassifier(num_classes=2, parts=parts, lr=0.05, average="ema")
    _, _, saved = fitted(tmp_path, model)
    names = [f"network.parts.old.{name}.weight" for name in ("first", "second")]
    for state in (saved["state_dict"], saved["current_model_state"]):
        assert torch.equal(state[names[0]], state[names[1]])
    assert not torch.equal(saved["state_dict"][names[0]], saved["current_model_state"][names[0]])


def test_a_module_of_somebody_else_is_averaged(tmp_path):
    class Validated(Foreign):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx))

    unfreezing = GradualUnfreezing({"backbone": SCHEDULE})
    callbacks = [AverageWeights("3 steps"), unfreezing]
    _, record, saved = fitted(tmp_path, Validated(), callbacks=callbacks)
    for name in record.states[-1]:
        torch.testing.assert_close(saved["state_dict"][name], expected(record.states, name, 3).float())


def test_statistics_are_averaged_or_estimated_anew_for_the_average(tmp_path, caplog):
    norm = "network.parts.old.first.1.running_mean"
    found = {}
    for mode in (None, "recalibrate"):
        torch.manual_seed(0)
        parts = {"old": {"module": Tower, "batch_norm": mode}}
        model = HybridClassifier(num_classes=2, parts=parts, lr=0.05, average={"ema": "4 steps"})
        caplog.clear()
        with caplog.at_level("INFO"):
            _, _, saved = fitted(tmp_path / str(mode), model)
        assert caplog.text.count("'batch_norm: recalibrate' of a part estimates them") == (mode is None)
        found[mode] = saved["state_dict"][norm]
        assert not torch.equal(found[mode], saved["current_model_state"][norm])
        weight = saved["state_dict"]["network.parts.old.first.0.weight"]
        bias = saved["state_dict"]["network.parts.old.first.0.bias"]
        x = torch.cat([batch["old"] for batch in batches()])
        exact = (x @ weight.T + bias).mean(0)
    torch.testing.assert_close(found["recalibrate"], exact)
    assert not torch.allclose(found[None], exact)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("swa", "model.average: 'swa' is none of ema"),
        ({"ema": 0.999}, "average.ema: 0.999 is not a duration"),
        ({"ema": "0 steps"}, "average.ema: '0 steps' averages nothing"),
        ({"soup": 1}, "average.soup: 1 is not a number at least 2"),
        ({"soup": 2.5}, "average.soup: 2.5 is not a whole number"),
        ({"ema": "1 epochs", "soup": 3}, "soup': 3} is none of"),
    ],
)
def test_what_is_no_average_is_refused(given, message):
    with pytest.raises(ConfigError) as error:
        trainer(max_epochs=1).fit(hybrid(average=given), batches())
    assert message in str(error.value)


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_what_does_not_go_with_an_average_is_refused():
    with pytest.raises(ConfigError, match="averages weights, too"):
        trainer(callbacks=[EMAWeightAveraging()]).fit(hybrid(average="ema"), batches())
    schedule = {"start": {"plateau": "val/loss", "patience": "1 validations"}, "restore_best": True}
    with pytest.raises(ConfigError, match="restore_best"):
        trainer().fit(hybrid(schedule, average="ema"), batches(), batches(16))


def test_more_updates_than_steps_are_refused(tmp_path):
    _, _, saved = fitted(tmp_path)
    counts = saved["callbacks"]["AverageWeights"]["updates"]
    counts[next(iter(counts))] = 10**6
    torch.save(saved, tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match="more updates than there were steps"):
        fitted(tmp_path, path=tmp_path / "x.ckpt", max_epochs=4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_with_cached_features_the_average_is_the_same(tmp_path, accumulate):
    found = []
    for cache in (True, False):
        model = hybrid({"start": "8 steps", "every": "3 steps"}, 0.0, average="ema", cache=cache)
        _, _, saved = fitted(tmp_path / str(cache), model, max_epochs=5, accumulate_grad_batches=accumulate)
        found.append(saved["state_dict"])
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], atol=1e-5, rtol=1e-4)


def test_an_average_goes_with_a_start_at_the_probe(tmp_path):
    parts = {"old": {"module": "MLP", "args": {"hidden": [5]}}, "new": {"module": "torch.nn.Identity"}}
    model = HybridClassifier(num_classes=2, parts=parts, lr=0.05, start="probe", average={"ema": "2 steps"})
    _, record, saved = fitted(tmp_path, model, max_epochs=2)
    for name in record.states[-1]:
        torch.testing.assert_close(saved["state_dict"][name], expected(record.states, name, 2).float())


def test_compiled_parts_are_averaged(tmp_path):
    parts = {"old": {"module": "MLP", "args": {"hidden": [5]}, "compile": {"backend": "eager"}}}
    model = HybridClassifier(num_classes=2, parts=parts, lr=0.05, average={"ema": "2 steps"})
    _, record, saved = fitted(tmp_path, model, max_epochs=2)
    for name in record.states[-1]:
        torch.testing.assert_close(saved["state_dict"][name], expected(record.states, name, 2).float())


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_averages_of_short_numbers_are_saved_in_float32_and_go_on_exactly(tmp_path, precision):
    def model():
        torch.manual_seed(0)
        parts = {"old": {"module": "MLP", "args": {"hidden": [5]}}}
        return HybridClassifier(num_classes=2, parts=parts, lr=0.05, average={"ema": "6 steps"})

    _, _, whole = fitted(tmp_path / "whole", model(), precision=precision, max_epochs=3)
    fitted(tmp_path / "half", model(), precision=precision, max_epochs=2)
    path = tmp_path / "half" / "last.ckpt"
    torch.manual_seed(3)
    _, _, again = fitted(tmp_path / "again", model(), path, precision=precision, max_epochs=3)
    name = "network.parts.head.linear.weight"
    dtype = torch.float32 if precision == "bf16-true" else torch.float64
    assert whole["state_dict"][name].dtype == dtype
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(again[key][name], tensor) for name, tensor in whole[key].items())
