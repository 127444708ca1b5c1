import math
import traceback
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from hybrid_lightning import ConfigError, GradientNormMonitor, GradualUnfreezing, HybridTask, gradients
from hybrid_lightning.callbacks import gradient_norm
from tests.callbacks.tiny import Foreign, batches, hybrid, trainer


class ByHand(pl.Callback):
    """Norms from autograd's gradients and from weights, one parameter at a time, in float64; per part and stage."""

    def __init__(self) -> None:
        self.before: list[dict[str, float]] = []
        self.after: list[dict[str, float]] = []
        self.ratios: list[dict[str, float]] = []

    @staticmethod
    def combined(groups: list[dict[str, Any]], values: Any) -> dict[str, float]:
        squares: dict[str, float] = {}
        for group in groups:
            stage = group["name"].split("/")[0]
            for p in group["params"]:
                for row in {group["part"], stage, "total"}:
                    squares[row] = squares.get(row, 0.0) + values(p).double().pow(2).sum().item()
        return {row: square**0.5 for row, square in squares.items()}

    def gradients(self, groups: list[dict[str, Any]]) -> dict[str, float]:
        return self.combined(groups, lambda p: torch.zeros(()) if p.grad is None else p.grad)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.before.append(self.gradients(optimizer.param_groups))
        self.weights = {p: p.detach().clone() for g in optimizer.param_groups for p in g["params"]}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        if len(self.before) > len(self.after):
            self.after.append(self.gradients(groups))
            own = [{**g, "params": [p for p in g["params"] if p.grad is not None]} for g in groups]
            moved = self.combined(own, lambda p: p.detach() - self.weights[p])
            old = self.combined(own, lambda p: self.weights[p])
            self.ratios.append({row: moved[row] / old[row] for row in moved})


