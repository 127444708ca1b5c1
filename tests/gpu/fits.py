"""Checks of whole fits on one device: what is frozen, norms, resume, precisions, synchronization, compile, cache."""

import math
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from hybrid_lightning import FrozenFeatureCache
from hybrid_lightning.trainer import is_log_step
from tests.gpu.model import BATCHES, EPOCHS, STAGES, UNFROZEN_AT, Skipped, fit, largest_distance, task


def part_state(model: Any, part: str) -> dict[str, Tensor]:
    """Parameters and buffers of a part."""
    state = model.built().parts[part].state_dict()
    return {name: value.detach().clone() for name, value in state.items()}


class Witness(pl.Callback):
    """Measures each step by itself: what a frozen stage holds, norms of parts in float64, and losses."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: dict[str, float] = {}
        self.closed = 0
        self.worst_norm = 0.0
        self.compared = 0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.compare(trainer)
        self.before = part_state(pl_module, "image")

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        squares: dict[str, float] = {}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    square = float(parameter.grad.double().square().sum())
                    squares[group["part"]] = squares.get(group["part"], 0.0) + square
        self.norms = {part: square**0.5 for part, square in squares.items()}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *batch: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        # asked at the end of the step, because stages unfreeze after this callback has seen its start
        trains = {group["stage"] for group in trainer.optimizers[0].param_groups if is_open(group)}
        closed = tuple(name for index, name in enumerate(STAGES) if index not in trains)
        now = part_state(pl_module, "image")
        moved = [name for name in now if name.startswith(closed) and not torch.equal(self.before[name], now[name])]
        assert not moved, f"step {trainer.global_step}: frozen, but changed: {moved}"
        self.closed += len(closed)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.compare(trainer)

    def compare(self, trainer: pl.Trainer) -> None:
        """Compares the norms of the last step with those that were logged at its end."""
        # a step that a scaler skips logs no norms
        is_finite = all(math.isfinite(norm) for norm in self.norms.values())
        for part, norm in self.norms.items() if is_finite else ():
            logged = float(trainer.callback_metrics[f"grad_norm/{part}"])
            self.worst_norm = max(self.worst_norm, abs(logged - norm) / max(norm, 1e-12))
            self.compared += 1
        self.norms = {}


def is_open(group: dict[str, Any]) -> bool:
    return group["part"] == "image" and group["unfrozen_at"] is not None


def conformance(device: str) -> str:
    """What is frozen is equal in every bit, stages unfreeze at their steps, norms are those of the gradients."""
    model, witness = task(), Witness()
    runner = fit(device, model, callbacks=[witness])
    found = {group["unfrozen_at"] for group in runner.optimizers[0].param_groups}
    assert found == UNFROZEN_AT, f"unfrozen at {found}, planned {UNFROZEN_AT}"
    assert witness.closed == 21, f"{witness.closed} stages were seen to be frozen in all steps together"  # 3 + 7 + 11
    assert witness.compared > BATCHES * EPOCHS, f"{witness.compared} norms were logged"
    assert witness.worst_norm < 1e-5, f"a logged norm is off by {witness.worst_norm:.1e}"
    return f"{len(witness.losses)} steps, {witness.compared} norms off by at most {witness.worst_norm:.0e}"


class SaveAt(pl.Callback):
    """Saves after some steps."""

    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.folder, self.steps = folder, steps

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def state_of(runner: pl.Trainer, model: Any) -> dict[str, Any]:
    """All that a run leaves: weights, buffers, the optimizer's state, validation metrics."""
    metrics = {name: value for name, value in runner.callback_metrics.items() if name.startswith("val/")}
    return {"model": model.state_dict(), "optimizer": runner.optimizers[0].state_dict()["state"], "metrics": metrics}


def exact_resume(device: str) -> str:
    """From within an epoch, before and after an unfreezing, with dropout, shuffling and batch statistics."""
    steps = (4, 9)
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), task()
        try:
            wanted = state_of(fit(device, model, callbacks=[SaveAt(folder, steps)], deterministic=True), model)
            for step in steps:
                again = task()
                found = state_of(fit(device, again, folder / f"{step}.ckpt", deterministic=True), again)
                distance = largest_distance(wanted, found)
                assert distance == 0, f"from step {step}: off by {distance:.1e}"
        finally:
            torch.use_deterministic_algorithms(False)
    return f"{len(steps)} of {len(steps)} bit-equal"


