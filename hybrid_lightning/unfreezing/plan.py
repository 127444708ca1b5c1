"""The plan: one table of what trains when, and at which rate."""

from collections.abc import Mapping, Sequence

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import format_table
from hybrid_lightning.unfreezing.schedule import Span, UnfreezingSchedule
from hybrid_lightning.unfreezing.timeline import ALWAYS, Group, group_spans, label, stage_name, stages_by_part

COLUMNS = ("part", "origin", "stage", "parameters", "lr", "weight decay", "unfreezes at", "mode")
_RIGHT_ALIGNED = ("parameters", "lr")


def plan_rows(
    groups: Sequence[Group],
    schedules: Mapping[str, UnfreezingSchedule],
    origins: Mapping[str, str],
    length: FitLength,
    decided: Mapping[str, int] | None = None,
) -> list[dict[str, str]]:
    """One row per part and stage, in the order of the groups, after the random parts without parameters.

    `origins`: part → ``pretrained``, ``untrained`` or ``random``.
    """
    spans = group_spans(groups, schedules, length, decided)
    stages = stages_by_part(groups)
    by_stage: dict[str, list[Group]] = {}
    for group in groups:
        by_stage.setdefault(label(group), []).append(group)
    rows = [_row_of_random(part) for part, origin in origins.items() if origin == "random" and part not in stages]
    for of_stage in by_stage.values():
        # a stage whose adapters train has groups that are fixed beside others; it is described by the others
        shown = next((group for group in of_stage if not group["fixed"]), of_stage[0])
        part, stage = shown["part"], stage_name(shown)
        span = spans[shown["name"]]
        # two values are those of parameters with two or more dimensions and of all others
        decays = dict.fromkeys(f"{one['weight_decay']:g}" for one in of_stage if one["fixed"] == shown["fixed"])
        schedule = schedules.get(part, ALWAYS)
        moment = "never (arrived frozen)" if shown["fixed"] else schedule.describe(stages[part], stage)
        row = {
            "part": part,
            "origin": origins.get(part, "untrained"),
            "stage": stage,
            "parameters": _parameters(of_stage),
            # the configured rate, also while a scheduler changes it
            "lr": f"{shown.get('initial_lr', shown['lr']):.3g}",
            "weight decay": ", ".join(decays),
            "unfreezes at": moment + _steps(span),
            "mode": _mode(span, moment),
        }
        rows.append(row)
    return rows


def with_sharing(rows: Sequence[dict[str, str]], shares: Mapping[str, str]) -> list[dict[str, str]]:
    """The rows with one for each part that has the module of another one, behind the rows of the latter.

    `shares`: part → the part whose module it has.
    """
    found = list(rows)
    for part, owner in shares.items():
        places = [place for place, row in enumerate(found) if row["part"] == owner]
        row = dict.fromkeys(COLUMNS, "-")
        row |= {"part": part, "parameters": "0", "unfreezes at": f"with {owner}, whose module it has"}
        found.insert(max(places, default=len(found) - 1) + 1, row)
    return found


def _row_of_random(part: str) -> dict[str, str]:
    """The row of a random part without parameters."""
    nothing = dict.fromkeys(COLUMNS, "-")
    return nothing | {"part": part, "origin": "random", "parameters": "0", "unfreezes at": "never"}


def _parameters(groups: Sequence[Group]) -> str:
    """How many a stage has; of a stage that can train in part only, such as its adapters, how many of them can."""
    free, every = 0, 0
    for group in groups:
        number = sum(parameter.numel() for parameter in group["params"])
        every += number
        free += 0 if group["fixed"] else number
    return f"{free:,} of {every:,}" if 0 < free < every else f"{every:,}"


def _steps(span: Span) -> str:
    """The moments in steps; nothing for those that are not known yet, or are the start of the run."""
    start = f"step {span.start}" if span.start else ""
    if not span.stop:
        return f" ({start})" if start else ""
    return f" ({start} to {span.stop})" if start else f" (to step {span.stop})"


def _mode(span: Span, moment: str) -> str:
    """The modes of a stage in their order; one that waits for a metric may train some day."""
    modes = [] if span.start == 0 else ["eval"]
    if span.start is not None or not moment.startswith("never"):
        modes.append("train")
        if span.stop is not None:
            modes.append("eval")
    return ", then ".join(modes)


def plan_table(rows: Sequence[Mapping[str, str]], length: FitLength) -> str:
    """The rows of `plan_rows` as text, with the length of the run below."""
    end = "no end" if length.total_steps is None else f"{length.total_steps} steps"
    epoch = "unknown" if length.steps_per_epoch is None else f"{length.steps_per_epoch} steps"
    return f"{format_table(rows, COLUMNS, _RIGHT_ALIGNED)}\nlength of the run: {end}; of an epoch: {epoch}"
