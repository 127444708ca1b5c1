import pytest

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, at
from hybrid_lightning.unfreezing.plateau import Plateau
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule

LENGTH = FitLength(steps_per_epoch=10, total_steps=100)
STAGES = ["low", "mid", "top"]
PLATEAU = {"plateau": "val/loss", "patience": "2 validations"}


def starts(value, recorded=None, length=LENGTH):
    return [span.start for span in UnfreezingSchedule.parse(value).spans(STAGES, length, recorded).values()]


@pytest.mark.parametrize(
    ("value", "from_the_output"),
    [
        ("always", [0, 0, 0]),
        ("never", [None, None, None]),
        ("3 epochs", [30, 30, 30]),
        ("0 steps", [0, 0, 0]),
        ({"start": "10%", "every": "1 epochs"}, [10, 20, 30]),
        ({"every": "5 steps"}, [0, 5, 10]),
        ({"start": "2 epochs", "every": "0 steps"}, [20, 20, 20]),
        ({"stages": {"top": "always", "low": "never", "*": "7 steps"}}, [0, 7, None]),
        ({"start": PLATEAU, "every": "5 steps"}, [None, None, None]),
        ({"start": "10%", "every": PLATEAU}, [10, None, None]),
    ],
)
def test_each_stage_has_its_step_counted_from_the_output(value, from_the_output):
    spans = UnfreezingSchedule.parse(value).spans(STAGES, LENGTH)
    assert list(spans) == STAGES[::-1]
    assert starts(value) == from_the_output


def test_a_plateau_starts_a_stage_at_the_recorded_step_and_others_count_from_there():
    assert starts({"start": PLATEAU, "every": "5 steps"}, {"top": 33}) == [33, 38, 43]
    assert starts({"start": "10%", "every": PLATEAU}, {"mid": 40}) == [10, 40, None]
    assert starts(PLATEAU, {"top": 12, "mid": 12}) == [12, 12, None]


def test_stages_wait_for_a_plateau_one_after_the_other():
    schedule = UnfreezingSchedule.parse({"start": "10%", "every": PLATEAU})

    def waiting(step, recorded):
        return list(schedule.waiting(STAGES, schedule.spans(STAGES, LENGTH, recorded), recorded, step))

    assert waiting(9, {}) == []
    assert waiting(10, {}) == ["mid"]
    assert waiting(39, {"mid": 40}) == []
    assert waiting(40, {"mid": 40}) == ["low"]
    assert waiting(80, {"mid": 40, "low": 60}) == []
    everything = UnfreezingSchedule.parse(PLATEAU)
    assert list(everything.waiting(STAGES, everything.spans(STAGES, LENGTH), {}, 0)) == STAGES[::-1]


@pytest.mark.parametrize(
    ("freeze", "from_the_input"),
    [("80%", [80, 80, 80]), ({"start": "50%", "every": "1 epochs"}, [50, 60, 70])],
)
def test_stages_freeze_again_from_the_input_on(freeze, from_the_input):
    spans = UnfreezingSchedule.parse({"start": "20 steps", "freeze": freeze}).spans(STAGES, LENGTH)
    assert [spans[stage].stop for stage in STAGES] == from_the_input
    stop = from_the_input[0]
    assert [spans["low"].trains(step) for step in (19, 20, stop - 1, stop, 99)] == [False, True, True, False, False]


def test_a_schedule_is_read_as_it_is():
    schedule = UnfreezingSchedule.parse("never")
    assert UnfreezingSchedule.parse(schedule) is schedule


def test_a_single_stage_needs_no_every():
    schedule = UnfreezingSchedule.parse({"start": "3 steps", "every": "1 epochs"})
    endless = FitLength(None, None)
    assert schedule.spans(["all"], endless)["all"].start == 3
    with pytest.raises(ConfigError, match=r"^'1 epoch' cannot be turned into steps"):
        schedule.spans(STAGES, endless)


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        *((metric, "min") for metric in ("val/loss", "val/rmse", "val/calibration_error", "loss")),
        *((metric, "max") for metric in ("val/accuracy", "val/macro_f1", "val_auroc", "val/r2")),
    ],
)
def test_the_direction_of_well_known_metrics_is_known(metric, mode):
    assert Plateau.parse({**PLATEAU, "plateau": metric}).mode == mode


