"""Unfreezing schedules: when each stage of a part trains, as a function without memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hybrid_lightning.duration import Duration, FitLength
from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.optim.groups import matches
from hybrid_lightning.unfreezing.plateau import EXAMPLE, Plateau

_KEYS = ("start", "every", "freeze", "restore_best", "stages")
Trigger = Duration | Plateau
"""What starts something: a duration, or the plateau of a metric."""


def parse_trigger(value: object, where: str) -> Trigger:
    """Reads a duration, or ``{plateau: val/loss, patience: 2 validations}``.

    Raises:
        ConfigError: If `value` is neither.
    """
    if isinstance(value, Mapping):
        if "plateau" not in value:
            raise ConfigError(f"{where}: {dict(value)!r} is no moment. Write a duration such as 10%, or {EXAMPLE}.")
        return Plateau.parse(value, where)
    duration = Duration.parse(value, where)
    if duration.unit == "validations":
        raise ConfigError(f"{where}: '{duration}' cannot be turned into steps. Write epochs, steps, % or {EXAMPLE}.")
    return duration


class Span(NamedTuple):
    """From which step to which one a stage trains: ``start <= step < stop``; None is never."""

    start: int | None
    stop: int | None = None

    def trains(self, step: int) -> bool:
        """Whether the stage trains at this step."""
        return self.start is not None and self.start <= step and (self.stop is None or step < self.stop)


def held(start: int, holds: Sequence[Sequence[int]]) -> int:
    """The step at which something starts that is due at `start`.

    Args:
        start: The step at which it is due.
        holds: Pairs (since, until) in the order in which they were decided: what is due between them starts at `until`.
            What had started by `since` is not touched.
    """
    for since, until in holds:
        if since < start < until:
            start = until
    return start


@dataclass(frozen=True)
class UnfreezingSchedule:
    """When the stages of one part train.

    Args:
        start: When the stage nearest to the output starts; None is never.
        every: From one stage to the next one towards the input; None unfreezes all stages together.
        freeze: When the stages are frozen again, counted from the start of the fit; None is never.
        freeze_every: Time from the freezing of one stage, the first one at the input, to that of the next one towards
            the output; None freezes all together.
        restore_best: Metric whose best weights so far are restored before an unfreezing; None restores nothing.
        stages: Pattern of stage names → schedule of these stages alone; the first pattern that fits counts.
    """

    start: Trigger | None
    every: Trigger | None = None
    freeze: Duration | None = None
    freeze_every: Duration | None = None
    restore_best: Plateau | None = None
    stages: tuple[tuple[str, "UnfreezingSchedule"], ...] = ()

    @classmethod
    def parse(cls, value: object, where: str = "unfreeze") -> "UnfreezingSchedule":
        """Reads a schedule.

        Args:
            value: ``always``; ``never``; a duration; a plateau, ``{plateau: val/loss, patience: 2 validations}``;
                ``{start: 10%, every: 1 epochs}``, top-down by stage, where both may be plateaus; with ``freeze: 80%``
                or ``freeze: {start: 50%, every: 1 epochs}`` (from the input on) and ``restore_best: val/loss``; or
                ``{stages: {layer4: 10%, "*": never}}``.
            where: Config path named in errors.

        Raises:
            ConfigError: If `value` is none of these.
        """
        if isinstance(value, UnfreezingSchedule):
            return value
        if value == "always":
            return cls(Duration(0, "steps"))
        if value == "never":
            return cls(None)
        if not isinstance(value, Mapping):
            try:
                return cls(parse_trigger(value, where))
            except ConfigError as error:
                raise ConfigError(f"{error} Or: always, never, {{start: 10%, every: 1 epochs}}, {EXAMPLE}.") from None
        if "plateau" in value:
            rest = {key: value[key] for key in ("freeze", "restore_best") if key in value}
            start = Plateau.parse({key: entry for key, entry in value.items() if key not in rest}, where)
            best = _parse_restore_best(rest.get("restore_best"), start, f"{where}.restore_best")
            return cls(start, None, *_parse_freeze(rest.get("freeze"), f"{where}.freeze"), best)
        for key in value:
            if key not in _KEYS:
                raise unknown(where, "key", str(key), _KEYS)
        if "stages" in value:
            return cls(None, stages=_parse_stages(value, where))
        return cls._parse_whole(value, where)

    @classmethod
    def _parse_whole(cls, value: Mapping[str, Any], where: str) -> "UnfreezingSchedule":
        if not {"every", "freeze", "restore_best"} & value.keys():
            raise ConfigError(f"{where}: 'every' is missing. Write {{start: 10%, every: 1 epochs}} or only a duration.")
        start = parse_trigger(value.get("start", "0 steps"), f"{where}.start")
        every = parse_trigger(value["every"], f"{where}.every") if "every" in value else None
        freeze, freeze_every = _parse_freeze(value.get("freeze"), f"{where}.freeze")
        best = _parse_restore_best(value.get("restore_best"), start, f"{where}.restore_best")
        return cls(start, every, freeze, freeze_every, best)

    def of_stage(self, stage: str) -> "UnfreezingSchedule":
        """The schedule of one stage; that of the part, unless stages have their own."""
        for pattern, schedule in self.stages:
            if matches(pattern, stage):
                return schedule
        return self

    def refuse_other_stages(self, stages: Sequence[str], where: str) -> None:
        """Raises `ConfigError` if a pattern fits no stage, or a stage has no schedule."""
        for pattern, _ in self.stages:
            if not any(matches(pattern, stage) for stage in stages):
                raise unknown(f"{where}.stages", "stage", pattern, stages)
        forgotten = [s for s in stages if not any(matches(pattern, s) for pattern, _ in self.stages)]
        if self.stages and forgotten:
            raise ConfigError(f"{where}.stages: nothing is said about {listing(forgotten, 5)}. Name them, or add '*'.")

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics that have to be logged."""
        watched = [entry for entry in (self.start, self.every, self.restore_best) if isinstance(entry, Plateau)]
        return {plateau.metric for plateau in watched}.union(*(schedule.metrics for _, schedule in self.stages))

    def triggers(self, stages: Sequence[str]) -> dict[str, tuple[Trigger | None, str | None]]:
        """Stage → what starts it, and the stage on whose start that follows (None: it is counted from step 0).

        Args:
            stages: Names of all stages of the part, from input to output.
        """
        if self.stages:
            return {stage: (self.of_stage(stage).start, None) for stage in stages}
        after = [*stages[1:], None] if self.every is not None else [None] * len(stages)
        return {s: (self.start if a is None else self.every, a) for s, a in zip(stages, after, strict=True)}

    def spans(
        self,
        stages: Sequence[str],
        length: FitLength,
        recorded: Mapping[str, int] | None = None,
        where: str = "unfreeze",
        holds: Sequence[Sequence[int]] = (),
    ) -> dict[str, Span]:
        """When each stage trains, in optimizer steps: a function of its arguments alone.

        Args:
            stages: Names of all stages of the part, from input to output.
            length: Length of the fit, which turns epochs and percentages into steps.
            recorded: Stage → step that a plateau decided; a plateau that is missing has not come yet.
            where: Config path named in errors.
            holds: Windows in which nothing starts, see `held`; what follows a stage is counted from its real start.

        Raises:
            ConfigError: If a unit cannot be turned into steps.
        """
        spans: dict[str, Span] = {}
        for stage, (trigger, after) in reversed(self.triggers(stages).items()):
            before = 0 if after is None else spans[after].start
            start = None
            if isinstance(trigger, Plateau):
                start = (recorded or {}).get(stage)
            elif trigger is not None and before is not None:
                start = before + trigger.steps(length, where)
            start = None if start is None else held(start, holds)
            spans[stage] = Span(start, self._stop(stages, stage, length, where))
        return spans

    def _stop(self, stages: Sequence[str], stage: str, length: FitLength, where: str) -> int | None:
        own = self.of_stage(stage)
        if own.freeze is None:
            return None
        every = own.freeze_every.steps(length, where) if own.freeze_every is not None else 0
        return own.freeze.steps(length, f"{where}.freeze") + stages.index(stage) * every

    def waiting(
        self, stages: Sequence[str], spans: Mapping[str, Span], recorded: Mapping[str, int], step: int
    ) -> dict[str, Plateau]:
        """The stages that wait for a plateau at this step, and for which one.

        A stage that follows another one waits from the start of that one on, and none waits once it is frozen for good.
        """
        found = {}
        for stage, (trigger, after) in self.triggers(stages).items():
            start = 0 if after is None else spans[after].start
            stop = spans[stage].stop
            begun = start is not None and start <= step and (stop is None or step < stop)
            if isinstance(trigger, Plateau) and stage not in recorded and begun:
                found[stage] = trigger
        return found

    def describe(self, stages: Sequence[str], stage: str) -> str:
        """The moments of a stage as they were written: ``10% + 2 × 1 epoch, until 80%``."""
        own = self.of_stage(stage)
        if own.start is None:
            return "never"
        at_start = isinstance(own.start, Duration) and own.start.value == 0
        text = "start" if at_start else str(own.start)
        above = len(stages) - 1 - stages.index(stage)
        if own.every is not None and above:
            text += f" + {above} × {own.every}" if isinstance(own.every, Duration) else f" + {above} × ({own.every})"
        if own.freeze is None:
            return text
        below = stages.index(stage) if own.freeze_every is not None else 0
        return f"{text}, until {own.freeze}" + (f" + {below} × {own.freeze_every}" if below else "")


