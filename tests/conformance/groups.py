"""Checks of the optimizer's groups, and of torch's schedulers over an unfreezing."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, OneCycleLR

from tests.conformance.model import EPOCHS, STAGES, STEPS, WHOLE, Module, NotApplicable, Violation, fit, sgd, trainer
from tests.conformance.tools import Tool

TOTAL = EPOCHS * STEPS


class Groups(pl.Callback):
    """At each step: the groups' names and parameters, and the rate of the backbone as a share of the head's."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[str, ...]]] = []
        self.shares: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        groups = optimizer.param_groups
        self.seen.append([(g.get("name", ""), *(names[id(p)] for p in g["params"])) for g in groups])
        rates = {names[id(p)].split(".")[0]: group["lr"] for group in groups for p in group["params"]}
        if "backbone" in rates:
            self.shares[trainer.global_step] = rates["backbone"] / rates["head"]


def constant(tool: Tool, folder: Path) -> str:
    """Number, order, names and parameters of the groups never change."""
    groups = Groups()
    fit(trainer(tool, STAGES, folder, groups), Module(tool, STAGES))
    for step, now in enumerate(groups.seen):
        if now != groups.seen[0]:
            raise Violation(f"{len(groups.seen[0])} groups, {len(now)} from step {step} on")
    return f"{len(groups.seen[0])} groups"


def complete(tool: Tool, folder: Path) -> str:
    """Once all of the model trains, each parameter is in one group; two parts' fresh LayerNorms have equal values."""
    together = {**STAGES, "backbone.second": STAGES["backbone.third"]}
    groups = Groups()
    module = Module(tool, together)
    fit(trainer(tool, together, folder, groups), module)
    found = Counter(name for group in groups.seen[-1] for name in group[1:])
    names = [name for name, _ in module.named_parameters()]
    missing, doubled = [n for n in names if not found[n]], [n for n in names if found[n] > 1]
    if missing or doubled:
        raise Violation(f"{len(missing)} of {len(names)} parameters in no group, {len(doubled)} in two")
    return f"{len(names)} parameters"


def one_cycle(optimizer: Optimizer) -> OneCycleLR:
    rates = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, rates, total_steps=TOTAL, cycle_momentum=False)


def cyclic(optimizer: Optimizer) -> CyclicLR:
    rates = [group["lr"] for group in optimizer.param_groups]
    return CyclicLR(optimizer, [rate / 10 for rate in rates], rates, step_size_up=4, cycle_momentum=False)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda optimizer: LambdaLR(optimizer, lambda step: 1 - step / (2 * TOTAL)),
    "OneCycleLR": one_cycle,
    "CyclicLR": cyclic,
    "CosineAnnealingLR": lambda optimizer: CosineAnnealingLR(optimizer, 2 * TOTAL),
}


def scheduler(name: str, tool: Tool, folder: Path) -> str:
    """A scheduler given in ``configure_optimizers`` runs on, and the backbone's rate keeps its share of the head's."""
    groups = Groups()
    module = Module(tool, WHOLE, optimizer=sgd, scheduler=SCHEDULERS[name])
    fit(trainer(tool, WHOLE, folder, groups), module)
    shares = [share for step, share in groups.shares.items() if step >= WHOLE["backbone"] * STEPS]
    if not shares:
        raise NotApplicable("the backbone never joins the optimizer")
    found = f"share {min(shares):.3g}" + (f" to {max(shares):.3g}" if max(shares) > min(shares) * (1 + 1e-6) else "")
    if " to " in found:
        raise Violation(found)
    return found


scheduler_checks = {name: partial(scheduler, name) for name in SCHEDULERS}