def half_precision(device: str) -> str:
    """16-mixed with a scale that is too large at first: steps are skipped, the others have unscaled norms."""
    if device != "cuda":
        raise Skipped("Lightning has 16-mixed on CUDA alone")
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**30, growth_interval=2000)
    witness, model = Witness(), task("50 steps", lr=0.001)
    runner = fit(
        device, model, callbacks=[witness], max_epochs=12, plugins=[MixedPrecision("16-mixed", device, scaler)]
    )
    assert not any(group.get("fused") for group in runner.optimizers[0].param_groups), "a fused optimizer unscales late"
    assert scaler.get_scale() < 2.0**30, "no step was skipped"
    assert all(value.isfinite().all() for value in model.state_dict().values()), "weights are not finite"
    assert witness.worst_norm < 1e-3, f"a logged norm is off by {witness.worst_norm:.1e}"
    return f"scale 2^30 → {scaler.get_scale():.0f}, {witness.compared} norms off by at most {witness.worst_norm:.0e}"


def bfloat16(device: str) -> str:
    """bf16-mixed: what is frozen stands still, norms are those of the gradients, and it starts as in 32 bits."""
    witness, exact = Witness(), Witness()
    fit(device, task(), callbacks=[witness], precision="bf16-mixed")
    fit(device, task(), callbacks=[exact])
    assert witness.worst_norm < 1e-3, f"a logged norm is off by {witness.worst_norm:.1e}"
    distance = abs(witness.losses[0] - exact.losses[0]) / exact.losses[0]
    assert distance < 0.02, f"the first loss is off by {distance:.1%}"
    return f"first loss off by {distance:.1e}, norms by at most {witness.worst_norm:.0e}"


class Unsynchronized(pl.Callback):
    """Lets CUDA raise an error at each synchronization within the steps that are not logged."""

    def __init__(self, model: Any) -> None:
        self.steps = 0
        # the module's hook comes after those of all callbacks, so that their work is watched, too
        model.on_train_batch_end = self.allow

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step % BATCHES and not is_log_step(trainer):  # ranks and epochs are looked at between epochs
            torch.cuda.set_sync_debug_mode("error")
            self.steps += 1

    def allow(self, *batch: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


def no_synchronization(device: str) -> str:
    """Between log steps nothing waits for the device: no `.item()`, no copy to the CPU, clipping included."""
    if device != "cuda":
        raise Skipped("only CUDA tells synchronizations")
    model = task("never")
    watch = Unsynchronized(model)
    try:
        fit(device, model, callbacks=[watch], log_every_n_steps=5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.steps > BATCHES, f"{watch.steps} steps were watched"
    return f"{watch.steps} steps"


def fused_optimizer(device: str) -> str:
    """In 32 bits the optimizer is the fused one, after a resume too."""
    with tempfile.TemporaryDirectory() as name:
        runner = fit(device, task(), callbacks=[SaveAt(Path(name), (4,))])
        again = fit(device, task(), Path(name) / "4.ckpt")
    for one in (runner, again):
        assert all(group["fused"] for group in one.optimizers[0].param_groups), "not fused"
    return type(runner.optimizers[0]).__name__


def compiled_part(device: str) -> str:
    """A compiled part learns as one that is not, through its unfreezings."""
    backend = "inductor" if device == "cuda" else "aot_eager"  # inductor takes a minute of C++ on a CPU
    plain, compiled = Witness(), Witness()
    still = {"args": {"dropout": 0.0}}  # a compiled dropout draws other numbers
    fit(device, task(tower=still), callbacks=[plain])
    fit(device, task(tower={**still, "compile": {"backend": backend}}), callbacks=[compiled])
    distance = max(abs(one - other) for one, other in zip(plain.losses, compiled.losses, strict=True))
    assert distance < 1e-2, f"a loss is off by {distance:.1e}"
    return f"{backend}: losses off by at most {distance:.0e}"


def frozen_cache(device: str) -> str:
    """With features of a frozen tower from the cache, the losses are those without it."""
    live, served = Witness(), Witness()
    fit(device, task("never"), callbacks=[live])
    runner = fit(device, task("never", cache=True), callbacks=[served])
    caches = [callback for callback in runner.callbacks if isinstance(callback, FrozenFeatureCache)]  # type: ignore[attr-defined]
    assert caches, "no cache took part"
    assert caches[0].serving, "nothing was served"
    distance = max(abs(one - other) for one, other in zip(live.losses, served.losses, strict=True))
    assert distance < 1e-3, f"a loss is off by {distance:.1e}"
    return f"{', '.join(caches[0].serving)} served, losses off by at most {distance:.0e}"
