"""Unfreezing schedules: when each stage of a part trains, as a function without memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hybrid_lightning.duration import Duration, FitLength
from hybrid_lightning.errors import ConfigError, at, check_keys, listing, unknown
from hybrid_lightning.optim.groups import matches
from hybrid_lightning.unfreezing.plateau import EXAMPLE, Plateau

FORMS = ("plateau", "start", "stages")
"""Keys each of which stands in one form of a written schedule alone."""
_POSITIONS = {"first": 0, "last": -1}
"""Word for a stage by its place from input to output, unless a stage is named so."""
Trigger = Duration | Plateau  # what starts something: a duration, or the plateau of a metric


class Span(NamedTuple):
    """From which step to which one a stage trains: ``start <= step < stop``; None is never."""

    start: int | None
    stop: int | None = None

    def trains(self, step: int) -> bool:
        """Whether the stage trains at this step."""
        return self.start is not None and self.start <= step and (self.stop is None or step < self.stop)


@dataclass(frozen=True)
class UnfreezingSchedule:
    """When the stages of one part train.

    Args:
        start: When the stage nearest to the output starts; None is never.
        every: From one stage to the next one towards the input; None unfreezes all stages together.
        freeze: When the stages are frozen again, counted from the start of the run; None is never.
        freeze_every: Time from the freezing of one stage, the first one at the input, to that of the next one towards
            the output; None freezes all together.
        restore_best: Metric whose best weights so far are restored before an unfreezing; None restores nothing.
        stages: Pattern of stage names, or ``first`` (at the input) or ``last`` → schedule of these stages alone; the
            first that fits counts.
        given: What `parse` read, for checkpoints and configs.
    """

    start: Trigger | None
    every: Trigger | None = None
    freeze: Duration | None = None
    freeze_every: Duration | None = None
    restore_best: Plateau | None = None
    stages: tuple[tuple[str, "UnfreezingSchedule"], ...] = ()
    given: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def parse(cls, value: object, place: str = "") -> "UnfreezingSchedule":
        """Reads a schedule.

        Args:
            value: ``always``; ``never``; a duration; a plateau, ``{plateau: val/loss, patience: 2 validations}``;
                ``{start: 10%, every: 1 epochs}``, top-down by stage, where both may be plateaus; with ``freeze: 80%``
                or ``freeze: {start: 50%, every: 1 epochs}`` (from the input on) and ``restore_best: val/loss``; or
                ``{stages: {layer4: 10%, "*": never}}``, where ``first`` and ``last`` need no name.
            place: Path of the setting, within the places that `at` adds.

        Raises:
            ConfigError: If `value` is none of these.
        """
        if isinstance(value, UnfreezingSchedule):
            return value
        with at(place):
            if not isinstance(value, Mapping):
                schedule = cls(_parse_word(value))
            elif "stages" in value:
                schedule = cls(None, stages=_parse_stages(value))
            else:
                schedule = cls._parse_mapping(value)
        return replace(schedule, given=value)

    @classmethod
    def _parse_mapping(cls, value: Mapping[str, Any]) -> "UnfreezingSchedule":
        start: Trigger
        every = None
        if "plateau" in value:
            start = Plateau.parse({key: given for key, given in value.items() if key not in ("freeze", "restore_best")})
        else:
            check_keys(value, ("start", "every", "freeze", "restore_best", "stages"))
            if value.keys() <= {"start"}:
                raise ConfigError("'every' is missing. Write {start: 10%, every: 1 epochs} or only a duration.")
            start = parse_trigger(value.get("start", "0 steps"), "start")
            every = parse_trigger(value["every"], "every") if "every" in value else None
        freeze, freeze_every = _parse_freeze(value.get("freeze"))
        return cls(start, every, freeze, freeze_every, _parse_restore_best(value.get("restore_best"), start))

    def of_stage(self, stages: Sequence[str], stage: str) -> "UnfreezingSchedule":
        """The schedule of one stage; that of the part, unless stages have their own."""
        for pattern, schedule in self.stages:
            if _fits(pattern, stages, stage):
                return schedule
        return self

    def refuse_other_stages(self, stages: Sequence[str]) -> None:
        """Raises `ConfigError` if a pattern fits no stage, or a stage has no schedule."""
        if not self.stages:
            return
        # a stage without a schedule would have to be guessed, so all of them are named
        forgotten = list(stages)
        for pattern, _ in self.stages:
            if not any(_fits(pattern, stages, stage) for stage in stages):
                raise unknown("stages", "stage", pattern, stages)
            forgotten = [stage for stage in forgotten if not _fits(pattern, stages, stage)]
        if forgotten:
            raise ConfigError(f"{listing(forgotten, 5)} without a schedule. Name each stage, or add '*'.", "stages")

    @property
    def plateaus(self) -> list[Plateau]:
        """What the schedule waits for or goes back to."""
        found = [each for each in (self.start, self.every, self.restore_best) if isinstance(each, Plateau)]
        for _, schedule in self.stages:
            found += schedule.plateaus
        return found

    @property
    def restores(self) -> bool:
        """Whether the best weights are restored before an unfreezing."""
        return self.restore_best is not None or any(schedule.restores for _, schedule in self.stages)

    @property
    def metrics(self) -> set[str]:
        """Names of the metrics that have to be logged."""
        return {plateau.metric for plateau in self.plateaus}

    def triggers(self, stages: Sequence[str]) -> dict[str, tuple[Trigger | None, str | None]]:
        """Stage → what starts it, and the stage from whose start that counts (None: from step 0).

        From the output to the input, so that a stage comes after the one that it follows. The names of `stages` are
        those of all stages of the part, from input to output; so they are in the methods below.
        """
        found: dict[str, tuple[Trigger | None, str | None]] = {}
        above = None
        for stage in reversed(stages):
            if above is None or self.every is None:
                found[stage] = self.of_stage(stages, stage).start, None
            else:
                found[stage] = self.every, above
            above = stage
        return found

    def spans(
        self, stages: Sequence[str], length: FitLength, decided: Mapping[str, int] | None = None
    ) -> dict[str, Span]:
        """Stage → the steps at which it trains, from the output to the input; `decided`: of plateaus that have come."""
        spans: dict[str, Span] = {}
        # in the order of `triggers`, so that the stage above has its start already
        for stage, (trigger, above) in self.triggers(stages).items():
            since = 0 if above is None else spans[above].start
            start = None
            if isinstance(trigger, Plateau):
                start = (decided or {}).get(stage)
            elif trigger is not None and since is not None:
                start = since + trigger.steps(length)
            spans[stage] = Span(start, self._stop(stages, stage, length))
        return spans

    def _stop(self, stages: Sequence[str], stage: str, length: FitLength) -> int | None:
        own = self.of_stage(stages, stage)
        if own.freeze is None:
            return None
        stop = own.freeze.steps(length, "freeze")
        if own.freeze_every is not None:
            stop += stages.index(stage) * own.freeze_every.steps(length, "freeze")
        return stop

    def waiting(
        self, stages: Sequence[str], spans: Mapping[str, Span], decided: Mapping[str, int], step: int
    ) -> dict[str, Plateau]:
        """The stages that wait for a plateau at this step, and for which one.

        A stage that follows another one waits from the start of that one on, and none waits once it is frozen for good.
        """
        found = {}
        for stage, (trigger, above) in self.triggers(stages).items():
            since = 0 if above is None else spans[above].start
            # patience counts from the start of the stage above
            may_wait = Span(since, spans[stage].stop).trains(step)
            if isinstance(trigger, Plateau) and stage not in decided and may_wait:
                found[stage] = trigger
        return found

    def describe(self, stages: Sequence[str], stage: str) -> str:
        """The moments of a stage as they were written: ``10% + 2 × 1 epoch, until 80%``."""
        own = self.of_stage(stages, stage)
        if own.start is None:
            return "never"
        below = stages.index(stage)
        above = len(stages) - 1 - below
        is_at_once = isinstance(own.start, Duration) and own.start.value == 0
        text = "start" if is_at_once else str(own.start)
        if own.every is not None and above:
            text += f" + {above} × {own.every}" if isinstance(own.every, Duration) else f" + {above} × ({own.every})"
        if own.freeze is not None:
            text += f", until {own.freeze}"
        if own.freeze_every is not None and below:
            text += f" + {below} × {own.freeze_every}"
        return text


def _fits(pattern: str, stages: Sequence[str], stage: str) -> bool:
    """Whether a pattern or a word of `_POSITIONS` means this one of the stages."""
    if pattern in _POSITIONS and pattern not in stages:
        return stage == stages[_POSITIONS[pattern]]
    return matches(pattern, stage)


def parse_trigger(value: object, place: str = "") -> Trigger:
    """Reads a duration, or ``{plateau: val/loss, patience: 2 validations}``."""
    with at(place):
        if isinstance(value, Mapping):
            if "plateau" not in value:
                raise ConfigError(f"{dict(value)!r} is not a moment. Write a duration such as 10%, or {EXAMPLE}.")
            return Plateau.parse(value)
        duration = Duration.parse(value)
        if duration.unit == "validations":
            raise ConfigError(f"'{duration}' cannot be turned into steps. Write epochs, steps, % or {EXAMPLE}.")
        return duration


def _parse_word(value: object) -> Trigger | None:
    """``always``, ``never`` or a duration."""
    if value == "always":
        return Duration(0, "steps")
    if value == "never":
        return None
    try:
        return parse_trigger(value)
    except ConfigError as error:
        raise ConfigError(f"{error} Or: always, never, {{start: 10%, every: 1 epochs}}, {EXAMPLE}.") from None


@at("stages")
def _parse_stages(value: Mapping[str, Any]) -> tuple[tuple[str, UnfreezingSchedule], ...]:
    stages = value["stages"]
    if len(value) > 1 or not isinstance(stages, Mapping) or not stages:
        raise ConfigError("give each stage its schedule, and nothing beside: {stages: {a: 10%}}.")
    schedules = []
    for stage, given in stages.items():
        schedule = UnfreezingSchedule.parse(given, str(stage))
        if schedule.stages or schedule.every is not None or schedule.freeze_every is not None:
            raise ConfigError("a single stage has no 'stages' and no 'every'.", str(stage))
        schedules.append((str(stage), schedule))
    return tuple(schedules)


@at("freeze")
def _parse_freeze(value: object) -> tuple[Duration | None, Duration | None]:
    """When the first stage is frozen again, and the time to the next: ``80%`` or ``{start: 50%, every: 1 epochs}``."""
    if value is None:
        return None, None
    every = None
    if isinstance(value, Mapping):
        check_keys(value, ("start", "every"))
        start = parse_trigger(value.get("start"), "start")
        every = parse_trigger(value["every"], "every") if "every" in value else None
    else:
        start = parse_trigger(value)
    if isinstance(start, Plateau) or isinstance(every, Plateau):
        raise ConfigError("freezing waits for no metric. Write a duration such as 80%.")
    if start.value == 0:
        raise ConfigError(f"'{start}' would freeze before the first step. Write 'never' as the schedule.")
    return start, every


@at("restore_best")
def _parse_restore_best(value: object, start: Trigger) -> Plateau | None:
    """``val/loss``, ``{metric: val/loss, mode: min, min_delta: 0}``, or true for the plateau that `start` waits for."""
    if value is None or value is False:
        return None
    if value is True and isinstance(start, Plateau):
        return start
    if isinstance(value, str):
        value = {"metric": value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{value!r} does not name a metric. Write restore_best: val/loss.")
    options = dict(value)
    options.setdefault("plateau", options.pop("metric", None))
    # the patience is not used: each better value is kept
    options.setdefault("patience", "1 validations")
    return Plateau.parse(options)