def logged(model: pl.LightningModule, folder: Any, *callbacks: pl.Callback, **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    class Rows(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if any(key.startswith("grad_norm") for key in metrics):
                rows.append({**metrics, "step": step})

    runner = trainer(**{"callbacks": list(callbacks), "logger": Rows(folder), "log_every_n_steps": 1, **options})
    runner.fit(model, batches())
    return rows


MODELS = {
    "task": lambda: (hybrid("6 steps", dropout=0.0), []),
    "foreign": lambda: (Foreign(), [GradualUnfreezing({"backbone": "6 steps"}), GradientNormMonitor()]),
}


def compare(rows: list[dict[str, Any]], by_hand: ByHand) -> None:
    assert len(rows) == len(by_hand.before) == len(by_hand.after)
    for index, row in enumerate(rows):
        before, after = by_hand.before[index], by_hand.after[index]
        assert row["step"] == index
        keys = {"grad_norm": before, "grad_norm_clipped": after, "update_ratio": by_hand.ratios[index]}
        for key, wanted in keys.items():
            assert {k.removeprefix(f"{key}/") for k in row if k.startswith(f"{key}/")} == wanted.keys()
            for part, norm in wanted.items():
                # of a small update float32 keeps few digits of w - w₀: those of w are lost
                precise = {"rel": 1e-6, "abs": 1e-9} if key != "update_ratio" else {"rel": 1e-6, "abs": 1e-7}
                assert row[f"{key}/{part}"] == pytest.approx(norm, **precise), (key, part)
        assert row["clip_coef"] == pytest.approx(after["total"] / before["total"], rel=1e-6)
        for part, norm in before.items():
            assert row[f"clip_rate/{part}"] == (after[part] < norm * (1 - 1e-6))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("algorithm", ["norm", "value", None])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_equal_an_independent_computation(kind: str, algorithm: Any, accumulate: int, tmp_path: Any) -> None:
    model, callbacks = MODELS[kind]()
    by_hand = ByHand()
    clip = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm} if algorithm else {}
    monitor = GradientNormMonitor(stages=True)
    rows = logged(model, tmp_path, *callbacks, by_hand, monitor, accumulate_grad_batches=accumulate, **clip)
    compare(rows, by_hand)
    assert rows[0][f"grad_norm/{'old' if kind == 'task' else 'backbone'}"] == 0
    assert rows[-1][f"grad_norm/{'old' if kind == 'task' else 'backbone'}"] > 0


def test_clip_rate_counts_the_steps_since_the_last_log(tmp_path: Any) -> None:
    by_hand = ByHand()
    options = {"gradient_clip_val": 1.5, "log_every_n_steps": 5}
    rows = logged(hybrid("8 steps", dropout=0.0), tmp_path, by_hand, **options)
    assert [row["step"] for row in rows] == [4, 9, 14, 19]
    for row in rows:
        steps = range(row["step"] - 4, row["step"] + 1)
        for part in ("old", "new", "head", "total"):
            clipped = [by_hand.after[s][part] < by_hand.before[s][part] * (1 - 1e-6) for s in steps]
            assert row[f"clip_rate/{part}"] == pytest.approx(sum(clipped) / 5)
    assert 0 < sum(row["clip_rate/total"] for row in rows) < 4


def scaled(initial: float) -> Any:
    """Precision 16-mixed on a CPU, which Lightning leaves to its plugin."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=initial, growth_interval=1000))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_under_a_gradient_scaler_are_those_of_unscaled_gradients(
    kind: str, accumulate: int, tmp_path: Any
) -> None:
    model, callbacks = MODELS[kind]()
    by_hand = ByHand()
    monitor = GradientNormMonitor(stages=True)
    options = {"gradient_clip_val": 0.05, "plugins": scaled(256.0), "accumulate_grad_batches": accumulate}
    compare(logged(model, tmp_path, *callbacks, by_hand, monitor, **options), by_hand)


@pytest.mark.parametrize("kind", MODELS)
def test_steps_that_overflow_have_no_norms_in_the_log(kind: str, tmp_path: Any) -> None:
    model, callbacks = MODELS[kind]()
    by_hand = ByHand()
    rows = logged(model, tmp_path, *callbacks, by_hand, gradient_clip_val=0.05, plugins=scaled(2.0**22))
    finite = [step for step, norms in enumerate(by_hand.before) if math.isfinite(norms["total"])]
    assert 0 < len(finite) < 20
    assert [row["step"] for row in rows] == finite
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_a_fused_optimizer_under_a_gradient_scaler_is_refused(tmp_path: Any) -> None:
    model = Foreign(partial(torch.optim.AdamW, fused=True))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="fused=False"):
        logged(model, tmp_path, GradientNormMonitor(), plugins=scaled(256.0))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_a_fused_optimizer_clips_under_bf16(algorithm: str, tmp_path: Any) -> None:
    model, by_hand = hybrid("always", dropout=0.0), ByHand()
    clip = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm}
    runner = trainer(callbacks=[by_hand], precision="bf16-mixed", **clip)
    runner.fit(model, batches())
    assert runner.optimizers[0].defaults["fused"]
    assert all(after["total"] < before["total"] for before, after in zip(by_hand.before, by_hand.after, strict=True))


def test_clipping_gives_the_weights_that_the_trainers_own_clipping_gives(monkeypatch: Any) -> None:
    sgd = {"class_path": "SGD", "init_args": {"momentum": 0.9, "fused": False}}
    ours = hybrid("always", dropout=0.0, optimizer=sgd)
    trainer(gradient_clip_val=0.05).fit(ours, batches())
    monkeypatch.setattr(
        HybridTask, "configure_gradient_clipping", pl.LightningModule.configure_gradient_clipping, raising=True
    )
    theirs = hybrid("always", dropout=0.0, optimizer=sgd)
    trainer(gradient_clip_val=0.05).fit(theirs, batches())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", MODELS)
def test_between_log_steps_nothing_waits_for_the_device(kind: str, tmp_path: Any, monkeypatch: Any) -> None:
    """On a GPU each of these calls would wait; only steps 9 and 19 may make them."""
    model, callbacks = MODELS[kind]()
    waits: list[int] = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, runner: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            self.step = runner.global_step
            for name in ("item", "cpu", "tolist", "numpy", "__float__", "__bool__", "__int__"):
                original = getattr(torch.Tensor, name)

                def waiting(tensor: torch.Tensor, *args: Any, _original: Any = original) -> Any:
                    frames = [frame for frame in traceback.extract_stack() if "/hybrid_lightning/" in frame.filename]
                    if frames and frames[-1].name != "read":  # of LaterOnHost: copied while the device went on
                        waits.append(self.step)
                    return _original(tensor, *args)

                monkeypatch.setattr(torch.Tensor, name, waiting)

        def on_train_batch_end(self, runner: pl.Trainer, *args: Any) -> None:
            monkeypatch.undo()

    watch = Watch()
    runner = trainer(
        callbacks=[watch, *callbacks],
        logger=CSVLogger(tmp_path),
        log_every_n_steps=10,
        gradient_clip_val=0.1,
        max_epochs=1,
    )
    runner.fit(model, batches(samples=160))
    assert set(waits) <= {9, 19}


def test_everything_of_a_step_stands_in_one_row(tmp_path: Any) -> None:
    rows = logged(hybrid("6 steps"), tmp_path)
    wanted = {"train/loss", "lr/head", "lr/old.first/no_decay", "trainable/old", "grad_norm/total", "clip_coef"}
    assert all(wanted <= row.keys() for row in rows)
    assert [row["trainable/old"] for row in rows] == [0.0] * 6 + [1.0] * 14
    assert rows[0]["lr/old.first"] == pytest.approx(0.001, rel=1e-12)


def test_a_task_that_measures_itself_is_not_measured_again(tmp_path: Any, monkeypatch: Any) -> None:
    calls: list[int] = []

    def counted(parameters: Any) -> torch.Tensor:
        calls.append(1)
        return original(parameters)

    original = gradients.gradient_norms
    for module in (gradients, gradient_norm):
        monkeypatch.setattr(module, "gradient_norms", counted)
    runner = trainer(logger=CSVLogger(tmp_path), log_every_n_steps=10, gradient_clip_val=1.0, max_epochs=1)
    runner.fit(hybrid("6 steps", dropout=0.0), batches(samples=160))
    assert len(calls) == runner.global_step == 20
