"""Which strategies of the Trainer keep what this package promises; the others are refused by name."""

from typing import Any

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from lightning.pytorch.strategies.single_xla import SingleDeviceXLAStrategy
from lightning.pytorch.strategies.xla import XLAStrategy

from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.errors import ConfigError, unknown
from hybrid_lightning.lightning_private import start_method

KEPT = ("auto", "single_device", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "fsdp2")
"""The names of the strategies under which everything holds that this package promises."""
_SHARDED = "Use 'fsdp2', which shards too, or 'ddp'."
_INEXACT = f"unfreezing, clipping and resuming would not be exact. {_SHARDED}"
_UNTESTED = "nothing has been tested, as on TPUs at large. Use 'auto' or 'ddp' on CPUs or GPUs."
_REFUSED: dict[type[Strategy], str] = {
    FSDPStrategy: _INEXACT,
    ModelParallelStrategy: _INEXACT,
    DeepSpeedStrategy: f"unfreezing, clipping and resuming, which it does by itself, would not be exact. {_SHARDED}",
    XLAStrategy: _UNTESTED,
    SingleDeviceXLAStrategy: _UNTESTED,
}
"""Class of a strategy → what goes wrong under it and what to use instead."""
_IN_CHILDREN = (
    "the run is one of child processes, with which the trained model would be lost. Use 'ddp' in a script or on the "
    "command line; in a notebook, take one device, or run the command: !python -m hybrid_lightning fit ..."
)


def refuse_strategy_name(given: Any) -> None:
    """Raises `ConfigError` for a name that no strategy has, or of a strategy that `refuse_strategy` would refuse."""
    if not isinstance(given, str) or given.lower() == "auto":
        return
    if given.lower() not in StrategyRegistry:
        raise unknown("trainer.strategy", "strategy", given, KEPT)
    registered = StrategyRegistry[given.lower()]
    arguments = registered["init_params"]
    _refuse(f"{given!r}", registered["strategy"], arguments.get("start_method"))


def refuse_strategy(strategy: Strategy) -> None:
    """Raises `ConfigError` for a strategy under which a model would not train, or not continue, as promised."""
    if isinstance(strategy, FSDP2Strategy):
        strategy.refuse_scaled_gradients()
    _refuse(type(strategy).__name__, type(strategy), start_method(strategy))


def _refuse(name: str, kind: type[Strategy], starts_by: str | None) -> None:
    if issubclass(kind, FSDP2Strategy):
        return
    problem = next((problem for refused, problem in _REFUSED.items() if issubclass(kind, refused)), None)
    if problem is None and not issubclass(kind, SingleDeviceStrategy | DDPStrategy):
        problem = f"unfreezing, clipping and resuming are not known to be exact. {_SHARDED}"
    if problem is None and starts_by not in (None, "popen"):
        raise ConfigError(f"under {name}, which starts processes by {starts_by!r}, {_IN_CHILDREN}", "trainer.strategy")
    if problem:
        raise ConfigError(f"under {name} {problem}", "trainer.strategy")
