"""Parts that are meant to train and never would."""

from collections.abc import Mapping

from torch import nn

from hybrid_lightning.errors import ConfigError, at, listing
from hybrid_lightning.network.part import NEVER, Part, place_of
from hybrid_lightning.network.wiring import Wiring


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
