import pytest

from hybrid_lightning.durations import FitLength
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.schedules import UnfreezingSchedule

LENGTH = FitLength(steps_per_epoch=10, total_steps=100)


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        ("always", [0, 0, 0]),
        ("never", [None, None, None]),
        ("3 epochs", [30, 30, 30]),
        ("0 steps", [0, 0, 0]),
        ({"start": "10%", "every": "1 epochs"}, [10, 20, 30]),
        ({"every": "5 steps"}, [0, 5, 10]),
        ({"start": "2 epochs", "every": "0 steps"}, [20, 20, 20]),
    ],
)
def test_each_stage_has_its_step_counted_from_the_output(value, steps):
    schedule = UnfreezingSchedule.parse(value)
    assert [schedule.step(above, LENGTH) for above in range(3)] == steps
    assert [schedule.trains_at_start(above) for above in range(3)] == [step == 0 for step in steps]


def test_a_schedule_is_read_as_it_is():
    schedule = UnfreezingSchedule.parse("never")
    assert UnfreezingSchedule.parse(schedule) is schedule


def test_the_stage_at_the_output_needs_no_every():
    schedule = UnfreezingSchedule.parse({"start": "3 steps", "every": "1 epochs"})
    endless = FitLength(None, None)
    assert schedule.step(0, endless) == 3
    with pytest.raises(ConfigError, match=r"^image: '1 epoch' cannot be turned into steps"):
        schedule.step(1, endless, "image")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, r"^u: 3 is not a duration.*Or: always, never, \{start: 10%, every: 1 epochs\}"),
        ("Always", r"^u: 'Always' is not a duration.*Or: always, never"),
        (None, "^u: None is not a duration"),
        (True, "^u: True is not a duration"),
        ({"start": "10%"}, "^u: 'every' is missing"),
        ({"begin": "10%", "every": "1 epochs"}, "^u: unknown key 'begin'. Possible: 'start', 'every'"),
        ({"start": 3, "every": "1 epochs"}, r"^u\.start: 3 is not a duration"),
        ({"start": "10%", "every": 1}, r"^u\.every: 1 is not a duration"),
    ],
)
def test_anything_else_is_refused(value, message):
    with pytest.raises(ConfigError, match=message):
        UnfreezingSchedule.parse(value, "u")


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("always", ["start", "start"]),
        ("never", ["never", "never"]),
        ("10%", ["10%", "10%"]),
        ({"start": "10%", "every": "1 epochs"}, ["10%", "10% + 2 × 1 epoch"]),
        ({"every": "5 steps"}, ["start", "start + 2 × 5 steps"]),
    ],
)
def test_a_moment_is_described_as_it_was_written(value, texts):
    schedule = UnfreezingSchedule.parse(value)
    assert [schedule.describe(0), schedule.describe(2)] == texts
