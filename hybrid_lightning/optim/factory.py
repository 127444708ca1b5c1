"""Optimizers and learning-rate schedulers from ``{class_path, init_args}``."""

from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch.optim import SGD, Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hybrid_lightning.direction import Directions, checked_mode
from hybrid_lightning.errors import ConfigError, at, check_choice, check_keys, listing
from hybrid_lightning.importing import ClassSpec, check_arguments, parameters_of, resolve
from hybrid_lightning.optim.lr_schedules import GroupScheduler
from hybrid_lightning.optim.shapes import SHAPES
from hybrid_lightning.optim.training_groups import has_16_bits

_STEPWISE = ("OneCycleLR", "CyclicLR")
_PER_GROUP = ("max_lr", "base_lr", "min_lr", "eta_min", "max_momentum", "base_momentum", "lr_lambda")
_FUNCTIONS = ("lr_lambda", "scale_fn")
_OWN_KEYS = ("interval", "monitor", "warm_up")
_SPEC_KEYS = ("class_path", "init_args")
_KINDS: dict[type, tuple[ModuleType, str, str]] = {
    Optimizer: (torch.optim, "AdamW", "an optimizer"),
    LRScheduler: (lr_scheduler, "StepLR", "a scheduler"),
}
"""Base class → where a bare name is looked up, and an example and a noun for errors."""
_Base = TypeVar("_Base", Optimizer, LRScheduler)


def torch_classes(namespace: ModuleType) -> dict[str, type]:
    """Name → class, of those that `torch.optim` or `torch.optim.lr_scheduler` offers, without their base classes."""
    found = {}
    for name, value in vars(namespace).items():
        is_class = isinstance(value, type) and value.__module__.startswith("torch.optim")
        if is_class and not name.startswith("_") and name not in ("Optimizer", "LRScheduler"):
            found[name] = value
    return found


def named_class(spec: Any, namespace: ModuleType) -> Any:
    """A spec whose classes are given by their names, so that a checkpoint can hold it."""
    if isinstance(spec, Mapping):
        return {key: named_class(value, namespace) for key, value in spec.items()}
    if isinstance(spec, list):
        return [named_class(value, namespace) for value in spec]
    if not isinstance(spec, type):
        return spec
    known = torch_classes(namespace).get(spec.__name__) is spec
    return spec.__name__ if known else f"{spec.__module__}.{spec.__qualname__}"


def _find(spec: object, base: type[_Base], trust: Collection[str] | None) -> tuple[type[_Base], dict[str, Any]]:
    """Class and arguments of ``Adam``, ``torch.optim.Adam`` or ``{class_path: ..., init_args: {...}}``."""
    namespace, example, kind = _KINDS[base]
    given = ClassSpec.parse(spec, example)
    classes = torch_classes(namespace)
    # by its short name a class of torch is allowed in a file too
    short = given.class_path.removeprefix(f"{namespace.__name__}.")
    with at("class_path"):
        found = resolve(short if short in classes else given.class_path, classes, trust, kind="class")
        if not isinstance(found, type) or not issubclass(found, base):
            raise ConfigError(f"{given.class_path!r} is not {kind}, such as {example}.")
    return found, dict(given.init_args)


@at("model.optimizer")
def make_optimizer(
    spec: object,
    groups: list[dict[str, Any]],
    *,
    fused: bool,
    trust: Collection[str] | None = None,
) -> Optimizer:
    """An optimizer over named groups."""
    optimizer_class, args = _find(spec or "AdamW", Optimizer, trust)
    for rate in ("lr", "weight_decay"):
        if rate in args:
            raise ConfigError(
                f"{args[rate]!r} is given inside the optimizer, where it would not reach the parts. Remove it and set "
                f"model.{rate}, the only one; parts scale it with lr_scale or weight_decay.",
                f"init_args.{rate}",
            )
    check_arguments(optimizer_class, {"params": groups, **args}, "init_args")
    # torch refuses fused together with either of the other two
    is_chosen = not {"fused", "foreach", "differentiable"}.isdisjoint(args)
    if fused and not is_chosen and "fused" in parameters_of(optimizer_class):
        args["fused"] = not (issubclass(optimizer_class, SGD) and any(map(has_16_bits, groups)))
    try:
        optimizer = optimizer_class(groups, **args)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{optimizer_class.__name__} refuses its arguments: {error}") from error
    _refuse_lost_epsilon(optimizer)
    return optimizer


