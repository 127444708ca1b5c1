import math

import pytest
import torch

from hybrid_lightning import ConfigError
from hybrid_lightning.gradients.clipping_rule import ClippingRule, ZScoreLimits


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        ({"norm": 1.0}, ClippingRule("norm", 1.0)),
        ({"value": 1}, ClippingRule("value", 1)),
        ("agc", ClippingRule("agc", 0.01)),
        ({"agc": 0.02}, ClippingRule("agc", 0.02)),
        ("zclip", ClippingRule("zclip", 2.5, 0.97, 25)),
        ({"zclip": {"z": 3, "alpha": 0.9, "warm_up": "5 steps"}}, ClippingRule("zclip", 3, 0.9, 5)),
    ],
)
def test_limits_are_read_and_written(value, rule):
    assert ClippingRule.parse(value) == rule
    assert ClippingRule.parse(rule.plain()) == rule


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1.0, "1.0 is not a clipping rule"),
        ({"norm": 1, "value": 2}, "is not a clipping rule"),
        ("acg", "unknown limit 'acg'. Did you mean 'agc'"),
        ("norm", "norm: None is not a number above 0"),
        ({"norm": 0}, "norm: 0 is not a number above 0"),
        ({"norm": "1e-3"}, "write 1.0e-3"),
        ({"agc": math.inf}, "agc: inf"),
        ({"zclip": {"zz": 1}}, "unknown key 'zz'. Did you mean 'z'"),
        ({"zclip": 3}, "zclip: 3 is not a dict of settings"),
        ({"zclip": {"alpha": 1.5}}, "zclip.alpha: 1.5 is not a number above 0 and at most 1"),
        ({"zclip": {"warm_up": 25}}, "25 is not a duration"),
        ({"zclip": {"warm_up": "1 epochs"}}, "zclip.warm_up: '1 epoch' is too short or not in steps"),
    ],
)
def test_other_limits_are_refused(value, message):
    with pytest.raises(ConfigError) as error:
        ClippingRule.parse(value)
    assert message in str(error.value)


def by_hand(norms, z_limit=2.5, alpha=0.97, warm_up=25):
    """ZClip as the paper describes it: what each norm is brought to; plain Python."""
    seen, limited, mean, variance = [], [], 0.0, 0.0
    for g in norms:
        target = g
        if len(seen) < warm_up:
            seen.append(g)
            if len(seen) == warm_up:
                mean = sum(seen) / warm_up
                variance = sum((x - mean) ** 2 for x in seen) / warm_up
        else:
            deviation = math.sqrt(variance)
            z = (g - mean) / (deviation + 1e-6)
            if z > z_limit:
                target = mean + z_limit * deviation / (z / z_limit)
            mean = alpha * mean + (1 - alpha) * target
            variance = alpha * variance + (1 - alpha) * (target - mean) ** 2
        limited.append(target)
    return limited


def test_history_limits_as_the_paper_says():
    generator = torch.Generator().manual_seed(0)
    norms = torch.rand(120, 2, generator=generator, dtype=torch.float64) + 1
    norms[[40, 41, 80], 0] *= 30
    norms[60, 1] *= 4
    rules = {"one": ClippingRule("zclip", 2.5), "two": ClippingRule("zclip", 2.0, 0.9, 10)}
    limits = ZScoreLimits(rules)
    ours = torch.stack([norms[step] * limits.factors(norms[step]) for step in range(len(norms))])
    expected = torch.tensor([by_hand(norms[:, 0].tolist()), by_hand(norms[:, 1].tolist(), 2.0, 0.9, 10)]).double().T
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    assert ours[40, 0] < 3
    assert torch.equal(ours[:10], norms[:10])


def test_history_begins_with_the_first_gradient_and_survives_what_is_not_finite():
    norms = torch.rand(60, dtype=torch.float64).add(1).tolist()
    disturbed = ZScoreLimits({"one": ClippingRule("zclip", 2.5)})
    calm = ZScoreLimits({"one": ClippingRule("zclip", 2.5)})
    for bad in (0.0, 0.0, math.inf, math.nan):
        assert disturbed.factors(torch.tensor([bad], dtype=torch.float64)) == 1
    for index, norm in enumerate(norms):
        now = torch.tensor([norm], dtype=torch.float64)
        assert torch.equal(disturbed.factors(now), calm.factors(now))
        if index % 10 == 3:
            assert disturbed.factors(torch.tensor([math.nan], dtype=torch.float64)) == 1


def test_histories_continue_from_a_checkpoint_by_name():
    rules = {name: ClippingRule("zclip", 2.5, warm_up=3) for name in ("one", "two")}
    first = ZScoreLimits(rules)
    for _ in range(8):
        first.factors(torch.rand(2) + 1)
    again = ZScoreLimits({"new": rules["one"], **dict(reversed(rules.items()))})
    again.load_state_dict(first.state_dict())
    ZScoreLimits({}).load_state_dict(ZScoreLimits({}).state_dict())
    spike = torch.tensor([50.0, 60.0])
    new, two, one = again.factors(torch.tensor([1.0, 60.0, 50.0]))
    assert new == 1
    assert torch.equal(torch.stack([one, two]), first.factors(spike))
    assert one < 0.1
