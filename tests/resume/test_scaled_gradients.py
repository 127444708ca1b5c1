"""Precision 16-mixed, as far as a CPU shows it: its scaler skips steps before, at and after unfreezings."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor

from hybrid_lightning import ExactResume
from tests.tiny import batches, hybrid, trainer

STEPS = 24
SCALER = {"init_scale": 2.0**40, "growth_interval": 3, "growth_factor": 2.0**20, "backoff_factor": 2.0**-7}


class Scales(pl.Callback):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.found.append(trainer.precision_plugin.scaler.get_scale())


def fitted(*callbacks: pl.Callback, accumulate: int, checkpoint: Path | None = None) -> dict[str, Tensor]:
    torch.manual_seed(5)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **SCALER))
    model = hybrid({"start": "6 steps", "every": "5 steps"})
    options: dict[str, Any] = {"enable_checkpointing": bool(callbacks), "gradient_clip_val": 0.5}
    options |= {"accumulate_grad_batches": accumulate, "max_steps": STEPS, "max_epochs": -1}
    run = trainer(plugins=precision, callbacks=[*callbacks, ExactResume()], **options)
    run.fit(model, batches(), ckpt_path=checkpoint)
    return model.state_dict()


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_whose_steps_overflow_steps_as_torch_does_and_goes_on_exactly(
    accumulate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = Scales()
    save = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1)
    whole = fitted(scales, save, accumulate=accumulate)
    skipped = sum(after < before for before, after in zip(scales.found, scales.found[1:], strict=False))
    assert 8 < skipped < STEPS
    for path in sorted(tmp_path.glob("*.ckpt")):
        assert_equal(whole, fitted(accumulate=accumulate, checkpoint=path))
    monkeypatch.setattr("hybrid_lightning.tasks.network_module.step_what_trains", lambda _: None)
    assert_equal(whole, fitted(accumulate=accumulate))
