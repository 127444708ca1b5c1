"""The plan of a fit: what was loaded, and what trains when and at which rate."""

from typing import Any

import lightning.pytorch as pl

from hybrid_lightning.duration import FitLength
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.tasks.default_callbacks import schedules_of, with_parameters
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing, check_moments
from hybrid_lightning.unfreezing.plan import plan_table
from hybrid_lightning.unfreezing.timeline import training_at_start


def training_plan(network: HybridNetwork, groups: list[dict[str, Any]], trainer: pl.Trainer, length: FitLength) -> str:
    """The reports of weights, and the table of parts and stages; a `GradualUnfreezing` of the Trainer comes first."""
    options = network.options
    schedules = schedules_of(with_parameters(options, groups))
    decided: dict[str, int] | None = None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradualUnfreezing):
            schedules, decided = callback.schedules, callback.decided_steps
    training_at_start(groups, schedules)
    check_moments(trainer, groups, schedules, length)
    lines = []
    for name, report in network.weight_reports.items():
        lines.append(report if name == "init_from" else f"{name}: {report}")
    origins = {name: part.origin for name, part in options.items()}
    lines.append(plan_table(groups, schedules, origins, length, decided))
    return "\n".join(lines)