def test_a_better_value_is_better_by_more_than_min_delta_and_nan_never_is():
    plateau = Plateau.parse({**PLATEAU, "min_delta": 0.1})
    assert [plateau.is_better(value, 1.0) for value in (0.89, 0.95, 1.2, float("nan"))] == [True, False, False, False]
    assert plateau.is_better(1e9, plateau.worst)
    up = Plateau.parse({**PLATEAU, "mode": "max"})
    assert [up.is_better(value, 1.0) for value in (0.9, 1.0, 1.1)] == [False, False, True]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"^u: 3 is not a duration.*Or: always, never, \{start: 10%, every: 1 epochs\}"),
        ("Always", r"^u: 'Always' is not a duration.*Or: always, never"),
        (None, "^u: None is not a duration"),
        (True, "^u: True is not a duration"),
        ("2 validations", "^u: '2 validations' cannot be turned into steps"),
        ({"start": "10%"}, "^u: 'every' is missing"),
        ({"begin": "10%", "every": "1 epochs"}, "^u: unknown key 'begin'. Possible: 'start', 'every', 'freeze'"),
        ({"start": 3, "every": "1 epochs"}, r"^u\.start: 3 is not a duration"),
        ({"start": "10%", "every": 1}, r"^u\.every: 1 is not a duration"),
        ({"start": {"metric": "val/loss"}, "every": "1%"}, r"^u\.start: \{'metric': 'val/loss'\} is not a moment"),
        ({"plateau": "val/loss"}, "^u: 'patience' is missing"),
        ({"plateau": 3, "patience": "2 validations"}, r"^u\.plateau: 3 is not the name of a metric"),
        ({"plateau": "val/loss", "patience": 2}, r"^u\.patience: 2 is not a duration"),
        ({"plateau": "val/loss", "patience": "2 epochs"}, r"^u\.patience: '2 epochs' is not a whole number of val"),
        ({"plateau": "val/loss", "patience": "0 validations"}, r"^u\.patience: '0 validations' is not a whole"),
        (
            {"plateau": "val/joy", "patience": "2 validations"},
            r"^u\.mode: whether 'val/joy' is better when low or high",
        ),
        ({**PLATEAU, "mode": "best"}, r"^u\.mode: unknown mode 'best'. Possible: 'min', 'max'"),
        ({**PLATEAU, "min_delta": -1}, r"^u\.min_delta: -1 is not a number at least 0"),
        ({**PLATEAU, "every": "1%"}, "^u: unknown key 'every'. Possible: 'plateau', 'patience', 'mode', 'min_delta'"),
        ({"freeze": 80}, r"^u\.freeze: 80 is not a duration"),
        ({"freeze": "0%"}, r"^u\.freeze: '0%' would freeze before the first step"),
        ({"freeze": {"start": PLATEAU}}, r"^u\.freeze: freezing waits for no metric"),
        ({"freeze": {"start": "50%", "each": "1%"}}, r"^u\.freeze: unknown key 'each'. Possible: 'start', 'every'"),
        ({"start": "10%", "restore_best": True}, r"^u\.restore_best: True does not name a metric"),
        ({"start": "10%", "restore_best": "val/joy"}, r"^u\.restore_best\.mode: whether 'val/joy' is better"),
        ({"stages": {}}, r"^u\.stages: give each stage its schedule"),
        ({"stages": {"a": "1%"}, "start": "1%"}, r"^u\.stages: give each stage its schedule, and nothing beside"),
        ({"stages": {"a": 3}}, r"^u\.stages\.a: 3 is not a duration"),
        ({"stages": {"a": {"every": "1%"}}}, r"^u\.stages\.a: a single stage has no 'stages' and no 'every'"),
    ],
)
def test_anything_else_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        UnfreezingSchedule.parse(value, "u")


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"topp": "1%", "*": "never"}, r"^u\.stages: unknown stage 'topp'. Did you mean 'top'"),
        ({"top": "1%"}, r"^u\.stages: 'low', 'mid' without a schedule. Name each stage, or add"),
    ],
)
def test_stage_names_have_to_fit_and_to_be_complete(stages, message):
    UnfreezingSchedule.parse({"stages": {"top": "1%", "*": "never"}}).refuse_other_stages(STAGES)
    with pytest.raises(ConfigError, match=message), at("u"):
        UnfreezingSchedule.parse({"stages": stages}).refuse_other_stages(STAGES)


@pytest.mark.parametrize(
    "value", ["always", "10%", PLATEAU, {"start": "10%", "every": PLATEAU}, {"stages": {"*": "1%"}}]
)
def test_a_schedule_holds_what_it_was_read_from(value):
    schedule = UnfreezingSchedule.parse(value)
    assert schedule.given == value
    assert UnfreezingSchedule.parse(schedule.given) == schedule


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("always", ["start", "start"]),
        ("never", ["never", "never"]),
        ("10%", ["10%", "10%"]),
        ({"start": "10%", "every": "1 epochs"}, ["10%", "10% + 2 × 1 epoch"]),
        ({"every": "5 steps"}, ["start", "start + 2 × 5 steps"]),
        (PLATEAU, ["val/loss no better for 2 validations"] * 2),
        ({"start": "10%", "every": PLATEAU}, ["10%", "10% + 2 × (val/loss no better for 2 validations)"]),
        ({"freeze": "80%"}, ["start, until 80%", "start, until 80%"]),
        ({"freeze": {"start": "50%", "every": "1%"}}, ["start, until 50% + 2 × 1%", "start, until 50%"]),
        ({"stages": {"top": "3 steps", "*": "never"}}, ["3 steps", "never"]),
    ],
)
def test_a_moment_is_described_as_it_was_written(value, texts):
    schedule = UnfreezingSchedule.parse(value)
    assert [schedule.describe(STAGES, "top"), schedule.describe(STAGES, "low")] == texts


@pytest.mark.parametrize(
    ("words", "stages", "training"),
    [
        ({"first": "always", "*": "never"}, ["stem", "body", "top"], ["stem"]),
        ({"last": "always", "*": "never"}, ["stem", "body", "top"], ["top"]),
        ({"first": "never", "last": "never", "*": "always"}, ["stem", "body", "top"], ["body"]),
        ({"first": "always", "*": "never"}, ["all"], ["all"]),
        # a name wins over the word
        ({"first": "always", "*": "never"}, ["stem", "first"], ["first"]),
    ],
)
def test_the_first_and_the_last_stage_need_no_name(words, stages, training):
    schedule = UnfreezingSchedule.parse({"stages": words})
    schedule.refuse_other_stages(stages)
    spans = schedule.spans(stages, FitLength(10, 100))
    assert [stage for stage in stages if spans[stage].start == 0] == training
    assert all(schedule.describe(stages, stage) == ("start" if stage in training else "never") for stage in stages)
