"""The plan: one table of what trains when, and at which rate."""

from collections.abc import Mapping, Sequence
from typing import Any

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import format_table
from hybrid_lightning.unfreezing.schedule import Span, UnfreezingSchedule
from hybrid_lightning.unfreezing.timeline import ALWAYS, group_spans, stage_name, stages_by_part

COLUMNS = ("part", "origin", "stage", "parameters", "lr", "weight decay", "unfreezes at", "mode")
_RIGHT_ALIGNED = ("parameters", "lr")


def plan_rows(
    groups: list[dict[str, Any]],
    schedules: Mapping[str, UnfreezingSchedule],
    origins: Mapping[str, str],
    length: FitLength,
    recorded: Mapping[str, int] | None = None,
    holds: Sequence[Sequence[int]] = (),
) -> list[dict[str, str]]:
    """One row per part and stage, in the order of the groups.

    Args:
        groups: From `named_param_groups`.
        schedules: Part → unfreezing schedule; parts that are not named train from the start.
        origins: Part → ``pretrained`` or ``untrained``.
        length: Turns durations into steps.
        recorded: Part and stage → step that a plateau has decided.
        holds: Windows in which nothing starts, see `held`.
    """
    spans = group_spans(groups, schedules, length, recorded, holds)
    stages = stages_by_part(groups)
    by_stage: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for group in groups:
        by_stage.setdefault((group["part"], group["stage"]), []).append(group)
    rows = []
    for (part, _), of_stage in by_stage.items():
        first = next((group for group in of_stage if not group["fixed"]), of_stage[0])
        span = spans[first["name"]]
        schedule = schedules.get(part, ALWAYS)
        moment = "never (arrived frozen)" if first["fixed"] else schedule.describe(stages[part], stage_name(first))
        steps = f"step {span.start}" if span.start else ""
        steps += f"{' ' if steps else ''}to {'' if steps else 'step '}{span.stop}" if span.stop else ""
        rows.append(
            {
                "part": part,
                "origin": origins.get(part, "untrained"),
                "stage": stage_name(first),
                "parameters": _parameters(of_stage),
                "lr": f"{first.get('initial_lr', first['lr']):.3g}",
                "weight decay": ", ".join(
                    dict.fromkeys(
                        f"{group['weight_decay']:g}" for group in of_stage if group["fixed"] == first["fixed"]
                    )
                ),
                "unfreezes at": f"{moment} ({steps})" if steps else moment,
                "mode": _mode(span, moment),
            }
        )
    return rows


def _parameters(groups: Sequence[Mapping[str, Any]]) -> str:
    """How many a stage has; of a stage that can train in part only, such as its adapters, how many of them can."""
    numbers = [(sum(p.numel() for p in group["params"]), group["fixed"]) for group in groups]
    free, every = sum(n for n, fixed in numbers if not fixed), sum(n for n, _ in numbers)
    return f"{free:,} of {every:,}" if 0 < free < every else f"{every:,}"


def _mode(span: Span, moment: str) -> str:
    """The modes of a stage in their order; one that waits for a metric may train some day."""
    modes = [] if span.start == 0 else ["eval"]
    if span.start is not None or not moment.startswith("never"):
        modes.append("train")
    return ", then ".join([*modes, "eval"] if span.stop is not None and "train" in modes else modes)


def plan_table(
    groups: list[dict[str, Any]],
    schedules: Mapping[str, UnfreezingSchedule],
    origins: Mapping[str, str],
    length: FitLength,
    recorded: Mapping[str, int] | None = None,
    holds: Sequence[Sequence[int]] = (),
) -> str:
    """The rows of `plan_rows` as text, with the length of the fit below.

    Two values under weight decay are those of parameters with two or more dimensions and of all others.
    """
    end = "no end" if length.total_steps is None else f"{length.total_steps} steps"
    epoch = "unknown" if length.steps_per_epoch is None else f"{length.steps_per_epoch} steps"
    rows = plan_rows(groups, schedules, origins, length, recorded, holds)
    return f"{format_table(rows, COLUMNS, _RIGHT_ALIGNED)}\nlength of the fit: {end}; of an epoch: {epoch}"
