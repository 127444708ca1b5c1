"""Compiling a part with `torch.compile`: as a whole, or by the units in which its weights are sharded."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from hybrid_lightning.network.calling import replaced_forwards


def compiled(module: nn.Module, stages: int, options: Mapping[str, Any]) -> Callable[..., Any]:
    """A function that calls a module of so many stages compiled; weights and names of parameters stay as they are.

    An unfreezing changes which gradients a module needs, so torch compiles it once more for training and for
    evaluation. Its limit of compilations is raised by so many, because beyond it torch runs uncompiled.
    """
    units = [each for each in module.modules() if _is_innermost_unit(each)]
    if not units:
        whole = torch.compile(module, **options)
        torch._dynamo.config.recompile_limit += 2 * (stages + 1)
        return whole
    # the gathering of a unit's weights, before and after its forward, cannot be compiled and would end each graph
    forwards = {unit: torch.compile(unit.forward, **options) for unit in units}
    # units of one class share its forward, and with it the limit: frozen and trained, in training and evaluation
    torch._dynamo.config.recompile_limit += 4 * len(units)

    def call(*args: Any, **kwargs: Any) -> Any:
        with replaced_forwards(forwards):
            return module(*args, **kwargs)

    return call


def _is_innermost_unit(module: nn.Module) -> bool:
    inner = list(module.modules())[1:]
    return isinstance(module, FSDPModule) and not any(isinstance(each, FSDPModule) for each in inner)
