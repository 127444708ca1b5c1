"""Phases of a fit: which named groups train at which step. Functions of their arguments alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.unfreezing.plateau import Plateau
from hybrid_lightning.unfreezing.schedule import Span, UnfreezingSchedule

Group = Mapping[str, Any]
ALWAYS = UnfreezingSchedule.parse("always")
_AT_START = FitLength(1, 1)
"""Length for asking what trains at step 0, which does not depend on the length."""


def label(group: Group) -> str:
    """Part and stage of a group: ``image.layer4`` of ``image.layer4/no_decay``."""
    return str(group["name"]).split("/")[0]


def stage_name(group: Group) -> str:
    """Name of the group's stage within its part; ``all`` if the part has only one."""
    return label(group).removeprefix(group["part"]).removeprefix(".") or "all"


def stages_by_part(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Part → names of its stages, from input to output."""
    found: dict[str, dict[int, str]] = {}
    for group in groups:
        found.setdefault(group["part"], {})[group["stage"]] = stage_name(group)
    return {part: [stages[index] for index in sorted(stages)] for part, stages in found.items()}


def refuse_other_parts(groups: Sequence[Group], schedules: Mapping[str, UnfreezingSchedule]) -> None:
    """Raises `ConfigError` if a schedule names an unknown part or stage."""
    stages = stages_by_part(groups)
    for part, schedule in schedules.items():
        if part not in stages:
            raise unknown("unfreeze", "part", part, stages)
        schedule.refuse_other_stages(stages[part], f"unfreeze.{part}")


def group_spans(
    groups: Sequence[Group],
    schedules: Mapping[str, UnfreezingSchedule],
    length: FitLength,
    recorded: Mapping[str, int] | None = None,
    holds: Sequence[Sequence[int]] = (),
) -> dict[str, Span]:
    """Group name → from which step to which one it trains.

    Args:
        groups: From `named_param_groups`; those that are ``fixed`` never train.
        schedules: Part → schedule; a part that is not named trains always.
        length: Turns durations into steps.
        recorded: `label` → step that a plateau decided.
        holds: Windows in which nothing starts, see `held`.
    """
    spans: dict[str, dict[str, Span]] = {}
    for part, stages in stages_by_part(groups).items():
        decided = _of_part(groups, part, recorded or {})
        spans[part] = schedules.get(part, ALWAYS).spans(stages, length, decided, f"unfreeze.{part}", holds)
    return {g["name"]: Span(None) if g["fixed"] else spans[g["part"]][stage_name(g)] for g in groups}


def _of_part(groups: Sequence[Group], part: str, by_label: Mapping[str, Any]) -> dict[str, Any]:
    return {stage_name(g): by_label[label(g)] for g in groups if g["part"] == part and label(g) in by_label}


def training_at_start(groups: Sequence[Group], schedules: Mapping[str, UnfreezingSchedule]) -> set[str]:
    """Names of the groups that train from step 0.

    Raises:
        ConfigError: If a schedule names an unknown part or stage, or nothing trains.
    """
    refuse_other_parts(groups, schedules)
    spans = group_spans(groups, schedules, _AT_START)
    training = {name for name, span in spans.items() if span.start == 0}
    if not training:
        raise ConfigError(
            f"unfreeze: everything is frozen at step 0, so nothing can be learned. "
            f"Set 'unfreeze: always' for at least one of: {listing(stages_by_part(groups))}."
        )
    return training


def waiting_for(
    groups: Sequence[Group],
    schedules: Mapping[str, UnfreezingSchedule],
    length: FitLength,
    recorded: Mapping[str, int],
    step: int,
    holds: Sequence[Sequence[int]] = (),
) -> dict[str, Plateau]:
    """`label` → the plateau that this stage waits for at this step; for the arguments see `group_spans`."""
    stages = stages_by_part(groups)
    waiting: dict[str, dict[str, Plateau]] = {}
    for part, schedule in schedules.items():
        decided = _of_part(groups, part, recorded)
        spans = schedule.spans(stages[part], length, decided, holds=holds)
        waiting[part] = schedule.waiting(stages[part], spans, decided, step)
    return {
        label(g): waiting[g["part"]][stage_name(g)]
        for g in groups
        if not g["fixed"] and stage_name(g) in waiting.get(g["part"], {})
    }


def refuse_impossible(spans: Mapping[str, Span], length: FitLength) -> None:
    """Checks the moments that are known from the start.

    Raises:
        ConfigError: If a group would start after the end of the fit, or after it is frozen again; or if there are steps
            at which nothing trains.
    """
    total = length.total_steps
    late = [f"{n} at step {s.start}" for n, s in spans.items() if total is not None and (s.start or 0) >= total]
    if late:
        raise ConfigError(
            f"unfreeze: the fit ends after {total} steps, before these would train: {listing(late, 6)}. "
            f"Unfreeze earlier, train longer, or write 'never'."
        )
    for name, span in spans.items():
        if span.start is not None and span.stop is not None and span.stop <= span.start:
            raise ConfigError(
                f"unfreeze: {name} is frozen again at step {span.stop}, before it trains at step {span.start}. "
                f"Freeze it later, or write 'never'."
            )
    idle = idle_from(spans, length)
    if idle is not None:
        raise ConfigError(f"unfreeze: from step {idle} on nothing trains. Leave out 'freeze' for one part.")


def idle_from(spans: Mapping[str, Span], length: FitLength) -> int | None:
    """The first step of the fit from which on nothing trains, if only for a while."""
    total = length.total_steps
    stops = sorted({s.stop for s in spans.values() if s.stop is not None and (total is None or s.stop < total)})
    return next((stop for stop in stops if not any(span.trains(stop) for span in spans.values())), None)


def trainable_shares(groups: Sequence[Group]) -> dict[str, float]:
    """Part → share of its parameters that train."""
    totals: dict[str, list[int]] = {}
    for group in groups:
        counts = totals.setdefault(group["part"], [0, 0])
        for parameter in group["params"]:
            counts[0] += parameter.numel() * parameter.requires_grad
            counts[1] += parameter.numel()
    return {part: trains / total for part, (trains, total) in totals.items()}