def _parse_stages(value: Mapping[str, Any], where: str) -> tuple[tuple[str, UnfreezingSchedule], ...]:
    stages = value["stages"]
    if len(value) > 1 or not isinstance(stages, Mapping) or not stages:
        raise ConfigError(f"{where}.stages: give each stage its schedule, and nothing beside: {{stages: {{a: 10%}}}}.")
    schedules = {str(s): UnfreezingSchedule.parse(v, f"{where}.stages.{s}") for s, v in stages.items()}
    for stage, schedule in schedules.items():
        if schedule.stages or schedule.every is not None or schedule.freeze_every is not None:
            raise ConfigError(f"{where}.stages.{stage}: a single stage has no 'stages' and no 'every'.")
    return tuple(schedules.items())


def _parse_freeze(value: object, where: str) -> tuple[Duration | None, Duration | None]:
    if value is None:
        return None, None
    given: Mapping[str, Any] = value if isinstance(value, Mapping) else {"start": value}
    for key in given:
        if key not in ("start", "every"):
            raise unknown(where, "key", str(key), ("start", "every"))
    start = parse_trigger(given.get("start"), f"{where}.start" if value is given else where)
    every = parse_trigger(given["every"], f"{where}.every") if "every" in given else None
    if isinstance(start, Plateau) or isinstance(every, Plateau):
        raise ConfigError(f"{where}: freezing waits for no metric. Write a duration such as 80%.")
    if start.value == 0:
        raise ConfigError(f"{where}: '{start}' would freeze before the first step. Write 'never' as the schedule.")
    return start, every


def _parse_restore_best(value: object, start: Trigger, where: str) -> Plateau | None:
    if value is None or value is False:
        return None
    if value is True and isinstance(start, Plateau):
        return start
    if not isinstance(value, str | Mapping):
        raise ConfigError(f"{where}: {value!r} names no metric. Write {where.rpartition('.')[2]}: val/loss.")
    facts = {"plateau": value} if isinstance(value, str) else {"plateau": value.get("metric"), **value}
    return Plateau.parse({"patience": "1 validations", **{k: v for k, v in facts.items() if k != "metric"}}, where)
