import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    LambdaCallback,
    ModelPruning,
    StochasticWeightAveraging,
)
from torch import nn

from hybrid_lightning import ConfigError, GradualUnfreezing, HybridClassifier
from tests.tiny import Foreign, Tower, batches, hybrid, trainer


class Writing(pl.Callback):
    """Adds to a tensor of the model once, in a hook and at a step of the run."""

    def __init__(self, name: str, hook: str = "on_train_batch_end", step: int = 2) -> None:
        self.name, self.step = name, step
        setattr(self, hook, self.write)

    def write(self, run: pl.Trainer, module: pl.LightningModule, *more) -> None:
        if run.global_step == self.step:
            module.state_dict()[self.name].add_(1)


PREFIX = "network.parts.old."


@pytest.mark.parametrize(
    ("name", "hook", "step"),
    [
        ("first.1.weight", "on_train_batch_end", 1),
        ("third.weight", "on_train_batch_end", 1),
        ("first.1.running_mean", "on_validation_start", 5),
        ("second.1.num_batches_tracked", "on_train_epoch_end", 5),
        ("first.0.bias", "on_train_end", 20),
    ],
)
def test_a_frozen_tensor_that_another_callback_changes_ends_the_fit_with_its_name(name, hook, step):
    runner = trainer(callbacks=[Writing(PREFIX + name, hook, step)])
    with pytest.raises(ConfigError, match=rf"frozen for the whole run, and changed nevertheless: '{PREFIX}{name}'\."):
        runner.fit(hybrid("never"), batches(), batches(samples=12))


@pytest.mark.parametrize(
    ("unfreeze", "options"),
    [
        ("7 steps", {}),
        ({"freeze": "3 steps"}, {}),
        ({"start": "2 steps", "every": "2 steps"}, {"batch_norm": "frozen"}),
        ("never", {"batch_norm": "train"}),
        ("7 steps", {"batch_norm": "recalibrate"}),
    ],
)
def test_what_trains_at_any_time_may_change(unfreeze, options):
    old = {"module": Tower, "args": {"in_features": 4}, "unfreeze": unfreeze, **options}
    model = HybridClassifier(num_classes=2, parts={"old": old, "new": {"module": "MLP"}})
    trainer().fit(model, batches(), batches(samples=12))


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_weight_averaging_keeps_what_is_frozen():
    trainer(callbacks=[EMAWeightAveraging(decay=0.9)]).fit(hybrid("never"), batches(), batches(samples=12))


@pytest.mark.parametrize(
    ("callback", "reason"),
    [
        (StochasticWeightAveraging(swa_lrs=1e-2), "EMAWeightAveraging"),
        (BackboneFinetuning(), "write 'unfreeze' for each part"),
        (ModelPruning("l1_unstructured", amount=0.3), "Prune after the run"),
    ],
)
def test_callbacks_that_undo_a_schedule_are_refused_at_the_start(callback, reason):
    with pytest.raises(ConfigError, match=f"^trainer.callbacks: {type(callback).__name__} .*{reason}"):
        trainer(callbacks=[callback]).fit(hybrid("never"), batches())


def test_a_module_of_somebody_s_own_is_protected_too():
    callbacks = [StochasticWeightAveraging(swa_lrs=1e-2), GradualUnfreezing({"backbone": "never"})]
    with pytest.raises(ConfigError, match="StochasticWeightAveraging"):
        trainer(callbacks=callbacks).fit(Foreign(), batches())


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_best_weights_are_not_restored_where_validation_sees_averages():
    model = hybrid({"start": "2 epochs", "restore_best": "val/loss"})
    with pytest.raises(ConfigError, match=r"unfreeze: restore_best .* EMAWeightAveraging"):
        trainer(callbacks=[EMAWeightAveraging()]).fit(model, batches(), batches(samples=12))


