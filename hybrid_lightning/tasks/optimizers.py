"""Optimizers and schedulers from plain facts."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hybrid_lightning.configs import torch_classes
from hybrid_lightning.errors import ConfigError, unknown
from hybrid_lightning.network.registry import check_arguments, parameters_of, resolve

_PER_GROUP_RATES = ("max_lr", "base_lr")
_STEPWISE = ("OneCycleLR", "CyclicLR")


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
    """A spec whose class is given by its name, so that a checkpoint can hold it."""
    if isinstance(spec, Mapping) and "class_path" in spec:
        return {**spec, "class_path": named_class(spec["class_path"], namespace)}
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
    spec: str | Mapping[str, Any], optimizer: Optimizer, trust: Collection[str] | None = None
) -> dict[str, Any]:
    """A torch scheduler as Lightning's ``lr_scheduler`` dict.

    A scalar ``max_lr`` or ``base_lr`` is expanded to the groups, each times its ``lr_factor``.

    Args:
        spec: ``{class_path: StepLR, init_args: {...}}``, plus ``interval`` (``epoch`` or ``step``) and ``monitor``.
        optimizer: With named groups.
        trust: See `resolve`.

    Raises:
        ConfigError: If the class or an argument is unknown.
    """
    where = "model.scheduler"
    spec = {"class_path": spec} if isinstance(spec, str) else dict(spec)
    own = {key: spec.pop(key) for key in ("interval", "monitor") if key in spec}
    for key in spec:
        if key not in ("class_path", "init_args"):
            raise unknown(where, "key", str(key), ("class_path", "init_args", "interval", "monitor"))
    scheduler_class, args = _parse(spec, where, torch.optim.lr_scheduler, trust)
    check_arguments(scheduler_class, {"optimizer": optimizer, **args}, f"{where}.init_args")
    for name in _PER_GROUP_RATES:
        if isinstance(args.get(name), int | float):
            args[name] = [args[name] * group["lr_factor"] for group in optimizer.param_groups]
    if not issubclass(scheduler_class, LRScheduler):
        raise ConfigError(f"{where}.class_path: {scheduler_class.__name__} is not a scheduler.")
    try:
        scheduler = scheduler_class(optimizer, **args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {scheduler_class.__name__} refuses its arguments: {error}") from error
    interval = own.get("interval", "step" if scheduler_class.__name__ in _STEPWISE else "epoch")
    if interval not in ("epoch", "step"):
        raise unknown(f"{where}.interval", "interval", str(interval), ("epoch", "step"))
    plateau = {"monitor": own.get("monitor", "val/loss")} if issubclass(scheduler_class, ReduceLROnPlateau) else {}
    return {"scheduler": scheduler, "interval": interval, **plateau}