def _refuse_lost_epsilon(optimizer: Optimizer) -> None:
    """Raises `ConfigError` for weights of float16 that would be divided by 0 where a gradient is small."""
    eps = optimizer.defaults.get("eps")
    if not isinstance(eps, float) or torch.tensor(eps, dtype=torch.float16):
        return
    if any(parameter.dtype == torch.float16 for group in optimizer.param_groups for parameter in group["params"]):
        raise ConfigError(
            f"{eps} is 0 in float16, so that small gradients would be divided by 0. Use trainer.precision 16-mixed or "
            f"bf16-mixed, which keep the weights in 32 bits; or SGD; or an eps that float16 holds, such as 1.0e-4.",
            "init_args.eps",
        )


def make_scheduler(
    spec: str | Mapping[str, Any],
    optimizer: Optimizer,
    trust: Collection[str] | None = None,
    base_lr: float | None = None,
    directions: Directions | None = None,
) -> dict[str, Any]:
    """A torch scheduler for named groups (see `GroupScheduler`) as Lightning's ``lr_scheduler`` dict."""
    # beside class_path and init_args: interval (epoch or step: what it counts), warm_up (from each group's unfreezing)
    # and, for ReduceLROnPlateau, monitor; the schedulers of SequentialLR and ChainedScheduler are such specs too
    # not a decorator: `GroupScheduler` calls `make` and states the place of its own errors
    given = {"class_path": spec} if isinstance(spec, str) else dict(spec)
    of_torch = {key: given[key] for key in _SPEC_KEYS if key in given}
    with at("model.scheduler"):
        check_keys(given, (*_SPEC_KEYS, *_OWN_KEYS))
        scheduler_class, args = _find(of_torch, LRScheduler, trust)
        usual = "step" if scheduler_class.__name__ in _STEPWISE else "epoch"
        interval = check_choice(given.get("interval", usual), "interval", ("epoch", "step"), "interval")
    monitor = str(given.get("monitor", "val/loss"))
    if issubclass(scheduler_class, ReduceLROnPlateau):
        of_torch["init_args"] = {**args, "mode": _mode_of(monitor, args, directions)}

    @at("model.scheduler")  # is called again on restarts
    def make(one: Optimizer) -> LRScheduler:
        return _torch_scheduler(of_torch, one, trust)

    scheduler = GroupScheduler(optimizer, make, interval, given.get("warm_up", "0 steps"), base_lr=base_lr)
    if not scheduler.by_metric:
        return {"scheduler": scheduler, "interval": scheduler.clock}
    if not monitor.startswith("val/") or interval != "epoch":
        raise ConfigError(
            f"ReduceLROnPlateau is stepped at each validation, with a metric of it. Remove interval and set monitor to "
            f"val/loss or another val/ metric, not {monitor!r}.",
            "model.scheduler",
        )
    return {"scheduler": scheduler, "interval": "epoch", "monitor": monitor}


@at("model.scheduler.init_args")
def _mode_of(monitor: str, args: Mapping[str, Any], directions: Directions | None) -> str:
    return checked_mode(monitor, args.get("mode"), directions)


def _torch_scheduler(spec: object, optimizer: Optimizer, trust: Collection[str] | None) -> LRScheduler:
    """The torch scheduler of a spec, on an optimizer of one group."""
    scheduler_class, args = _find(spec, LRScheduler, trust)
    name = scheduler_class.__name__
    with at("init_args"):
        if "lr_lambda" in parameters_of(scheduler_class) and "lr_lambda" not in args:
            raise ConfigError(
                f"{name} needs a function. Give the dotted path of one (my_package.decay), or use rates: "
                f"{{shape: ...}} instead of scheduler. Shapes: {listing(SHAPES)}.",
                "lr_lambda",
            )
        check_arguments(scheduler_class, {"optimizer": optimizer, **args})
        for key, value in args.items():
            args[key] = _scheduler_argument(key, value, optimizer, trust)
    try:
        return scheduler_class(**{"optimizer": optimizer, **args})
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        raise ConfigError(f"{name} refuses its arguments: {error}") from error


def _scheduler_argument(key: str, value: Any, optimizer: Optimizer, trust: Collection[str] | None) -> Any:
    """An argument with the functions and inner schedulers that its words stand for."""
    if key in _PER_GROUP and isinstance(value, list | tuple):
        raise ConfigError(
            "a list would be one value per group. Give one value, that of the base rate; every group takes its share "
            "of it. Set the shares with lr_scale and layer_decay of the parts.",
            key,
        )
    if key in _FUNCTIONS and isinstance(value, str):
        with at(key):
            return resolve(value, {}, trust, kind="function")
    if key != "schedulers" or not isinstance(value, list):
        return value
    inner = []
    for index, spec in enumerate(value):
        with at(f"schedulers[{index}]"):
            inner.append(_torch_scheduler(spec, optimizer, trust))
    return inner
