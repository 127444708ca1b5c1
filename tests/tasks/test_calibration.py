import math

import pytest

from hybrid_lightning import ConfigError, HybridClassifier, HybridRegressor
from hybrid_lightning.tasks.calibration import Calibration
from tests.small import classifier, regressor

PART = {"x": {"module": "MLP", "args": {"hidden": [5]}}}
WHOLE = {"temperature": 1.5, "metric": "f1", "thresholds": [0.3], "coverage": 0.9, "quantiles": [0.7]}


def objective(kind="two"):
    if kind == "numbers":
        return regressor(num_outputs=2).objective
    options = {"two": {"num_classes": 2}, "three": {}, "labels": {"kind": "multilabel"}}
    return classifier(**options[kind]).objective


def test_a_record_is_read_as_it_was_written():
    found = Calibration.parse(WHOLE, objective())
    assert found == Calibration(1.5, "f1", [0.3], 0.9, [0.7])
    assert found.plain() == WHOLE
    assert Calibration(1.2).plain() == {"temperature": 1.2}


@pytest.mark.parametrize(
    ("kind", "changes", "place"),
    [
        ("two", {"other": 1.0}, ""),
        ("two", {"temperature": 0.0}, r"\.temperature"),
        ("two", {"temperature": -1.0}, r"\.temperature"),
        ("two", {"temperature": math.nan}, r"\.temperature"),
        ("two", {"temperature": 1e30}, r"\.temperature"),
        ("two", {"temperature": True}, r"\.temperature"),
        ("two", {"temperature": "1"}, r"\.temperature"),
        ("two", {"metric": "f2"}, r"\.metric"),
        ("two", {"metric": None}, r"\.metric"),
        ("two", {"metric": ["f1"]}, r"\.metric"),
        ("two", {"thresholds": [0.3, 0.4]}, r"\.thresholds"),
        ("two", {"thresholds": [1.1]}, r"\.thresholds"),
        ("two", {"thresholds": [math.nan]}, r"\.thresholds"),
        ("two", {"thresholds": 0.3}, r"\.thresholds"),
        ("two", {"coverage": 2.0}, r"\.coverage"),
        ("two", {"coverage": None}, r"\.coverage"),
        ("two", {"coverage": "0.9"}, r"\.coverage"),
        ("two", {"quantiles": [math.inf]}, r"\.quantiles"),
        ("two", {"quantiles": [1.5]}, r"\.quantiles"),
        ("two", {"quantiles": [-0.1]}, r"\.quantiles"),
        ("two", {"quantiles": []}, r"\.quantiles"),
        ("three", {}, r"\.thresholds"),
        ("labels", {"thresholds": [0.3] * 3}, r"\.quantiles"),
        ("numbers", {"metric": None, "thresholds": None}, r"\.temperature"),
        ("numbers", {"temperature": 1.0, "metric": None, "thresholds": None}, r"\.quantiles"),
    ],
)
def test_a_record_of_another_form_is_refused(kind, changes, place):
    given = {name: value for name, value in {**WHOLE, **changes}.items() if value is not None}
    with pytest.raises(
        ConfigError, match=f"^{place.removeprefix(chr(92) + '.')}.*the record of the calibration is damaged"
    ):
        Calibration.parse(given, objective(kind))


@pytest.mark.parametrize("given", [None, [], 3.0, "temperature"])
def test_what_is_no_record_is_refused(given):
    with pytest.raises(ConfigError, match="damaged"):
        Calibration.parse(given, objective())


@pytest.mark.parametrize(
    ("task", "options", "given", "message"),
    [
        (HybridClassifier, {"num_classes": 3}, {"threshold": "f1"}, "threshold: only two classes, or labels"),
        (HybridClassifier, {"num_classes": 2}, {"threshold": "f2"}, "threshold: unknown metric 'f2'"),
        (
            HybridClassifier,
            {"num_classes": 3, "kind": "multilabel"},
            {"coverage": 0.9},
            "coverage: sets are of classes",
        ),
        (HybridClassifier, {"num_classes": 3}, {"coverage": 90}, "coverage: 90 is not a number"),
        (HybridClassifier, {"num_classes": 3}, {"coverage": 0.999}, "coverage: 0.999 is not a number"),
        (HybridClassifier, {"num_classes": 3}, {"temperature": 2.0}, "temperature: unknown value 2.0. Possible"),
        (HybridClassifier, {"num_classes": 3}, {"temprature": True}, "Did you mean 'temperature'"),
        (HybridClassifier, {"num_classes": 3}, True, "True is not a mapping"),
        (HybridRegressor, {}, {"temperature": True}, "temperature: numbers have no temperature"),
        (HybridRegressor, {}, {"threshold": "f1"}, "threshold: only two classes"),
    ],
)
def test_what_a_target_cannot_have_is_refused(task, options, given, message):
    with pytest.raises(ConfigError, match=rf"^model\.calibrate\.?.*{message}"):
        task(parts=PART, calibrate=given, **options)
