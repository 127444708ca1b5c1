import math

import pytest
import torch
from torch import nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.weights.tensor_values import refuse_unfit, unfit

OWN = torch.zeros(2)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("w", "is a str, not a tensor"),
        (OWN.to("meta"), "is not a plain tensor"),
        (OWN.to_sparse(), "is not a plain tensor"),
        (torch.zeros(1).expand(2), None),
        (OWN.long(), "holds torch.int64, not torch.float32"),
        (OWN.bool(), "holds torch.bool, not torch.float32"),
        (OWN + 0j, "holds torch.complex64, not torch.float32"),
        (torch.tensor([0.0, math.nan]), "holds values that are not finite"),
        (torch.tensor([0.0, -math.inf]).half(), "holds values that are not finite"),
        (torch.tensor([0.0, math.nan]).to(torch.float8_e5m2), "holds values that are not finite"),
        (OWN.double(), None),
        (OWN.bfloat16(), None),
        (torch.zeros(0), None),
    ],
)
def test_what_cannot_take_the_place_of_floats_is_told(given, words):
    assert unfit("w", given, OWN) == words


def test_whole_numbers_take_the_place_of_whole_numbers():
    assert unfit("w", torch.ones(2, dtype=torch.uint8), OWN.long()) is None
    assert unfit("w", OWN, OWN.long()) == "holds torch.float32, not torch.int64"


def test_values_that_are_not_finite_may_stand_where_a_new_model_has_some():
    mask = torch.tensor([0.0, -math.inf])
    assert unfit("mask", mask, mask) is None
    assert unfit("mask", mask, OWN)


def test_variances_are_not_negative():
    assert unfit("norm.running_var", OWN - 1, OWN) == "holds negative variances"
    assert unfit("norm.running_mean", OWN - 1, OWN) is None


def test_a_lazy_parameter_takes_any_kind_of_finite_values():
    own = nn.LazyLinear(2).weight
    assert unfit("w", OWN, own) is None
    assert unfit("w", OWN * math.nan, own)


def test_the_first_four_are_named_and_extra_state_is_left_alone():
    own = {**{f"w{number}": OWN for number in range(6)}, "extra": {"a": 1}}
    given = dict.fromkeys(own, OWN * math.nan)
    with pytest.raises(ConfigError, match=r"^here: the file is damaged: 'w0 holds .* and 2 more\. Use another one\."):
        refuse_unfit(given, own, "the file", "here")
    refuse_unfit({"extra": 3, "other": OWN * math.nan}, own, "the file")


def test_a_deviation_stays_above_zero_where_the_model_has_one():
    ones = torch.ones(2)
    assert unfit("objective.scale.std", torch.zeros(2), ones) == "holds deviations that are not above zero"
    assert unfit("objective.scale.std", 2 * ones, ones) is None
    assert unfit("parts.x.std", -ones, OWN) is None  # perhaps a logarithm
