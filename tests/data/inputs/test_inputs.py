import pytest

from hybrid_lightning.data.inputs import INPUTS, parse_inputs
from hybrid_lightning.data.inputs.tabular import TableInput
from hybrid_lightning.errors import ConfigError


def test_each_kind_has_a_word_of_its_own():
    inputs = {word: {word: "column"} for word in INPUTS}
    entries = parse_inputs(inputs)
    assert list(entries) == list(INPUTS)
    for word, entry in entries.items():
        assert type(entry) is INPUTS[word]
        assert (entry.key, entry.columns, entry.where) == (word, ["column"], f"data.inputs.{word}")


def test_numbers_and_categories_together_are_a_table():
    entry = parse_inputs({"t": {"categorical": "site", "numeric": ["age", "dose"]}})["t"]
    assert isinstance(entry, TableInput)
    assert entry.columns == ["age", "dose", "site"]


def test_a_table_may_be_of_one_kind_of_columns_alone():
    for empty, columns in (("numeric", "categorical"), ("categorical", "numeric")):
        assert isinstance(parse_inputs({"t": {empty: [], columns: ["a"]}})["t"], TableInput)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"^data\.inputs: \{\} names no input\. Write such as"),
        ([{"image": "x"}], r"^data\.inputs: \[.* names no input"),
        ({"a": "x.png"}, r"^data\.inputs\.a: 'x\.png' is not an input\. Write such as \{image: path"),
        ({"a": {"imge": "x"}}, r"^data\.inputs\.a: unknown kind of input 'imge'\. Did you mean 'image'\?"),
        ({"a": {"size": 3}}, r"^data\.inputs\.a: the kind of input is missing; one of image, volume, .*text"),
        ({"a": {"image": "x", "sise": 3}}, r"^data\.inputs\.a: unknown option 'sise'\. Did you mean 'size'\?"),
        ({"a": {"image": "x", "where": "y"}}, r"^data\.inputs\.a: unknown option 'where'"),
        ({"a": {"image": "x", "numeric": "y"}}, r"image and numeric are two kinds of input\. Give each a key"),
        ({"a": {"numeric": "x", "one_hot": True}}, r"unknown option 'one_hot'"),
        ({"Photo": {"image": "x"}}, r"cannot be named 'Photo'\. Names are small letters"),
        ({"target": {"image": "x"}}, r"cannot be named 'target'.*none of target, id, present"),
        ({1: {"image": "x"}}, r"cannot be named 1"),
        ({"a": {"text": ["x"]}}, r"^data\.inputs\.a\.text: \['x'\] is not a name\. Give one"),
        ({"a": {"image": []}}, r"^data\.inputs\.a\.image: there is no column in the list"),
        ({"a": {"image": ["x", "x"]}}, r"^data\.inputs\.a\.image: \['x', 'x'\] names a column twice"),
        ({"a": {"image": ["x", 3]}}, r"^data\.inputs\.a\.image: 3 is not a name\. Give one"),
        (
            {"a": {"image": ["x", "y"], "pool": "sum"}},
            r"^data\.inputs\.a\.pool: unknown pooling 'sum'\. Possible: 'mean', 'max'",
        ),
        (
            {"a": {"image": "x", "pool": "mean"}},
            r"^data\.inputs\.a\.pool: it is about several files .*'x' is one col",
        ),
        ({"a": {"numeric": ["x"], "pool": "mean"}}, r"^data\.inputs\.a: unknown option 'pool'"),
        ({"a": {"image": "x", "size": 0}}, r"^data\.inputs\.a\.size: 0 is not a number at least 1"),
        ({"a": {"image": "x", "size": [4, 4, 4]}}, r"size: \[4, 4, 4\] is neither a number nor \[height, width\]"),
        ({"a": {"image": "x", "size": "64"}}, r"size: '64' is neither a number nor"),
        ({"a": {"image": "x", "size": 4.5}}, r"size: 4\.5 is neither a number nor|4\.5 is not a whole number"),
        ({"a": {"image": "x", "channels": 2}}, r"channels: unknown value 2.*1, 3"),
        ({"a": {"image": "x", "channels": True}}, r"channels: unknown value true"),
        ({"a": {"image": "x", "resize": "cover"}}, r"resize: unknown value 'cover'.*'crop', 'pad', 'stretch'"),
        ({"a": {"image": "x", "train": "RandomFlip"}}, r"train: 'RandomFlip' is not a list"),
        ({"a": {"volume": "x", "scale": [3, 3]}}, r"scale: 3 is not a number above 3"),
        ({"a": {"volume": "x", "scale": "max"}}, r"scale: unknown value 'max'"),
        ({"a": {"array": "x", "gaps": "mean"}}, r"gaps: unknown value 'mean'.*'refuse', 'zero'"),
        ({"a": {"series": "x", "layout": "channels"}}, r"length: 'layout: channels' needs it"),
        ({"a": {"audio": "x", "seconds": 0}}, r"seconds: 0 is not a number at least 6\.25e-05"),
        ({"a": {"audio": "x", "features": "mel"}}, r"features: unknown value 'mel'. Did you mean 'log_mel'\?"),
        ({"a": {"audio": "x", "features": "log_mel", "mels": 700}}, r"mels: 700 bands are narrower than"),
        ({"a": {"text": "x", "vocabulary": 0}}, r"vocabulary: 0 is not a number at least 1"),
        ({"a": {"numeric": ["x", "x"]}}, r"numeric: \['x', 'x'\] names a column twice"),
        ({"a": {"numeric": ["x"], "categorical": ["x"]}}, r"^data\.inputs\.a: \['x', 'x'\] names a column twice"),
        ({"a": {"numeric": []}}, r"there is no column in the list"),
        ({"a": {"numeric": [], "categorical": []}}, r"there is no column in the list"),
        ({"a": {"numeric": 3}}, r"numeric: 3 is neither the name of a column nor a list of names"),
    ],
)
def test_an_impossible_input_is_told_with_its_place(inputs, message):
    with pytest.raises(ConfigError, match=message):
        parse_inputs(inputs)
