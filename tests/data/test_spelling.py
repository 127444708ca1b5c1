import unicodedata

import numpy as np
import pyarrow
import pytest

from hybrid_lightning.data.spelling import alike, key_of, positions, seem_codes, without_decimals


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("p1", "P1"),
        ("7", "7.0"),
        ("007", "7"),
        ("+7", "7."),
        ("1.50", "1.5"),
        ("True", "TRUE"),
        ("new  york", "New York"),
        ("café", unicodedata.normalize("NFD", "café")),
        ("STRASSE", "straße"),
        ("-0.0", "-0"),
    ],
)
def test_other_spellings_have_one_key(one, other):
    assert key_of(one) == key_of(other)


@pytest.mark.parametrize(("one", "other"), [("1", "-1"), ("1.5", "15"), ("10", "1"), ("a1", "a01"), ("0", "00.1")])
def test_other_things_have_other_keys(one, other):
    assert key_of(one) != key_of(other)


def test_those_that_are_alike_are_found():
    assert alike(["b", "A", "a", "7", "7.0", "c"]) == [["A", "a"], ["7", "7.0"]]
    assert alike(["a", "b"]) == []


def test_whole_numbers_lose_their_decimals():
    texts = pyarrow.array(["7.0", "7", "7.5", "v7.0", None, "-1."])
    assert without_decimals(texts).to_pylist() == ["7", "7", "7.5", "v7.0", None, "-1"]


def test_a_place_is_that_of_the_text_or_of_its_only_other_spelling():
    texts = pyarrow.array(["a", "A", "1.0", None, "other", "B", "b"])
    assert positions(texts, ["a", "1", "b"]).tolist() == [0, 0, 1, -1, -1, 2, 2]
    assert positions(texts, ["a", "A", "x"]).tolist() == [0, 1, -1, -1, -1, -1, -1]
    assert positions(pyarrow.array(["AA", "aA"]), ["aa", "Aa"]).tolist() == [-1, -1], "two could be meant"


@pytest.mark.parametrize(
    ("name", "numbers", "expected"),
    [
        ("place", [8001, 8032, 9000] * 6, True),
        ("place", [8001, float("nan"), 8032, 9000] * 6, True),
        ("place", [8001, 8032, 9000.5] * 6, False),
        ("place", [8001, 8032, 9000], False),
        ("year", [1999, 2000, 2001, 2005] * 6, False),
        ("dose", [0, 50, 100, 500] * 6, False),
        ("zip", [1, 2, 3], True),
        ("zipCode", [1, 2, 3], True),
        ("site_id", [1, 2, 3], True),
        ("Diagnosis code", [1, 2, 3], True),
        ("width", [1, 2, 3], False),
        ("site_id", [0, 1, 1], False),
        ("site_id", [1.5, 2, 3], False),
    ],
)
def test_whole_numbers_may_be_codes_by_their_name_or_if_they_are_few_large_and_far_apart(name, numbers, expected):
    assert seem_codes(name, np.array(numbers, dtype=float)) is expected


def test_a_whole_number_with_decimals_is_the_name_without_them_whatever_else_it_may_spell():
    texts = pyarrow.array(["7.0", "07", "7", "07.0"])
    assert positions(texts, ["07", "7"]).tolist() == [1, 0, 1, 0]
