import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, OneCycleLR

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.optim.lr_schedules import GroupRates, GroupScheduler
from hybrid_lightning.optim.shapes import SHAPES, multiplier

STEPS = 20


def an_optimizer(*groups: dict) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": 1.0, **group} for group in groups])


def course(scheduler, steps: int = STEPS) -> list[list[float]]:
    """The groups' rates before each step and after the last one."""
    found = []
    for _ in range(steps + 1):
        found.append([group["lr"] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("shape", "theirs"),
    [
        ("cosine", lambda o: CosineAnnealingLR(o, T_max=STEPS)),
        ("linear", lambda o: LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=STEPS)),
    ],
)
def test_a_shape_equals_torchs_scheduler_of_that_name(shape, theirs):
    ours = GroupRates(an_optimizer({"lr": 0.3}, {"lr": 0.01}), shape, length=FitLength(None, STEPS))
    expected = course(theirs(an_optimizer({"lr": 0.3}, {"lr": 0.01})))
    torch.testing.assert_close(torch.tensor(course(ours)), torch.tensor(expected), rtol=1e-5, atol=1e-9)


def test_one_cycle_equals_both_halves_of_torchs():
    total = 41
    theirs = course(
        OneCycleLR(an_optimizer({"lr": 1.0}), max_lr=1.0, total_steps=total, cycle_momentum=False), total - 2
    )
    peak, last = 0.3 * total - 1, total - 1
    for step, [lr] in enumerate(theirs):
        progress = 0.3 * step / peak if step < peak else 0.3 + 0.7 * (step - peak) / (last - peak)
        assert SHAPES["one_cycle"](progress) == pytest.approx(lr, rel=1e-5, abs=1e-9)


def test_slanted_triangular_is_that_of_ulmfit():
    total, cut_fraction, ratio = 100, 0.1, 32
    cut = math.floor(total * cut_fraction)
    for t in range(total + 1):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_fraction - 1))
        assert multiplier("slanted_triangular", t, total) == pytest.approx((1 + p * (ratio - 1)) / ratio)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_stays_between_0_and_1_and_reaches_1(shape):
    values = [multiplier(shape, clock, 1000) for clock in range(1200)]
    assert min(values) >= 0
    assert max(values) == pytest.approx(1, abs=1e-5)
    assert values[1000:] == [values[1000]] * 200, "holds its last value after the end"


def test_warm_up_rises_evenly_to_the_full_rate():
    assert [multiplier("linear", clock, 13, warm_up=3) for clock in range(5)] == [0.25, 0.5, 0.75, 1.0, 0.9]


def test_each_group_has_the_clock_of_its_own_unfreezing():
    optimizer = an_optimizer({"lr": 1.0}, {"lr": 0.1, "unfrozen_at": None}, {"lr": 0.5, "unfrozen_at": 0})
    scheduler = GroupRates(optimizer, "linear", warm_up="1 steps", length=FitLength(None, 11))
    assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.05, 0.25]
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.05), "a frozen group waits at its first rate"
    optimizer.param_groups[1]["unfrozen_at"] = 5
    seen = []
    for _ in range(3):
        optimizer.step()
        scheduler.step()
        seen.append([g["lr"] for g in optimizer.param_groups])
    # from step 0: 10 steps of descent after one of warm-up; from step 5: 5 steps of descent
    for step, rates in zip((6, 7, 8), seen, strict=True):
        expected = [1.0 * (11 - step) / 10, 0.1 * (11 - step) / 5, 0.5 * (11 - step) / 10]
        assert rates == pytest.approx(expected)


def test_a_group_unfrozen_in_the_last_step_gets_its_full_rate():
    assert multiplier("cosine", 0, 1) == 1.0
    assert multiplier("cosine", 0, 0) == 1.0


def test_a_record_from_the_future_never_makes_a_rate_negative():
    optimizer = an_optimizer({"unfrozen_at": 50})
    GroupRates(optimizer, "linear", warm_up="2 steps", length=FitLength(None, 100))
    assert 0 < optimizer.param_groups[0]["lr"] <= 1


def test_binding_later_equals_knowing_the_length_from_the_start():
    early = GroupRates(an_optimizer({"lr": 0.3}), "cosine", "10%", FitLength(None, STEPS))
    late = GroupRates(an_optimizer({"lr": 0.3}), "cosine", "10%")
    late.bind(FitLength(None, STEPS))
    assert late.get_last_lr() == early.get_last_lr()
    assert course(late) == course(early)


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_a_restored_scheduler_goes_on_as_if_it_had_never_stopped(stop):
    length = FitLength(None, STEPS)
    whole = course(GroupRates(an_optimizer({"lr": 0.3, "unfrozen_at": 2}), "one_cycle", length=length))
    first = GroupRates(an_optimizer({"lr": 0.3, "unfrozen_at": 2}), "one_cycle", length=length)
    course(first, stop - 1)
    second = GroupRates(an_optimizer({"lr": 0.3, "unfrozen_at": 2}), "one_cycle", length=length)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    second.bind(length)
    assert course(second, STEPS - stop) == whole[stop:]


def test_a_torch_scheduler_can_be_put_back_to_an_earlier_step():
    scheduler = GroupScheduler(an_optimizer({}), lambda one: ExponentialLR(one, 0.5), base_lr=1.0)
    state = scheduler.state_dict()
    whole = course(scheduler, 5)
    scheduler.load_state_dict(state)
    assert course(scheduler, 5) == whole


def test_a_shape_that_was_never_told_the_length_of_the_fit_refuses_to_step():
    scheduler = GroupRates(an_optimizer({}), "cosine")
    scheduler.optimizer.step()
    with pytest.raises(ConfigError, match=r"rates: the length of the run is not known. Pass length=FitLength"):
        scheduler.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "cosin"}, r"rates\.shape: unknown shape 'cosin'. Did you mean 'cosine'\? Possible: .*'one_cycle'"),
        ({"shape": "one_cycle", "warm_up": "5 steps"}, r"rates\.warm_up: 'one_cycle' rises by itself; remove warm_up"),
        ({"shape": "linear", "warm_up": 5}, r"rates\.warm_up: 5 is not a duration"),
        ({"shape": "linear", "length": FitLength(5, None)}, r"rates\.shape: 'linear' needs a run with an end"),
        (
            {"warm_up": "1 epochs", "length": FitLength(None, 9)},
            r"rates\.warm_up: '1 epoch' cannot be turned into steps",
        ),
    ],
)
def test_impossible_facts_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        GroupRates(an_optimizer({}), **options)


def test_constant_rates_need_no_end():
    scheduler = GroupRates(an_optimizer({"lr": 0.3}), length=FitLength(None, None))
    assert course(scheduler) == [[0.3]] * (STEPS + 1)


@pytest.mark.parametrize("shape", ["constant", "cosine"])
def test_rates_that_something_else_sets_are_told_once_and_set_back(shape):
    scheduler = GroupRates(an_optimizer({"name": "a"}, {"name": "b"}), shape, length=FitLength(None, STEPS))
    alone = course(GroupRates(an_optimizer({}, {}), shape, length=FitLength(None, STEPS)), 3)
    scheduler.optimizer.step()
    scheduler.optimizer.param_groups[1]["lr"] = 0.5
    with pytest.warns(UserWarning, match=r"sets the rates of 'b'\. They last until the schedule's next step"):
        scheduler.step()
    assert [group["lr"] for group in scheduler.optimizer.param_groups] == alone[1]
    scheduler.optimizer.param_groups[0]["lr"] = 0.5
    scheduler.step()
