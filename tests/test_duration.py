import pytest

from hybrid_lightning.duration import Duration, FitLength
from hybrid_lightning.errors import ConfigError

LENGTH = FitLength(steps_per_epoch=50, total_steps=200)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0 steps", 0),
        ("500 steps", 500),
        ("0.5 steps", 1),
        ("3 epochs", 150),
        ("1 epoch", 50),
        (" 0.25  epochs ", 13),
        ("1.1 epochs", 55),  # 1.1 * 50 is above 55 in floating point
        ("10%", 20),
        ("7 %", 14),
        ("0.1%", 1),
        ("100%", 200),
    ],
)
def test_a_duration_becomes_steps_rounded_up(text, steps):
    assert Duration.parse(text).steps(LENGTH) == steps


@pytest.mark.parametrize("total", [1, 3, 7, 90, 999, 12_345])
def test_the_whole_fit_is_all_of_its_steps(total):
    assert Duration.parse("100%").steps(FitLength(None, total)) == total
    assert Duration.parse("29%").steps(FitLength(None, 100 * total)) == 29 * total


@pytest.mark.parametrize(
    "text", [3, 0.1, True, None, "3", "10", "-1 epochs", "1e3 steps", "three epochs", "3 hours", "3 epochs 2", "", "%"]
)
def test_a_number_without_a_known_unit_is_refused(text):
    with pytest.raises(ConfigError, match=r"^parts\.image\.unfreeze: .* is not a duration.*'3 epochs'") as error:
        Duration.parse(text, "parts.image.unfreeze")
    assert repr(text) in str(error.value)


def test_more_than_the_whole_fit_is_refused():
    with pytest.raises(ConfigError, match="'101%' is more than the whole run; give at most '100%'"):
        Duration.parse("101%")


@pytest.mark.parametrize(
    ("text", "length", "reason"),
    [
        ("2 epochs", FitLength(None, 100), "the training data have no length"),
        ("10%", FitLength(50, None), "the run has no end"),
        ("2 validations", LENGTH, "validations can only be counted"),
    ],
)
def test_a_unit_that_the_fit_does_not_have_is_an_error(text, length, reason):
    with pytest.raises(ConfigError, match=f"^here: '{text}' cannot be turned into steps: {reason}"):
        Duration.parse(text).steps(length, "here")


@pytest.mark.parametrize(
    "text", ["1 epoch", "2 epochs", "0 steps", "1 step", "1234567 steps", "12.5%", "2 validations"]
)
def test_a_duration_is_written_as_it_was_read(text):
    assert str(Duration.parse(text)) == text
