import pytest

from hybrid_lightning.errors import (
    ConfigError,
    at,
    check_choice,
    check_keys,
    check_number,
    format_table,
    listing,
    printable,
    reason,
    shortened,
    unknown,
    writing,
)


def test_an_unknown_name_is_reported_with_place_the_closest_and_all_possible_ones():
    error = unknown("model.parts.image", "key", "layer_decya", ["lr_scale", "layer_decay"])
    assert isinstance(error, ConfigError)
    assert str(error) == (
        "model.parts.image: unknown key 'layer_decya'. Did you mean 'layer_decay'? Possible: 'lr_scale', 'layer_decay'."
    )


def test_of_many_names_only_the_closest_are_shown():
    error = unknown("here", "model", "resnet81", ["resnet18", *(f"vit{i}" for i in range(58)), "resnet81x"])
    assert str(error) == (
        "here: unknown model 'resnet81'. Did you mean 'resnet81x'? Possible: 'resnet18', 'resnet81x' and 58 more."
    )


def test_a_listing_is_short_and_counts_the_rest():
    assert listing("abc", limit=2) == "'a', 'b' and 1 more"
    assert listing([]) == "none"


def test_places_within_places_make_a_path():
    with pytest.raises(ConfigError) as caught, at("model.parts.image"), at("unfreeze"):
        check_number(-1, "every", low=0)
    assert str(caught.value) == "model.parts.image.unfreeze.every: -1 is not a number at least 0."


def test_an_error_without_a_place_gets_that_of_its_surroundings():
    with pytest.raises(ConfigError, match=r"^data: no rows\.$"), at("data"):
        raise ConfigError("no rows.")


def test_errors_that_are_not_of_the_config_pass_unchanged():
    with pytest.raises(KeyError, match="'x'"), at("data"):
        raise KeyError("x")


def test_an_unknown_key_is_an_error_and_a_former_name_says_the_new_one():
    with pytest.raises(ConfigError, match=r"^part: key 'norm' is called 'batch_norm' now; write 'batch_norm'\.$"):
        check_keys({"lr_scale": 1, "norm": 2}, ["lr_scale", "batch_norm"], "part")
    with pytest.raises(ConfigError, match=r"^unknown key 'a'\. Possible: 'b'\.$"):
        check_keys({"a": 1}, ["b"])


def test_a_choice_is_one_of_the_same_type():
    assert check_choice(True, "x", (True, False)) is True
    with pytest.raises(ConfigError, match=r"^x: unknown value 1\. Possible: true, false\.$"):
        check_choice(1, "x", (True, False))
    with pytest.raises(ConfigError, match=r"^x: unknown value 'c'\. .*Possible: 'a', 'b'\.$"):
        check_choice("c", "x", ("a", "b"))


def test_choices_that_are_not_all_text_are_written_as_in_yaml():
    with pytest.raises(ConfigError, match=r"^cache: unknown value True\. Possible: auto, true, false, null\.$"):
        check_choice("True", "cache", ("auto", True, False, None))


def test_the_reason_of_another_error_is_one_sentence_of_whole_words():
    assert reason(ValueError("It failed.")) == "It failed."
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt."
    long = reason(ValueError("some words " * 60))
    assert len(long) <= 302
    assert long.endswith(" words …")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("ring\x07", "ring\\x07"),
        ("back\rover", "back\\rover"),
        ("turned \u202e around", "turned \\u202e around"),
        ("\x9b1m", "\\x9b1m"),
        ("Größe, 大きさ\n\tnext line", "Größe, 大きさ\n\tnext line"),
    ],
)
def test_what_could_steer_a_terminal_is_printed_as_an_escape(text, shown):
    assert printable(text) == shown
    assert shortened(text).splitlines() == [line.rstrip() for line in shown.split("\n")]


def test_a_cell_with_a_line_end_stays_in_its_row():
    table = format_table([{"name": "a\nb\x1b"}], ["name"])
    assert table.splitlines()[-1] == "a\\nb\\x1b"


def test_a_failed_write_says_where_why_and_what_to_do():
    message = r"^'a/b' cannot be written: No space left on device\. Make room\.$"
    with pytest.raises(ConfigError, match=message), writing("a/b", "Make room."):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("value", [10**400, True, "1", None, float("nan")])
def test_what_no_float_can_hold_is_no_number(value):
    with pytest.raises(ConfigError, match="is not a number at least 0"):
        check_number(value, "lr", 0)
