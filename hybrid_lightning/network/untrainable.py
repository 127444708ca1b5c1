"""Parts whose options cannot be kept: those that would never train, and one module under contradicting options."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from hybrid_lightning.errors import ConfigError, at, listing
from hybrid_lightning.network.part import NEVER, Part, place_of
from hybrid_lightning.network.wiring import Wiring

_OF_PARAMETERS = (
    "unfreeze",
    "lr_scale",
    "layer_decay",
    "weight_decay",
    "decay_all",
    "batch_norm",
    "l2sp",
    "clip",
    "adapter",
)
"""Options of a part that say what happens to its parameters."""


def refuse_untrainable_parts(options: Mapping[str, Part], modules: nn.ModuleDict, wiring: Wiring) -> None:
    """Raises `ConfigError` for a part that is to train, and arrives frozen or gets no gradient."""
    blocking = [name for name in wiring.order if not getattr(modules[name], "passes_gradient", True)]
    reached = wiring.reached_by_gradient(blocking)
    for name, part in options.items():
        parameters = list(modules[name].parameters())
        if not parameters or part.unfreeze == NEVER:
            continue
        with at(f"{place_of(name)}.unfreeze"):
            if not any(parameter.requires_grad for parameter in parameters):
                raise ConfigError(
                    "all parameters arrive frozen (requires_grad=False), so they would never train. Write 'unfreeze: "
                    "never', or leave the flags to the schedule: requires_grad_(True)."
                )
            # the fusion and the heads stand behind all that blocks
            if name in wiring.order and name not in reached:
                raise ConfigError(
                    f"no gradient reaches this part, because {listing(blocking)} pass none back (passes_gradient = "
                    f"False), so it would never train. Write 'unfreeze: never' on it, or 'origin: random' if its "
                    f"weights are not pretrained; or let another part read it."
                )


def refuse_contradicting_ties(options: Mapping[str, Part], modules: nn.ModuleDict) -> None:
    """Raises `ConfigError` if two parts share a parameter, and their options want different things of it."""
    owners: dict[nn.Parameter, str] = {}
    for name, module in modules.items():
        for parameter in module.parameters():
            owner = owners.setdefault(parameter, name)
            contradicting = _contradicting(options[owner], options[name])
            if contradicting:
                raise ConfigError(
                    f"{owner!r} and {name!r} share parameters, and contradict each other in {listing(contradicting)}. "
                    f"Write the same for both, or give one of them a copy of the module (copy.deepcopy).",
                    "model.parts",
                )


def _contradicting(one: Part, other: Part) -> list[str]:
    """The options in which two parts that train the same parameters differ."""
    return [option for option in _OF_PARAMETERS if _said(one, option) != _said(other, option)]


def _said(part: Part, option: str) -> Any:
    # None and 0 mean the same
    return getattr(part, option) or None
