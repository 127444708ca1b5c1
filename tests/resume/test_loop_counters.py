import pytest
import torch
from torch import Tensor

from hybrid_lightning.resume.loop_counters import first_damaged

FORM = {
    "count": int,
    "mean": float,
    "of": {str: Tensor},
    "names": [str],
    "pair": [float, float],
    "may": (type(None), dict),
}
STATE = {"count": 1, "mean": 0.5, "of": {"a": torch.ones(1)}, "names": ["x", "y"], "pair": [0.0, 1], "may": None}


def test_a_state_of_its_form_has_no_damage():
    assert first_damaged(STATE, FORM, "state") is None
    assert first_damaged({**STATE, "mean": 1, "may": {}, "more": 3}, FORM, "state") is None


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"count": "1"}, "state.count"),
        ({"of": [1]}, "state.of"),
        ({"of": {"a": torch.ones(1), "b": 3}}, "state.of.b"),
        ({"of": {3: torch.ones(1)}}, "state.of"),
        ({"names": "xy"}, "state.names"),
        ({"names": ["x", {}]}, "state.names[1]"),
        ({"pair": [1.0]}, "state.pair"),
        ({"may": 3}, "state.may"),
    ],
)
def test_damage_is_found_at_any_depth(changes, path):
    assert first_damaged({**STATE, **changes}, FORM, "state") == path


def test_what_is_missing_is_damage_and_so_is_what_a_form_excludes():
    assert first_damaged({}, {"a": int}, "state") == "state.a"
    assert first_damaged({"a": 1, "b": 2}, {"a": int, str: ()}, "state") == "state.b"
