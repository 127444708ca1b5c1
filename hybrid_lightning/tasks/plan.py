"""The plan of a fit: what was loaded, and what trains when and at which rate."""

from typing import Any

import lightning.pytorch as pl

from hybrid_lightning.duration import FitLength
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.tasks.default_callbacks import schedules_of
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing, check_moments
from hybrid_lightning.unfreezing.plan import plan_rows, plan_table
from hybrid_lightning.unfreezing.timeline import training_at_start


def training_plan(network: HybridNetwork, groups: list[dict[str, Any]], trainer: pl.Trainer, length: FitLength) -> str:
    """The reports of weights, and the table of parts and stages.

    Args:
        network: With the options of its parts.
        groups: The optimizer's param groups.
        trainer: A `GradualUnfreezing` among its callbacks decides what unfreezes; else the parts' options do.
        length: Length of the fit.
    """
    options = network.options
    with_parameters = {group["part"] for group in groups}
    schedules = schedules_of({name: part for name, part in options.items() if name in with_parameters})
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
    lines.append(plan_table(plan_rows(groups, schedules, origins, length, decided), length))
    return "\n".join(lines)
