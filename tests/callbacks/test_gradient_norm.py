import traceback
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from hybrid_lightning import GradientNormMonitor, GradualUnfreezing
from hybrid_lightning.callbacks import gradient_norm
from hybrid_lightning.gradients import gradient_norms
from hybrid_lightning.tasks import base
from tests.callbacks.tiny import Foreign, batches, hybrid, trainer


class ByHand(pl.Callback):
    """Norms from autograd's gradients, one parameter at a time, in float64."""

    def __init__(self) -> None:
        self.before: list[dict[str, float]] = []
        self.after: list[dict[str, float]] = []

    @staticmethod
    def measure(groups: list[dict[str, Any]]) -> dict[str, float]:
        squares: dict[str, float] = {}
        for group in groups:
            for p in group["params"]:
                square = 0.0 if p.grad is None else p.grad.double().pow(2).sum().item()
                squares[group["part"]] = squares.get(group["part"], 0.0) + square
        return {**{part: s**0.5 for part, s in squares.items()}, "total": sum(squares.values()) ** 0.5}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.before.append(self.measure(optimizer.param_groups))

    def on_before_zero_grad(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        if len(self.before) > len(self.after):
            self.after.append(self.measure(optimizer.param_groups))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.after.append(self.measure(trainer.optimizers[0].param_groups))


def logged(model: pl.LightningModule, folder: Any, *callbacks: pl.Callback, **options: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    class Rows(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if any(key.startswith("grad_norm") for key in metrics):
                rows.append({**metrics, "step": step})

    runner = trainer(callbacks=list(callbacks), logger=Rows(folder), log_every_n_steps=1, **options)
    runner.fit(model, batches())
    return rows


MODELS = {
    "task": lambda: (hybrid("6 steps", dropout=0.0), []),
    "foreign": lambda: (Foreign(), [GradualUnfreezing({"backbone": "6 steps"}), GradientNormMonitor()]),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("algorithm", ["norm", "value", None])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_norms_equal_an_independent_computation(kind: str, algorithm: Any, accumulate: int, tmp_path: Any) -> None:
    model, callbacks = MODELS[kind]()
    by_hand = ByHand()
    clip = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm} if algorithm else {}
    rows = logged(model, tmp_path, *callbacks, by_hand, accumulate_grad_batches=accumulate, **clip)
    assert len(rows) == len(by_hand.before) == len(by_hand.after)
    for index, (row, before, after) in enumerate(zip(rows, by_hand.before, by_hand.after, strict=True)):
        assert row["step"] == index
        assert {k.removeprefix("grad_norm/") for k in row if k.startswith("grad_norm/")} == before.keys()
        for part, norm in before.items():
            assert row[f"grad_norm/{part}"] == pytest.approx(norm, rel=1e-5, abs=1e-9)
            assert row[f"grad_norm_clipped/{part}"] == pytest.approx(after[part], rel=1e-5, abs=1e-9)
        assert row["clip_coef"] == pytest.approx(after["total"] / before["total"], rel=1e-5)
    assert rows[0][f"grad_norm/{'old' if kind == 'task' else 'backbone'}"] == 0
    assert rows[-1][f"grad_norm/{'old' if kind == 'task' else 'backbone'}"] > 0


def test_clipping_gives_the_weights_that_the_trainers_own_clipping_gives(monkeypatch: Any) -> None:
    sgd = {"class_path": "SGD", "init_args": {"momentum": 0.9, "fused": False}}
    ours = hybrid("always", dropout=0.0, optimizer=sgd)
    trainer(gradient_clip_val=0.05).fit(ours, batches())
    monkeypatch.setattr(
        base.HybridTask, "configure_gradient_clipping", pl.LightningModule.configure_gradient_clipping, raising=True
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
                    if any("/hybrid_lightning/" in frame.filename for frame in traceback.extract_stack()):
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
        return gradient_norms(parameters)

    for module in (base, gradient_norm):
        monkeypatch.setattr(module, "gradient_norms", counted)
    runner = trainer(logger=CSVLogger(tmp_path), log_every_n_steps=10, gradient_clip_val=1.0, max_epochs=1)
    runner.fit(hybrid("6 steps", dropout=0.0), batches(samples=160))
    assert len(calls) == runner.global_step == 20
