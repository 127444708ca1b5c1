import copy
from typing import Any

import pytest

from hybrid_lightning.data.inputs import parse_inputs
from hybrid_lightning.data.saved_state import check_state, check_statistics
from hybrid_lightning.errors import ConfigError

STATE = {
    "version": 1,
    "inputs": {"x": {"columns": ["a"], "statistics": {}, "shape": {"shape": [3, 4], "dtype": "float32"}}},
    "incomplete": ["x"],
    "target": {"columns": ["y"], "kind": "binary", "names": ["n", "y"]},
    "id": None,
    "split": "abc",
}


def with_value(path: str, value: Any) -> dict[str, Any]:
    state: dict[str, Any] = copy.deepcopy(STATE)
    *keys, last = path.split(".")
    place = state
    for key in keys:
        place = place[key]
    place[last] = value
    return state


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("inputs", []),
        ("incomplete", 7),
        ("inputs.x", 3),
        ("inputs.x.columns", "a"),
        ("inputs.x.statistics", None),
        ("inputs.x.shape", [3]),
        ("inputs.x.shape", {"shape": [10**12], "dtype": "float32"}),
        ("inputs.x.shape", {"shape": [3], "dtype": "load"}),
        ("inputs.x.shape", {"shape": [-1], "dtype": "float32"}),
        ("inputs.x.shape", {"values": {"shape": ["3"], "dtype": "float32"}}),
        ("inputs.x.options", [3]),
        ("inputs.x.options", {"image": "a", "size": 10**9}),
        ("inputs.x.options", {"image": "a", "size": [10**5, 10**5]}),
        ("inputs.x.options", {"series": "a", "length": 10**500}),
        ("inputs.x.options", {"audio": "a", "seconds": 1e6, "sample_rate": 10**6}),
        ("inputs.x.options", {"image": "a", "size": float("nan")}),
        ("inputs.x.options", {"image": "a", "train": ["RandomFlip"]}),
        ("inputs.x.options", {"image": {"a": 1}}),
        ("id", ["a"]),
        ("groups", 3),
        ("target", "y"),
        ("target.kind", "any"),
        ("target.names", {"a": 1}),
        ("target.transform", "exp"),
        ("target.transform", ["log"]),
    ],
)
def test_a_damaged_state_is_told(path, value):
    with pytest.raises(ConfigError, match="damaged"):
        check_state(with_value(path, value))


def test_states_of_all_forms_pass():
    check_state(STATE)
    check_state(with_value("target", None))
    check_state(with_value("inputs.x.options", {"image": ["a", "b"], "size": [8, 9], "eval": [{"class_path": "x"}]}))
    check_state(with_value("inputs.x.options", {"volume": "a", "size": 64, "scale": [-1000.0, 400], "name": None}))
    check_state(with_value("groups", "patient"))
    check_state(with_value("inputs.x.shape", {"values": {"shape": [0, 2], "dtype": "float32"}}))


@pytest.mark.parametrize(
    ("given", "statistics"),
    [
        ({"numeric": ["a"]}, {"mean": {"a": float("nan")}, "std": {"a": 1.0}}),
        ({"numeric": ["a"]}, {"mean": {"a": 0.0}, "std": {"a": 0.0}}),
        ({"numeric": ["a"]}, {"mean": 3, "std": {"a": 1.0}}),
        ({"series": "a"}, {"mean": ["0"], "std": [1.0]}),
        ({"categorical": ["a"]}, {"categories": {"a": ["x", "x"]}}),
        ({"categorical": ["a"]}, {"categories": ["x"]}),
        ({"text": "a"}, {"words": 5}),
        ({"text": "a"}, {"words": ["x"], "length": -1}),
        ({"text": "a"}, {"words": ["x"], "length": 2.5}),
        ({"text": "a", "vocabulary": 2}, {"words": ["x", "y", "z"]}),
    ],
)
def test_damaged_statistics_are_told(given, statistics):
    entry = parse_inputs({"x": given})["x"]
    with pytest.raises(ConfigError, match=r"^data.inputs.x: the checkpoint's statistics\..*damaged"):
        check_statistics(entry, statistics)