class WithoutGraph(nn.Module):
    """A frozen extractor as many write it, with a layer that nothing uses."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.pooler = nn.Linear(4, 4), nn.Linear(4, 4)
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how == "no_grad":
            with torch.no_grad():
                return self.net(x)
        if self.how == "detach":
            return self.net(x).detach()
        return torch.ones_like(x) if self.how == "constant" else self.net(x)


def extractor(how: str, unfreeze: str) -> HybridClassifier:
    parts = {"old": {"module": WithoutGraph(how), "weights": "pretrained", "unfreeze": unfreeze}, "new": "MLP"}
    return HybridClassifier(num_classes=2, parts=parts)


@pytest.mark.parametrize("how", ["no_grad", "detach", "constant"])
@pytest.mark.parametrize(("unfreeze", "step"), [("always", 0), ("7 steps", 7)])
def test_a_part_that_trains_without_gradients_is_refused_in_its_first_steps(how, unfreeze, step):
    runner = trainer()
    with pytest.raises(ConfigError, match=rf"unfreeze\.old: no gradient reaches this part, .* from step {step} on\."):
        runner.fit(extractor(how, unfreeze), batches())
    assert runner.global_step == step + 9


def test_so_is_one_of_a_fit_that_is_shorter_than_that():
    with pytest.raises(ConfigError, match=r"unfreeze\.old: no gradient reaches this part"):
        trainer(max_steps=2).fit(extractor("detach", "always"), batches())


def test_one_that_something_else_has_frozen_is_refused_too():
    def freeze(run, module):
        module.network.parts["old"].requires_grad_(False)

    with pytest.raises(
        ConfigError, match=r"unfreeze\.old: no gradient reaches this part.* something else has frozen it"
    ):
        trainer(callbacks=[LambdaCallback(on_train_start=freeze)]).fit(hybrid("always"), batches())


class DroppedOut(nn.Module):
    """Leaves out its input in the first training batches, as by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.left = nn.Linear(4, 4), 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and self.left:
            self.left -= 1
            return torch.zeros_like(x)
        return self.net(x)


def test_a_part_that_is_left_out_at_times_is_not_refused(caplog):
    parts = {"old": {"module": DroppedOut(), "origin": "untrained"}, "new": "MLP"}
    with caplog.at_level("INFO"):
        trainer(max_epochs=1).fit(HybridClassifier(num_classes=2, parts=parts), batches())
    assert not [line for line in caplog.messages if "no gradient" in line]


