"""What a checkpoint holds of a run beside weights and optimizer, compared with what this program would have saved."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.optim.lr_schedules import GroupLR
from hybrid_lightning.resume.loop_counters import first_contradiction, first_damaged
from hybrid_lightning.resume.own_files import damaged
from hybrid_lightning.weights.safe_files import refuse_endless
from hybrid_lightning.weights.tensor_values import is_plain, unfit

KEY = "exact_resume"
_FORM = {
    "seed": range(2**63),
    "ranks": range(1, 2**31),
    "batches": (type(None), int, float),
    "division": (type(None), {"samples": range(1, 2**63), "accumulate": range(1, 2**63)}),
    "order": (type(None), str),
    "logged_steps": int,
    "validated": range(-1, 2**63),
    "metrics": {str: torch.zeros(())},
    "window": (type(None), {str: {str: Tensor}}),
}
_HEAD = {"epoch": int, "global_step": int, "pytorch-lightning_version": str, "state_dict": dict}
_VERSION = re.compile(r"[0-9]{1,4}(\.\w+)*")
_LONGEST_CLASS = 200  # letters
_OLDEST = 2  # of Lightning; it rewrites older files, by rules for programs of that time


def refuse_damaged_head(checkpoint: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for what Lightning reads of any checkpoint before it asks anybody."""
    if "state_dict" not in checkpoint:  # not of a Trainer, which will say so
        return
    try:
        refuse_endless(checkpoint)
    except ValueError as error:
        raise damaged(str(error)) from None
    path = first_damaged(dict(checkpoint), _HEAD, "checkpoint")
    version = str(checkpoint.get("pytorch-lightning_version"))
    if path is None and (not _VERSION.fullmatch(version) or int(version.split(".")[0]) < _OLDEST):
        path = "checkpoint.pytorch-lightning_version"
    if path is not None:
        raise _missing(path)


def refuse_damaged_fit(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if counters of a saved fit, or entries of `ExactResume`, are missing or impossible."""
    loops = checkpoint.get("loops")
    path = first_damaged(loops, {"fit_loop": trainer.fit_loop.state_dict()}, "loops")
    if path is None and (contradiction := first_contradiction(checkpoint["loops"]["fit_loop"])):
        path = f"loops.fit_loop.{contradiction}"
    saved = checkpoint.get(KEY)
    if path is None and saved:
        path = first_damaged(saved, _FORM, KEY)
        if path is None and (saved.get("batches") or 0) < 0:
            path = f"{KEY}.batches"
        if path is None and not _is_class(saved.get("order")):
            path = f"{KEY}.order"
        if path is None and saved["window"]:
            path = _first_in_window(trainer, saved)
    if path is not None:
        raise _missing(path)


def _is_class(order: str | None) -> bool:
    """Whether it can be the name of a sampler's class, which is told where another one decides."""
    return not order or (order.isidentifier() and len(order) <= _LONGEST_CLASS)


def _missing(path: str) -> ConfigError:
    return damaged(f"{path!r} is missing, of another type or out of its range.")


def _first_in_window(trainer: Trainer, saved: Mapping[str, Any]) -> str | None:
    """Path of the first tensor of an open accumulation window that does not fit the module's."""
    module: LightningModule = trainer.lightning_module
    kinds: dict[str, dict[str, Tensor]] = {
        "gradients": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
    }
    # a step may yet be skipped because its gradients are not finite
    may_skip = trainer.precision == "16-mixed"
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        may_skip = may_skip or bool(getattr(callback, "skips", False))
    for kind, tensors in saved["window"].items():
        own = kinds.get(kind, {})
        for name, tensor in tensors.items():
            path = f"{KEY}.window.{kind}.{name}"
            if name not in own or not is_plain(tensor) or tensor.shape != (saved["ranks"], *own[name].shape):
                return path
            if unfit(name, tensor, own[name], is_finite=not may_skip):
                return path
    return None


def refuse_damaged_schedulers(checkpoint: Mapping[str, Any], scheduler: Any) -> None:
    """Raises `ConfigError` unless a checkpoint holds the state of one scheduler like today's."""
    saved: Any = checkpoint.get("lr_schedulers")
    if isinstance(scheduler, GroupLR):
        form = scheduler.state_form
    else:  # torch takes any attribute from a state, methods too
        form = {**dict.fromkeys(scheduler.state_dict(), object), str: ()}
    is_one = isinstance(saved, list) and len(saved) == 1
    path = first_damaged(saved, [form], "lr_schedulers") if is_one else "lr_schedulers"
    if path is None and isinstance(scheduler, GroupLR):
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        if saved[0]["last_epoch"] > batches + 1:  # it steps after a batch or more rarely
            path = "lr_schedulers[0].last_epoch"
    if path is not None:
        raise _missing(path)


def refuse_damaged_tensors(trainer: Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if callbacks would put tensors into the module that do not fit it."""
    own = trainer.lightning_module.state_dict()
    for path, name, tensor in _named_tensors(checkpoint.get("callbacks") or {}, "callbacks"):
        if not isinstance(own.get(name), Tensor):
            continue
        if tensor.shape != own[name].shape:
            raise damaged(f"{path!r} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}.")
        problem = unfit(name, tensor, own[name])
        if problem:
            raise damaged(f"{path!r} {problem}.")


def _named_tensors(state: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str, Tensor]]:
    """Path, name and value of the tensors in dicts within dicts."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield f"{path}.{name}", name, value
        elif isinstance(value, Mapping):
            yield from _named_tensors(value, f"{path}.{name}")
