"""Optimizers and schedulers from plain facts."""

from collections.abc import Collection, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.importing import check_arguments, parameters_of
from hybrid_lightning.network.registry import resolve
from hybrid_lightning.optim.lr_schedules import SHAPES, GroupScheduler

_STEPWISE = ("OneCycleLR", "CyclicLR")
_PER_GROUP = ("max_lr", "base_lr", "min_lr", "eta_min", "max_momentum", "base_momentum", "lr_lambda")
_FUNCTIONS = ("lr_lambda", "scale_fn")
_OWN_KEYS = ("interval", "monitor", "warm_up")


def _parse(spec: object, where: str, namespace: Any, trust: Collection[str] | None) -> tuple[type, dict[str, Any]]:
    """Class and arguments of ``Adam``, ``torch.optim.Adam`` or ``{class_path: ..., init_args: {...}}``."""
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        raise ConfigError(f"{where}: write {{class_path: ..., init_args: {{...}}}} or a class name, not {spec!r}.")
    for key in spec:
        if key not in ("class_path", "init_args"):
            raise unknown(where, "key", str(key), ("class_path", "init_args"))
    path = str(spec["class_path"])
    name = path.removeprefix(namespace.__name__ + ".")
    found = torch_classes(namespace).get(name) if "." not in name else resolve(path, f"{where}.class_path", trust)
    if not isinstance(found, type):
        raise unknown(f"{where}.class_path", "class", path, torch_classes(namespace))
    return found, dict(spec.get("init_args") or {})


def named_class(spec: Any, namespace: Any) -> Any:
    """A spec whose classes are given by their names, so that a checkpoint can hold it."""
    if isinstance(spec, Mapping):
        return {key: named_class(value, namespace) for key, value in spec.items()}
    if isinstance(spec, list):
        return [named_class(value, namespace) for value in spec]
    if not isinstance(spec, type):
        return spec
    known = torch_classes(namespace).get(spec.__name__) is spec
    return spec.__name__ if known else f"{spec.__module__}.{spec.__qualname__}"


def make_optimizer(
    spec: object,
    groups: list[dict[str, Any]],
    *,
    fused: bool,
    scaled: bool = False,
    trust: Collection[str] | None = None,
) -> Optimizer:
    """An optimizer over named groups.

    Args:
        spec: None for AdamW, a class of `torch.optim` by name, or ``{class_path: ..., init_args: {...}}``.
        groups: From `named_param_groups`; they carry their rates and decays.
        fused: Whether the fused implementation may be used where the class has one and the facts do not choose.
        scaled: Whether gradients are scaled until the step (precision 16-mixed).
        trust: See `resolve`.

    Raises:
        ConfigError: If the class or an argument is unknown, or a rate or decay is given here.
    """
    where = "model.optimizer"
    optimizer_class, args = _parse(spec or "AdamW", where, torch.optim, trust)
    if not issubclass(optimizer_class, Optimizer):
        raise ConfigError(f"{where}.class_path: {optimizer_class.__name__} is not an optimizer.")
    for name in ("lr", "weight_decay"):
        if name in args:
            raise ConfigError(
                f"{where}.init_args.{name}: {args[name]!r} is given inside the optimizer, where it would not reach the "
                f"parts. Remove it and set model.{name}, the only one; parts scale it with lr_scale or weight_decay."
            )
    check_arguments(optimizer_class, {"params": groups, **args}, f"{where}.init_args")
    if scaled and args.get("fused"):
        raise ConfigError(
            f"{where}.init_args.fused: under precision 16-mixed a fused optimizer unscales the gradients by itself, so "
            f"they could be neither clipped nor logged. Remove it, or use bf16-mixed."
        )
    if fused and "fused" in parameters_of(optimizer_class) and not {"fused", "foreach", "differentiable"} & args.keys():
        args["fused"] = True
    try:
        return optimizer_class(groups, **args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {optimizer_class.__name__} refuses its arguments: {error}") from error


def make_scheduler(
    spec: str | Mapping[str, Any],
    optimizer: Optimizer,
    trust: Collection[str] | None = None,
    base_lr: float | None = None,
) -> dict[str, Any]:
    """A torch scheduler for named groups (see `GroupScheduler`) as Lightning's ``lr_scheduler`` dict.

    Args:
        spec: ``{class_path: StepLR, init_args: {...}}``, plus ``interval`` (``epoch`` or ``step``: what it counts),
            ``warm_up`` (a duration, from each group's unfreezing) and, for `ReduceLROnPlateau`, ``monitor``. The
            ``schedulers`` of `SequentialLR` and `ChainedScheduler` are such specs too; a function is a dotted path.
        optimizer: With named groups.
        trust: See `resolve`.
        base_lr: The rate that the scheduler starts from; None takes that of the groups.

    Raises:
        ConfigError: If the class or an argument is unknown or impossible.
    """
    where = "model.scheduler"
    spec = {"class_path": spec} if isinstance(spec, str) else dict(spec)
    own = {key: spec.pop(key) for key in _OWN_KEYS if key in spec}
    for key in spec:
        if key not in ("class_path", "init_args"):
            raise unknown(where, "key", str(key), ("class_path", "init_args", *_OWN_KEYS))
    scheduler_class, _ = _parse(spec, where, torch.optim.lr_scheduler, trust)
    interval = own.get("interval", "step" if scheduler_class.__name__ in _STEPWISE else "epoch")
    if interval not in ("epoch", "step"):
        raise unknown(f"{where}.interval", "interval", str(interval), ("epoch", "step"))
    make = partial(_torch_scheduler, spec, where=where, trust=trust)
    scheduler = GroupScheduler(optimizer, make, interval, own.get("warm_up", "0 steps"), base_lr=base_lr)
    if not scheduler.by_metric:
        return {"scheduler": scheduler, "interval": scheduler.clock}
    monitor = str(own.get("monitor", "val/loss"))
    if not monitor.startswith("val/") or interval != "epoch":
        raise ConfigError(
            f"{where}: ReduceLROnPlateau is stepped at each validation, with a metric of it. Remove interval and set "
            f"monitor to val/loss or another val/ metric, not {monitor!r}."
        )
    return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor}


