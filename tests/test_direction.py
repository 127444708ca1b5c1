import pytest

from hybrid_lightning.direction import checked_mode, direction_of
from hybrid_lightning.errors import ConfigError


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("val/loss", "min"),
        ("val_auroc", "max"),
        ("val/macro_f1", "max"),
        ("val/calibration_error", "min"),
        ("val/loss-image", "min"),
        ("val/joy", None),
        ("val/neg_log_loss", None),
    ],
)
def test_a_name_tells_by_its_last_word(metric: str, direction: str | None) -> None:
    assert direction_of(metric) == direction


def test_what_the_metric_says_comes_before_its_name() -> None:
    assert checked_mode("val/map", None, {"val/map": "min"}) == "min"


def test_the_opposite_of_what_a_metric_says_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^mode: 'val/accuracy' is better when high, so 'mode: min' would take"):
        checked_mode("val/accuracy", "min", {"val/accuracy": "max"})


def test_the_opposite_of_a_name_alone_is_allowed() -> None:
    assert checked_mode("neg_loss", "max") == "max"
    assert checked_mode("val/loss", "max", {"val/loss": None}) == "max"


def test_an_unknown_direction_has_to_be_stated() -> None:
    with pytest.raises(ConfigError, match=r"^mode: whether 'val/joy' is better when low or high is not known"):
        checked_mode("val/joy", None, {"val/joy": None})
    assert checked_mode("val/joy", "max") == "max"
