import copy
import csv
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hybrid_lightning import ConfigError, GradientNormMonitor, HybridClassifier, NonFiniteGradients
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from tests import small
from tests.gradients.test_gradient_norm_monitor import scaled
from tests.resume.resuming import Dropping, Run, first_difference
from tests.tiny import Foreign, batches, hybrid, trainer

QUIET = ("ignore:Be aware that when using `ckpt_path`", "ignore:.*in eval mode at the start of training")


def poisoned(*rows: int, ids: bool = True) -> DataLoader[Any]:
    """Five batches of eight samples, one of whose inputs is nan in each of these rows."""
    entries = dict(batches().dataset.entries)  # type: ignore[attr-defined]
    entries["new"] = entries["new"].clone()
    entries["old"] = entries["old"].clone()
    for row in rows:
        entries["old"][row, 2] = float("nan")
    if ids:
        entries["id"] = torch.arange(len(entries["old"])) + 1000
    return DataLoader(DictDataset(entries), 8, collate_fn=as_batch)


class States(pl.Callback):
    """Everything that a step may change, after each step."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def on_train_batch_end(self, runner: pl.Trainer, pl_module: Any, *_: Any) -> None:
        state = {"model": pl_module.state_dict(), "optimizer": runner.optimizers[0].state_dict()["state"]}
        self.states.append(copy.deepcopy(state))


def column(logger: CSVLogger, key: str) -> list[float]:
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row[key]]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_error_names_parts_step_samples_and_precision(accumulate: int) -> None:
    model = hybrid("always")
    with pytest.raises(ConfigError) as error:
        trainer(accumulate_grad_batches=accumulate).fit(model, poisoned(19, 21))
    message = str(error.value)
    step = 2 if accumulate == 1 else 1
    last = 2 if accumulate == 1 else 3
    assert f"step {step} (epoch 0, batch {last}), precision 32-true" in message
    assert "not finite in 'old', 'new', 'fusion', 'head'" in message
    assert "1016, 1017" in message
    assert "Input 'old' is not finite in 2 of 8 samples: id 1019, id 1021." in message
    assert "NonFiniteGradients with policy 'skip'" in message
    assert len(message.splitlines()) <= 12


class Huge(pl.Callback):
    """Gradients that are finite, and the sum of whose squares is not in float32."""

    def on_after_backward(self, runner: pl.Trainer, pl_module: Any) -> None:
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_().flatten()[0] = 1.5e19


def test_finite_gradients_are_no_error_although_their_norm_overflows() -> None:
    model = hybrid("always")
    trainer(max_epochs=1, callbacks=[Huge()]).fit(model, batches())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_without_ids_samples_are_named_by_position() -> None:
    with pytest.raises(ConfigError, match="1 of 8 samples: position 3"):
        trainer().fit(hybrid("always"), poisoned(19, ids=False))


def test_the_error_comes_before_a_checkpoint_of_spoilt_weights(folder: Path) -> None:
    checkpoint = ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    with pytest.raises(ConfigError, match="step 2 "):
        trainer(callbacks=[checkpoint], enable_checkpointing=True).fit(hybrid("always"), poisoned(19))
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]


def test_the_last_step_of_a_fit_counts_too() -> None:
    with pytest.raises(ConfigError, match=r"step 4 \(epoch 0, batch 4\)"):
        trainer(max_epochs=1).fit(hybrid("always"), poisoned(39))


def test_the_error_comes_before_a_validation() -> None:
    validated: list[int] = []

    class Validated(pl.Callback):
        def on_validation_batch_start(self, runner: pl.Trainer, *_: Any) -> None:
            validated.append(runner.global_step)

    with pytest.raises(ConfigError, match="step 4 "):
        trainer(callbacks=[Validated()], num_sanity_val_steps=0).fit(hybrid("always"), poisoned(39), batches())
    assert not validated


@pytest.mark.parametrize(("kind", "algorithm"), [("task", "norm"), ("task", "value"), ("foreign", "norm")])
def test_a_skipped_step_changes_nothing(kind: str, algorithm: str, tmp_path: Path) -> None:
    """Weights, optimizer state and running statistics, although the forward pass has seen the nan."""
    states, guard = States(), NonFiniteGradients("skip")
    callbacks = [guard, states, *([GradientNormMonitor()] if kind == "foreign" else [])]
    logger = CSVLogger(tmp_path)
    options = {"log_every_n_steps": 1, "gradient_clip_val": 1.0, "gradient_clip_algorithm": algorithm}
    runner = trainer(callbacks=callbacks, max_epochs=2, logger=logger, **options)
    with pytest.warns(UserWarning, match=r"step [27] .*\n.*\n.*id 1019.*\nThe step was not made"):
        runner.fit(hybrid("always") if kind == "task" else Foreign(), poisoned(19))
    assert guard.skipped == 2
    for step in range(1, 10):
        assert equal(states.states[step], states.states[step - 1]) is (step % 5 == 2)
    assert all(value.isfinite().all() for value in states.states[-1]["model"].values())
    assert column(logger, "skipped_steps/non_finite") == [0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
    assert len(column(logger, "grad_norm/total")) == 8


def test_skipping_beside_torchs_clipping_by_value_is_refused() -> None:
    options = {"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}
    with pytest.raises(ConfigError, match=r"GradientClipping\(\{part: \{'value': 1\.0\}\}\)"):
        trainer(callbacks=[NonFiniteGradients("skip")], **options).fit(Foreign(), batches())


def test_too_many_in_a_row_are_an_error() -> None:
    with (
        pytest.warns(UserWarning, match="The step was not made"),
        pytest.raises(ConfigError, match="without finite gradients in a row: 3"),
    ):
        trainer(callbacks=[NonFiniteGradients("skip", max_in_a_row=2)]).fit(hybrid("always"), poisoned(1, 9, 17, 25))


def test_ignore_goes_on() -> None:
    model = hybrid("always")
    trainer(callbacks=[NonFiniteGradients("ignore")], max_epochs=1).fit(model, poisoned(19))
    assert not all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_steps_that_a_gradient_scaler_skips_are_counted(policy: str, tmp_path: Path) -> None:
    guard, logger = NonFiniteGradients(policy), CSVLogger(tmp_path)
    plugin = scaled(2.0**22)
    scales: list[float] = []

    class Scales(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            scales.append(plugin.scaler.get_scale())

    runner = trainer(callbacks=[guard, Scales()], plugins=plugin, logger=logger, log_every_n_steps=1)
    runner.fit(hybrid("6 steps", dropout=0.0), batches())
    halvings = [after < before for before, after in zip([2.0**22, *scales], scales, strict=False)]
    assert guard.skipped == sum(halvings) > 1
    assert column(logger, "skipped_steps/non_finite") == [sum(halvings[: step + 1]) for step in range(20)]


def test_a_gradient_scaler_that_only_ever_skips_is_an_error() -> None:
    guard = NonFiniteGradients(max_in_a_row=4)
    with pytest.raises(ConfigError, match="in a row: 5"):
        trainer(callbacks=[guard], plugins=scaled(256.0)).fit(hybrid("always"), poisoned(*range(40)))


def test_counts_continue_after_a_restart(folder: Path) -> None:
    runner, guard = trainer(callbacks=[NonFiniteGradients("skip")], max_epochs=1), NonFiniteGradients("skip")
    with pytest.warns(UserWarning, match="The step was not made"):
        runner.fit(hybrid("always"), poisoned(19))
    runner.save_checkpoint("one.ckpt")
    again = trainer(callbacks=[guard], max_epochs=2)
    with pytest.warns(UserWarning, match="The step was not made"):
        again.fit(hybrid("always"), poisoned(19), ckpt_path="one.ckpt", weights_only=True)
    assert guard.skipped == 2


@pytest.mark.filterwarnings(*QUIET, "ignore:gradients. step")
def test_a_step_is_skipped_the_same_if_its_window_was_interrupted(tmp_path: Path) -> None:
    def run(path: Path | None = None, folder: Path | None = None) -> Run:
        skips = [NonFiniteGradients("skip")]
        return Run(Dropping, lambda: poisoned(19), path, folder, callbacks=skips, accumulate_grad_batches=2)

    whole = run(folder=tmp_path)
    paths = sorted(tmp_path.glob("batch-*.ckpt"))
    assert len(paths) == 15
    for path in paths:
        assert first_difference(whole.state(), run(path).state(), path.name) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"policy": "skipp"}, "Did you mean 'skip'"), ({"max_in_a_row": 0}, "max_in_a_row: 0 is not a number at least 1")],
)
def test_impossible_settings_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NonFiniteGradients(**arguments)


def test_the_default_does_not_change_a_fit() -> None:
    def fit(*callbacks: pl.Callback) -> Any:
        model = hybrid("6 steps", dropout=0.0)
        trainer(callbacks=list(callbacks)).fit(model, batches())
        return model.state_dict()

    assert equal(fit(), fit(NonFiniteGradients("ignore")))
    assert equal(fit(NonFiniteGradients("skip")), fit(NonFiniteGradients("ignore")))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x))


def with_norms(unfreeze: str) -> HybridClassifier:
    parts = {"a": {"module": Normed(), "unfreeze": unfreeze}, "b": {"module": Normed()}}
    return HybridClassifier(num_classes=2, parts=parts)


def spoilt_batches(spoilt: int) -> DataLoader[Any]:
    torch.manual_seed(0)
    samples = []
    for batch in range(8):
        for place in range(4):
            a = torch.full((4,), math.nan) if batch == spoilt else torch.randn(4)
            samples.append({"a": a, "b": torch.randn(4), "target": torch.tensor(place % 2)})
    return DataLoader(samples, batch_size=4)


@pytest.mark.filterwarnings("ignore:gradients")
def test_a_skip_at_the_step_of_an_unfreezing_keeps_the_statistics() -> None:
    model = with_norms("3 steps")
    small.trainer(callbacks=[NonFiniteGradients("skip")]).fit(model, spoilt_batches(3))
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.filterwarnings("ignore:gradients", *QUIET)
def test_a_skip_after_a_restart_within_a_window_restores_what_one_without_restart_does(tmp_path) -> None:
    class Saved(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            if batch_idx == 4:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    whole, resumed = with_norms("never"), with_norms("never")
    resumed.load_state_dict(whole.state_dict())
    first = [NonFiniteGradients("skip"), Saved()]
    small.trainer(callbacks=first, accumulate_grad_batches=2).fit(whole, spoilt_batches(5))
    again = small.trainer(callbacks=[NonFiniteGradients("skip")], accumulate_grad_batches=2)
    again.fit(resumed, spoilt_batches(5), ckpt_path=tmp_path / "within.ckpt", weights_only=True)
    assert first[0].skipped == 1
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