def _torch_scheduler(spec: object, optimizer: Optimizer, *, where: str, trust: Collection[str] | None) -> LRScheduler:
    """The torch scheduler of a spec, on an optimizer of one group."""
    scheduler_class, args = _parse(spec, where, torch.optim.lr_scheduler, trust)
    name, arguments = scheduler_class.__name__, f"{where}.init_args"
    if not issubclass(scheduler_class, LRScheduler):
        raise ConfigError(f"{where}.class_path: {name} is not a scheduler.")
    if "lr_lambda" in parameters_of(scheduler_class) and "lr_lambda" not in args:
        raise ConfigError(
            f"{arguments}.lr_lambda: {name} needs a function. Give the dotted path of one (my_package.decay), or "
            f"use rates: {{shape: ...}} instead of scheduler. Shapes: {listing(SHAPES)}."
        )
    check_arguments(scheduler_class, {"optimizer": optimizer, **args}, arguments)
    for key, value in args.items():
        if key in _PER_GROUP and isinstance(value, list | tuple):
            raise ConfigError(
                f"{arguments}.{key}: a list would be one value per group. Give one value, that of the base rate; every "
                f"group takes its share of it. Set the shares with lr_scale and layer_decay of the parts."
            )
        if key in _FUNCTIONS and isinstance(value, str):
            args[key] = resolve(value, f"{arguments}.{key}", trust)
    if isinstance(args.get("schedulers"), list):
        args["schedulers"] = [
            _torch_scheduler(inner, optimizer, where=f"{arguments}.schedulers[{index}]", trust=trust)
            for index, inner in enumerate(args["schedulers"])
        ]
    try:
        return scheduler_class(**{"optimizer": optimizer, **args})
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise ConfigError(f"{where}: {name} refuses its arguments: {error}") from error


def torch_classes(namespace: ModuleType) -> dict[str, type]:
    """Name → class, of those that `torch.optim` or `torch.optim.lr_scheduler` offers, without their base classes."""
    found = {name: value for name, value in vars(namespace).items() if isinstance(value, type)}
    ours = {name: c for name, c in found.items() if c.__module__.startswith("torch.optim") and name[0] != "_"}
    return {name: c for name, c in ours.items() if name not in ("Optimizer", "LRScheduler")}
