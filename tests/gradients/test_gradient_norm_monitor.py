import json
import math
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from hybrid_lightning import ConfigError, GradientNormMonitor, GradualUnfreezing, HybridTask
from hybrid_lightning.cli.metrics_table import RunLogger, read_rows
from hybrid_lightning.gradients import gradient_norm_monitor, norms
from tests.gradients.by_hand import ByHand, Rows, compare
from tests.processes import succeed_on
from tests.tiny import Foreign, batches, hybrid, trainer


def logged(model: pl.LightningModule, folder: Any, *callbacks: pl.Callback, **options: Any) -> list[dict[str, Any]]:
    rows = Rows(folder)
    runner = trainer(**{"callbacks": list(callbacks), "logger": rows, "log_every_n_steps": 1, **options})
    runner.fit(model, batches())
    return rows.rows


MODELS = {
    "task": lambda: (hybrid("6 steps", dropout=0.0), []),
    "foreign": lambda: (Foreign(), [GradualUnfreezing({"backbone": "6 steps"})]),
}


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
    options = {"gradient_clip_val": 0.05, "plugins": scaled(16.0), "accumulate_grad_batches": accumulate}
    compare(logged(model, tmp_path, *callbacks, by_hand, monitor, **options), by_hand)


@pytest.mark.parametrize("kind", MODELS)
def test_steps_that_overflow_have_no_norms_in_the_log(kind: str, tmp_path: Any) -> None:
    model, callbacks = MODELS[kind]()
    by_hand = ByHand()
    options = {"gradient_clip_val": 0.05, "plugins": scaled(2.0**22)}
    rows = logged(model, tmp_path, *callbacks, by_hand, GradientNormMonitor(), **options)
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
                    # of LaterOnHost: copied while the device went on; and a look on the CPU alone
                    if frames and frames[-1].name not in ("read", "_is_below"):
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
    logger = RunLogger(tmp_path, "name", "version_0")
    trainer(logger=logger, log_every_n_steps=1).fit(hybrid("6 steps"), batches())
    rows = read_rows(Path(logger.log_dir) / "metrics.csv")
    wanted = ["train/loss", "lr/head", "lr/old.first-no_decay", "trainable/old", "grad_norm/total", "clip_coef"]
    assert [int(row["step"]) for row in rows] == list(range(20))
    assert all(row[key] for row in rows for key in wanted)
    assert [float(row["trainable/old"]) for row in rows] == [0.0] * 6 + [1.0] * 14
    assert rows[0]["lr/old.first"] == "0.001"


def test_a_task_that_measures_itself_is_not_measured_again(tmp_path: Any, monkeypatch: Any) -> None:
    calls: list[int] = []

    def counted(parameters: Any) -> torch.Tensor:
        calls.append(1)
        return original(parameters)

    original = norms.gradient_norms
    for module in (norms, gradient_norm_monitor):
        monkeypatch.setattr(module, "gradient_norms", counted)
    runner = trainer(logger=CSVLogger(tmp_path), log_every_n_steps=10, gradient_clip_val=1.0, max_epochs=1)
    runner.fit(hybrid("6 steps", dropout=0.0), batches(samples=160))
    assert len(calls) == runner.global_step == 20


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_norms_on_two_ranks_equal_an_independent_computation(strategy: str, tmp_path: Path) -> None:
    """With accumulation, clipping and unfreezing, in a task and in a foreign module; both ranks log the same."""
    succeed_on(2, "-m", "tests.gradients.worker", strategy, str(tmp_path))
    for kind in MODELS:
        ranks = [json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in (0, 1)]
        for saved in ranks:
            by_hand = ByHand()
            by_hand.before, by_hand.after, by_hand.ratios = saved["before"], saved["after"], saved["ratios"]
            compare(saved["rows"], by_hand)
        assert ranks[0]["rows"] == ranks[1]["rows"]
        frozen = [row[f"grad_norm/{'old' if kind == 'task' else 'backbone'}"] == 0 for row in saved["rows"]]
        assert frozen == [True] * 2 + [False] * 7
        assert any(row["clip_rate/total"] == 1 for row in saved["rows"])
