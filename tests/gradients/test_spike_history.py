import math
import random

import pytest

from hybrid_lightning.gradients.spike_history import NormHistory, Sensitivity

USUAL = Sensitivity(z=5.0, ratio=2.5, warm_up=20, decay=0.95)


def history(norms, sensitivity=USUAL):
    made = NormHistory(sensitivity, trains=1)
    for norm in norms:
        made.add(norm)
    return made


def noise(number, deviation=0.3, seed=0):
    drawn = random.Random(seed)
    return [math.exp(drawn.gauss(0, deviation)) for _ in range(number)]


@pytest.mark.parametrize("number", [1, 2, 7, 300])
def test_mean_and_variance_are_those_of_exponential_weights(number):
    norms = noise(number, 0.2)
    made = history(norms, Sensitivity(1e3, 1e9, 2, 0.9))
    weights = [0.9 ** (number - 1 - index) for index in range(number)]
    mean = sum(w * math.log(x) for w, x in zip(weights, norms, strict=True)) / sum(weights)
    variance = sum(w * (math.log(x) - mean) ** 2 for w, x in zip(weights, norms, strict=True)) / sum(weights)
    assert made.mean == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert made.variance == pytest.approx(variance, rel=1e-9, abs=1e-12)


def test_a_quiet_part_needs_the_ratio_and_a_noisy_one_the_deviations():
    quiet, noisy = history([1.0] * 50), history(noise(200))
    assert quiet.compare("part", 2.4) is None
    assert quiet.compare("part", 2.6) is not None
    threshold = math.exp(noisy.mean + 5 * noisy.deviation)
    assert threshold > 2.5
    assert noisy.compare("part", threshold * 0.99) is None
    assert noisy.compare("part", threshold * 1.01).z == pytest.approx(5, abs=0.2)


def test_nothing_finite_is_a_spike_in_the_warm_up():
    assert history([1.0] * 19).compare("part", 1e6) is None
    assert history([1.0] * 20).compare("part", 1e6) is not None
    assert NormHistory(USUAL, trains=1).compare("part", math.inf).ratio == math.inf


@pytest.mark.parametrize("size", [1e9, 1e-9])
def test_one_norm_far_off_hides_no_later_spike(size):
    made = history([*noise(200), size])
    moderate = math.exp(10 * history(noise(200)).deviation)
    assert made.compare("part", moderate) is not None
    assert made.compare("part", 2.5) is None


@pytest.mark.parametrize("level", [5.0, 30.0, 1e6])
def test_a_level_that_lasts_becomes_typical(level):
    made, spikes = history(noise(200)), 0
    for norm in noise(200, seed=1):
        spikes += made.compare("part", level * norm) is not None
        made.add(level * norm)
    assert spikes <= 10
    assert math.exp(made.mean) == pytest.approx(level, rel=0.3)


@pytest.mark.parametrize("norm", [0.0, math.inf])
def test_what_says_nothing_is_not_remembered(norm):
    made = history([1.0] * 30)
    before = made.state_dict()
    made.add(norm)
    assert made.state_dict() == before
    assert NormHistory(USUAL, **before).state_dict() == before
