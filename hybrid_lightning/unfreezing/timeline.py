"""Which named groups train at which step: functions of their arguments alone."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, at, check_keys, listing
from hybrid_lightning.unfreezing.freezing import set_trainable
from hybrid_lightning.unfreezing.plateau import Plateau
from hybrid_lightning.unfreezing.schedule import Span, UnfreezingSchedule

Group = Mapping[str, Any]
ALWAYS = UnfreezingSchedule.parse("always")
_ONE_STEP = FitLength(1, 1)  # what trains at step 0 does not depend on the length of the run


def label(group: Group) -> str:
    """Part and stage of a group: ``image.layer4`` of ``image.layer4/no_decay``."""
    return str(group["name"]).split("/")[0]


def log_name(group: Group) -> str:
    """Name of a group in logs, ``image.layer4-no_decay``: loggers that keep a file per key make folders of slashes."""
    return str(group["name"]).replace("/", "-")


def stage_name(group: Group) -> str:
    """Name of the group's stage within its part; ``all`` if the part has only one."""
    return label(group).removeprefix(group["part"]).removeprefix(".") or "all"


def stages_by_part(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Part → names of its stages, from input to output."""
    # several groups are of one stage, and a stage whose parameters are all tied to another part has none
    numbered: dict[str, dict[int, str]] = {}
    for group in groups:
        numbered.setdefault(group["part"], {})[group["stage"]] = stage_name(group)
    found = {}
    for part, names in numbered.items():
        found[part] = [names[number] for number in sorted(names)]
    return found


def group_spans(
    groups: Sequence[Group],
    schedules: Mapping[str, UnfreezingSchedule],
    length: FitLength,
    decided: Mapping[str, int] | None = None,
) -> dict[str, Span]:
    """Group name → from which step to which one it trains; `decided`: `label` → step that a plateau decided."""
    spans_of_part: dict[str, dict[str, Span]] = {}
    for part, stages in stages_by_part(groups).items():
        schedule = schedules.get(part, ALWAYS)
        with at(f"unfreeze.{part}"):
            spans_of_part[part] = schedule.spans(stages, length, _of_part(groups, part, decided or {}))
    spans = {}
    for group in groups:
        own = spans_of_part[group["part"]][stage_name(group)]
        spans[group["name"]] = Span(None) if group["fixed"] else own
    return spans


def _of_part(groups: Sequence[Group], part: str, decided: Mapping[str, int]) -> dict[str, int]:
    """The decided steps of one part, by the names of its stages."""
    found = {}
    for group in groups:
        if group["part"] == part and label(group) in decided:
            found[stage_name(group)] = decided[label(group)]
    return found


def waiting_for(
    groups: Sequence[Group],
    schedules: Mapping[str, UnfreezingSchedule],
    length: FitLength,
    decided: Mapping[str, int],
    step: int,
) -> dict[str, Plateau]:
    """`label` → the plateau that this stage waits for at this step; for the arguments see `group_spans`."""
    stages = stages_by_part(groups)
    waiting: dict[str, dict[str, Plateau]] = {}
    for part, schedule in schedules.items():
        own = _of_part(groups, part, decided)
        spans = schedule.spans(stages[part], length, own)
        waiting[part] = schedule.waiting(stages[part], spans, own, step)
    found = {}
    for group in groups:
        plateau = waiting.get(group["part"], {}).get(stage_name(group))
        if plateau is not None and not group["fixed"]:
            found[label(group)] = plateau
    return found


def restoring(
    unfrozen: Iterable[Group], schedules: Mapping[str, UnfreezingSchedule], groups: Sequence[Group]
) -> dict[str, Plateau]:
    """Metric → plateau, of those whose best weights are restored before some of all `groups` are unfrozen."""
    found = {}
    stages = stages_by_part(groups)
    for group in unfrozen:
        schedule = schedules.get(group["part"], ALWAYS)
        plateau = schedule.of_stage(stages[group["part"]], stage_name(group)).restore_best
        if plateau is not None:
            found[plateau.metric] = plateau
    return found


def training_at_start(groups: Sequence[Group], schedules: Mapping[str, UnfreezingSchedule]) -> set[str]:
    """Names of the groups that train from step 0."""
    stages = stages_by_part(groups)
    check_keys(schedules, stages, "unfreeze", "part")
    for part, schedule in schedules.items():
        with at(f"unfreeze.{part}"):
            schedule.refuse_other_stages(stages[part])
    spans = group_spans(groups, schedules, _ONE_STEP)
    training = {name for name, span in spans.items() if span.start == 0}
    learning = [group for group in groups if group["name"] in training]
    parts = listing(dict.fromkeys(group["part"] for group in groups))
    if not learning:
        raise ConfigError(
            f"everything is frozen at step 0, so nothing can be learned. Set 'unfreeze: always' for at least one of: "
            f"{parts}.",
            "unfreeze",
        )
    # a scheduler may begin at 0
    if all(group.get("initial_lr", group["lr"]) == 0 for group in learning):
        raise ConfigError(
            f"all that trains from step 0 on has the rate 0, so nothing can be learned. Set 'lr_scale' above 0 for at "
            f"least one of: {parts}.",
            "lr_scale",
        )
    return training


@at("unfreeze")
def refuse_impossible(spans: Mapping[str, Span], length: FitLength) -> None:
    """Checks the moments that are known from the start."""
    total = float("inf") if length.total_steps is None else length.total_steps
    # a start that a metric decides is not known yet, and never late
    late = [f"{name} at step {span.start}" for name, span in spans.items() if (span.start or 0) >= total]
    if late:
        raise ConfigError(
            f"the run ends after {total} steps, before these would train: {listing(late, 6)}. Unfreeze earlier, train "
            f"longer, or write 'never'."
        )
    for name, span in spans.items():
        if span.start is not None and span.stop is not None and span.stop <= span.start:
            raise ConfigError(
                f"{name} is frozen again at step {span.stop}, before it trains at step {span.start}. Freeze it later, "
                f"or write 'never'."
            )
    # something trains at step 0, so a gap can only begin where something is frozen again
    for stop in sorted(span.stop for span in spans.values() if span.stop is not None):
        if stop < total and not any(span.trains(stop) for span in spans.values()):
            raise ConfigError(f"from step {stop} on nothing trains. Leave out 'freeze' for one part.")


@at("unfreeze")
def refuse_moved(spans: Mapping[str, Span], now: Mapping[str, Span], length: FitLength, step: int) -> None:
    """Raises `ConfigError` if the run has become of another length, which moves moments that are still to come."""
    moved = []
    for name, span in spans.items():
        changed = [moment for moment, other in zip(span, now[name], strict=True) if moment != other]
        if any(moment is None or moment > step for moment in changed):
            moved.append(name)
    if moved:
        raise ConfigError(
            f"this epoch has {length.steps_per_epoch} steps and the run {length.total_steps}, other numbers than at "
            f"the start, so that moments in epochs or percent would move, for {listing(moved, 4)}. Write them in "
            f"steps, or give each epoch as many batches."
        )


def record_starts(
    groups: Sequence[dict[str, Any]], spans: Mapping[str, Span], training: Sequence[str], step: int
) -> None:
    """Writes into each group since when it trains; a group that is frozen again keeps it."""
    for group in groups:
        start = spans[group["name"]].start
        if start is None or step < start:
            group["unfrozen_at"] = None
        elif group["name"] in training and group["unfrozen_at"] is None:
            group["unfrozen_at"] = step


def set_flags(groups: Sequence[Group], schedules: Mapping[str, UnfreezingSchedule], training: Collection[str]) -> bool:
    """Sets ``requires_grad`` of the parts with a schedule, others stay as they arrived; whether one has changed."""
    has_changed = False
    for group in groups:
        trains = group["name"] in training
        is_set = all(parameter.requires_grad is trains for parameter in group["params"])
        if group["part"] in schedules and not is_set:
            set_trainable(group["params"], trains)
            has_changed = True
    return has_changed


def part_of_parameters(groups: Sequence[Group]) -> dict[nn.Parameter, str]:
    """Parameter → its part."""
    found = {}
    for group in groups:
        found.update(dict.fromkeys(group["params"], str(group["part"])))
    return found


def next_change(spans: Mapping[str, Span], step: int) -> float:
    """The first step after `step` at which something starts or stops to train; infinite if there is none."""
    found = float("inf")
    for span in spans.values():
        for moment in span:
            if moment is not None and moment > step:
                found = min(found, moment)
    return found


def trainable_shares(groups: Sequence[Group]) -> dict[str, float]:
    """Part → share of its parameters that train."""
    training: dict[str, int] = {}
    total: dict[str, int] = {}
    for group in groups:
        part = group["part"]
        for parameter in group["params"]:
            training[part] = training.get(part, 0) + parameter.numel() * parameter.requires_grad
            total[part] = total.get(part, 0) + parameter.numel()
    return {part: training[part] / total[part] for part in total}
