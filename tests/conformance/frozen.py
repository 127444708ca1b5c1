"""Checks of what a frozen part is, and of the moment at which it is unfrozen."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from tests.conformance.model import WHOLE, Module, Violation, adamw, fit, largest_difference, loader, sgd, trainer
from tests.conformance.tools import Tool

START = WHOLE["backbone"]


class Snapshots(pl.Callback):
    """The backbone's parameters and buffers at the end of each epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.backbone.state_dict()))


def frozen(tool: Tool, folder: Path) -> str:
    """Parameters and buffers of a frozen part are bit-equal, whatever the optimizer; afterwards all of it trains."""
    for name, optimizer in (("sgd", sgd), ("adamw", adamw)):
        module = Module(tool, WHOLE, batch_norm=True, dropout=0.5, optimizer=optimizer, weight_decay=0.1)
        before = copy.deepcopy(module.backbone.state_dict())
        snapshots = Snapshots()
        options = {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5, "val_check_interval": 2}
        fit(trainer(tool, WHOLE, folder / name, snapshots, **options), module, loader(), loader())
        worst, moved = largest_difference(before, snapshots.states[START - 1])
        if moved:
            raise Violation(f"{worst} moved by {moved:.2g}")
        still = [n for n, v in module.backbone.state_dict().items() if "weight" in n and torch.equal(v, before[n])]
        if any(".0." in n for n in still):
            raise Violation(f"{still[0]} never trains")
    return "moved by 0"


class Features(pl.Callback):
    """How far the frozen backbone's features in training are from those in evaluation, at most."""

    largest = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            self.expected = copy.deepcopy(pl_module.backbone).eval()(batch[0])

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        if trainer.current_epoch < START:
            self.largest = max(self.largest, (pl_module.features - self.expected).abs().max().item())


def steady(tool: Tool, folder: Path, **layers: Any) -> str:
    """A frozen part computes in training what it computes in evaluation."""
    features = Features()
    fit(trainer(tool, WHOLE, folder, features), Module(tool, WHOLE, **layers))
    if features.largest:
        raise Violation(f"features off by {features.largest:.2g}")
    return "features off by 0"


no_dropout = partial(steady, dropout=0.5)
own_statistics = partial(steady, batch_norm=True)


class Modes(pl.Callback):
    """How many modules of the backbone are in train mode, at the last batch."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        modes = [module.training for module in pl_module.backbone.modules()]
        self.training, self.total = sum(modes), len(modes)


def trains_from_eval(tool: Tool, folder: Path) -> str:
    """A part that arrives in eval mode, as from ``from_pretrained``, is in train mode once it is unfrozen."""
    module = Module(tool, WHOLE, dropout=0.5)
    module.backbone.eval()
    modes = Modes()
    fit(trainer(tool, WHOLE, folder, modes), module)
    found = f"{modes.training} of {modes.total} modules in train mode"
    if modes.training < modes.total:
        raise Violation(found)
    return found


class FirstUpdate(pl.Callback):
    """The first update after the unfreezing, as a multiple of rate × gradient."""

    ratio: float | None = None

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.weight = pl_module.backbone.first[0].weight
        if trainer.current_epoch == START and self.ratio is None and self.weight.grad is not None:
            self.before = self.weight.detach().clone()
            groups = [group for group in optimizer.param_groups if any(p is self.weight for p in group["params"])]
            self.step = groups[0]["lr"] * self.weight.grad

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        if trainer.current_epoch == START and self.ratio is None:
            self.ratio = ((self.before - self.weight).norm() / self.step.norm()).item()


def momentum(tool: Tool, folder: Path) -> str:
    """The first update of an unfrozen part comes from that step's gradient alone (SGD with momentum 0.9)."""
    update = FirstUpdate()
    fit(trainer(tool, WHOLE, folder, update), Module(tool, WHOLE, optimizer=sgd))
    found = f"first update × {update.ratio:.2f}"
    if update.ratio is None or abs(update.ratio - 1) > 1e-3:
        raise Violation(found)
    return found
