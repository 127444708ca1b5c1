"""Checks of restarts, and of fits that follow one another."""

import contextlib
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from tests.conformance.model import (
    EPOCHS,
    STEPS,
    WHOLE,
    Module,
    Recorder,
    Schedule,
    Violation,
    fit,
    largest_difference,
    loader,
    trainer,
)
from tests.conformance.tools import Tool

EARLY: Schedule = {"backbone": 1}
EXACT_EPOCHS = 3


def run(
    tool: Tool, schedule: Schedule, folder: Path, resume_from: Path | None = None, every_step: bool = False
) -> tuple[Module, Recorder]:
    """A fit from the start or from a checkpoint, without shuffle, dropout or batch statistics."""
    module, recorder = Module(tool, schedule), Recorder()
    fit(trainer(tool, schedule, folder, recorder, every_step=every_step), module, ckpt_path=resume_from)
    return module, recorder


def whole_run(tool: Tool, schedule: Schedule, folder: Path, every_step: bool = False) -> tuple[Module, Recorder]:
    """The fit that never stops; it has to unfreeze the backbone when it should, or there is nothing to compare with."""
    module, recorder = run(tool, schedule, folder / "whole", every_step=every_step)
    found, planned = recorder.first_step_of("backbone"), schedule["backbone"] * STEPS
    if found != planned:
        raise Violation(f"unfrozen at step {found} instead of {planned}, without any restart")
    return module, recorder


def differing_steps(whole: Recorder, resumed: Recorder, start: int) -> tuple[int, int]:
    """How many of the steps from `start` on changed other parameters, and how many there are."""
    steps = [step for step in whole.changed if step >= start]
    return sum(resumed.changed.get(step) != whole.changed[step] for step in steps), len(steps)


def after_unfreezing(tool: Tool, folder: Path) -> str:
    """Resumed at an epoch's end after the unfreezing, the same parameters train and the result is bit-equal."""
    whole, recorded = whole_run(tool, EARLY, folder)
    start = 2 * STEPS
    resumed, again = run(tool, EARLY, folder / "resumed", folder / "whole" / f"step={start}.ckpt")
    differing, total = differing_steps(recorded, again, start)
    _, distance = largest_difference(whole.state_dict(), resumed.state_dict())
    if differing or distance:
        raise Violation(f"{differing} of {total} steps train something else, result off by {distance:.2g}")
    return f"{total} steps, result off by 0"


def before_unfreezing(tool: Tool, folder: Path) -> str:
    """Resumed at an epoch's end before the unfreezing, that comes at the same step."""
    _, recorded = whole_run(tool, WHOLE, folder)
    _, again = run(tool, WHOLE, folder / "resumed", folder / "whole" / f"step={STEPS}.ckpt")
    planned, found = recorded.first_step_of("backbone"), again.first_step_of("backbone")
    if found != planned:
        raise Violation(f"unfrozen at step {found}, without the restart at {planned}")
    return f"step {found}"


def mid_epoch(tool: Tool, folder: Path) -> str:
    """Restarted within an epoch, before and after the unfreezing, each step trains what it would have trained."""
    _, recorded = whole_run(tool, EARLY, folder, every_step=True)
    bad = all_steps = 0
    for start in (STEPS - 2, STEPS + 2):
        _, again = run(tool, EARLY, folder / f"from-{start}", folder / "whole" / f"step={start}.ckpt")
        differing, total = differing_steps(recorded, again, start)
        bad, all_steps = bad + differing, all_steps + total
    if bad:
        raise Violation(f"{bad} of {all_steps} steps train something else")
    return f"{all_steps} steps"


def second_fit(tool: Tool, folder: Path) -> str:
    """fit → test → fit with one Trainer, parted after the unfreezing, trains at each step what one fit trains."""
    _, recorded = whole_run(tool, WHOLE, folder)
    module, again = Module(tool, WHOLE), Recorder()
    runner = trainer(tool, WHOLE, folder / "parts", again, max_epochs=EPOCHS - 1)
    fit(runner, module)
    runner.test(module, loader(), verbose=False)
    runner.fit_loop.max_epochs = EPOCHS
    fit(runner, module)
    differing, total = differing_steps(recorded, again, 0)
    if differing:
        raise Violation(f"{differing} of {total} steps train something else")
    return f"{total} steps"


def flags_kept(tool: Tool, folder: Path) -> str:
    """Validate, test and predict leave every ``requires_grad`` as it is."""
    changed = []
    for verb in ("validate", "test", "predict"):
        module = Module(tool, WHOLE)
        module.backbone.get_submodule("first").requires_grad_(False)
        before = [parameter.requires_grad for parameter in module.parameters()]
        getattr(trainer(tool, WHOLE, folder / verb), verb)(module, loader(), **quiet(verb))
        after = [parameter.requires_grad for parameter in module.parameters()]
        changed += [was is not now for was, now in zip(before, after, strict=True)]
    if any(changed):
        raise Violation(f"{sum(changed)} of {len(changed)} flags changed")
    return f"{len(changed)} flags"


def quiet(verb: str) -> dict[str, Any]:
    return {"return_predictions": False} if verb == "predict" else {"verbose": False}


class LastState(pl.Callback):
    """The optimizer's state at the end of the fit."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.optimizer = trainer.optimizers[0].state_dict()["state"]


def exact_run(
    tool: Tool, folder: Path, resume_from: Path | None = None, every_step: bool = False
) -> dict[str, torch.Tensor]:
    """Parameters, buffers, optimizer state and validation loss after a fit with shuffle, dropout and BatchNorm."""
    pl.seed_everything(0, verbose=False)
    module, last = Module(tool, EARLY, batch_norm=True, dropout=0.5), LastState()
    callbacks = [*tool.exact_resume(), last]
    runner = trainer(tool, EARLY, folder, *callbacks, every_step=every_step, max_epochs=EXACT_EPOCHS)
    fit(runner, module, loader(shuffle=True), loader(), ckpt_path=resume_from)
    moments = {f"{i}.{k}": v for i, entry in last.optimizer.items() for k, v in entry.items()}
    return module.state_dict() | moments | {"val_loss": runner.callback_metrics["val_loss"]}


def every_step(tool: Tool, folder: Path) -> str:
    """Resumed from each step, the end is bit-equal: parameters, buffers, optimizer state and validation loss."""
    whole = exact_run(tool, folder / "whole", every_step=True)
    saved = [folder / "whole" / f"step={step}.ckpt" for step in range(1, EXACT_EPOCHS * STEPS)]
    equal = 0
    for path in saved:
        with contextlib.suppress(Violation):  # a crash is not equal
            again = exact_run(tool, folder / path.stem, resume_from=path)
            equal += again.keys() == whole.keys() and all(torch.equal(again[name], whole[name]) for name in whole)
    found = f"{equal} of {len(saved)} bit-equal"
    if equal < len(saved):
        raise Violation(found)
    return found