class Taught(nn.Module):
    """Has a teacher, which arrives frozen and follows the rest as a moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.teacher = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.teacher.weight.data.lerp_(self.net.weight.data, 0.1)
        return self.net(x) + self.teacher(x)


@pytest.mark.parametrize("unfreeze", ["always", "7 steps"])
def test_what_arrived_frozen_and_changes_is_told_once_and_not_refused(unfreeze, caplog):
    parts = {"old": {"module": Taught(), "origin": "untrained", "unfreeze": unfreeze}, "new": "MLP"}
    with caplog.at_level("INFO"):
        trainer().fit(HybridClassifier(num_classes=2, parts=parts), batches())
    [line] = [line for line in caplog.messages if "arrived frozen" in line]
    assert line.startswith("'network.parts.old.teacher.weight' arrived frozen")


def test_a_layer_that_nothing_uses_is_named_once(caplog):
    with caplog.at_level("INFO"):
        trainer(accumulate_grad_batches=2).fit(extractor("used", "2 steps"), batches())
    lines = [line for line in caplog.messages if "no gradient reaches" in line]
    names = "'network.parts.old.pooler.weight', 'network.parts.old.pooler.bias'"
    assert lines == [f"old: no gradient reaches {names}; what is not used does not train."]


class Shrinking(pl.LightningDataModule):
    """An epoch has fewer batches than the one before."""

    def train_dataloader(self):
        return batches(samples=40 - 8 * self.trainer.current_epoch)


def test_an_epoch_of_another_length_is_refused_where_it_moves_a_moment():
    runner = trainer(reload_dataloaders_every_n_epochs=1)
    with pytest.raises(ConfigError, match="unfreeze: this epoch has 4 steps and the run 16, other numbers than"):
        runner.fit(hybrid("2 epochs"), datamodule=Shrinking())


@pytest.mark.parametrize("unfreeze", ["never", "3 steps", "0.4 epochs"])
def test_an_epoch_of_another_length_does_not_matter_to_steps_and_to_what_is_over(unfreeze):
    trainer(reload_dataloaders_every_n_epochs=1).fit(hybrid(unfreeze), datamodule=Shrinking())


def test_a_part_that_a_fit_which_ends_early_never_trained_is_named(caplog):
    class Stopping(pl.Callback):
        def on_train_epoch_end(self, run, module) -> None:
            run.should_stop = True

    with caplog.at_level("INFO"):
        trainer(callbacks=[Stopping()]).fit(hybrid("2 epochs"), batches())
    lines = [line for line in caplog.messages if "has not been unfrozen" in line]
    assert [line.split(" has")[0] for line in lines] == ["old.first", "old.second", "old.third"][: len(lines)]
    assert all("it was due at step 10, and the run ended after 5 steps." in line for line in lines)
    assert lines


@pytest.mark.parametrize("rates", [{"warm_up": "2 epochs"}, {"warm_up": "50%"}])
def test_an_epoch_of_another_length_is_refused_where_it_moves_the_end_of_a_warm_up(rates):
    runner = trainer(reload_dataloaders_every_n_epochs=1)
    with pytest.raises(ConfigError, match=r"rates\.warm_up: this epoch has 4 steps and the run 16"):
        runner.fit(hybrid("never", rates=rates), datamodule=Shrinking())


def test_it_does_not_matter_to_a_warm_up_that_is_over():
    model = hybrid("never", rates={"warm_up": "0.4 epochs"})
    trainer(reload_dataloaders_every_n_epochs=1).fit(model, datamodule=Shrinking())


def test_an_optimizer_that_is_exchanged_later_is_refused():
    def exchange(run, module):
        if run.current_epoch == 1:
            run.optimizers = [torch.optim.SGD(module.parameters(), 0.1)]

    callbacks = [LambdaCallback(on_train_epoch_start=exchange)]
    with pytest.raises(ConfigError, match="the optimizer's groups have no part names"):
        trainer(callbacks=callbacks).fit(hybrid("never"), batches())


class Dead(nn.Module):
    """Clamps what it returns, so that gradients of 0 reach its weights from some call on."""

    def __init__(self, calls_before: int) -> None:
        super().__init__()
        self.net, self.left = nn.Linear(4, 4), calls_before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        if self.training:
            self.left -= 1
        return y if self.left >= 0 and self.training else y.clamp(5e8, 1e9)


def lines_on_zero_gradients(module, caplog, unfreeze="always", other="always", **options):
    parts = {"old": {"module": module, "origin": "untrained", "unfreeze": unfreeze}}
    parts["new"] = {"module": "MLP", "unfreeze": other}
    with caplog.at_level("INFO"):
        trainer(**options).fit(HybridClassifier(num_classes=2, parts=parts), batches(samples=80))
    return [line for line in caplog.messages if "every gradient has been 0" in line]


@pytest.mark.parametrize(
    ("unfreeze", "epochs", "batches_seen"),
    [("always", 6, 50), ("always", 2, 20), ("7 steps", 6, 50)],
)
def test_a_part_all_of_whose_gradients_are_0_is_named_once(unfreeze, epochs, batches_seen, caplog):
    [line] = lines_on_zero_gradients(Dead(0), caplog, unfreeze, max_epochs=epochs)
    assert line.startswith(f"old: every gradient has been 0 in {batches_seen} batches, ")


def test_it_is_named_once_in_all_phases_together(caplog):
    assert len(lines_on_zero_gradients(Dead(0), caplog, other="55 steps", max_epochs=12)) == 1


@pytest.mark.parametrize(("module", "steps"), [(Dead(1), 60), (Dead(0), 9), (DroppedOut(), 60), (Tower(4), 60)])
def test_gradients_of_0_in_some_steps_or_of_some_weights_are_no_news(module, steps, caplog):
    if isinstance(module, Tower):
        module.first[0].bias.data[:3] = -1e3  # units of a layer that are dead
    assert not lines_on_zero_gradients(module, caplog, max_epochs=None, max_steps=steps)


def test_a_last_layer_that_starts_at_0_is_no_news(caplog):
    def start_at_0(run, module):
        nn.init.zeros_(module.network.parts["head"].linear.weight)

    callbacks = [LambdaCallback(on_train_start=start_at_0)]
    assert not lines_on_zero_gradients(nn.Linear(4, 4), caplog, max_epochs=2, callbacks=callbacks)
