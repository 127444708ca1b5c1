import datetime

import pyarrow
import pytest

from hybrid_lightning.data.table import Table
from hybrid_lightning.init.columns import CODES, COUNT, NAMES, describe

ROWS = 40
WORDS = ["a long text of words", "some other words here", "words that say little"]
DAYS = [datetime.date(2020, 1, 1 + row % 28) for row in range(ROWS)]


def described(values, name="x"):
    return describe(Table(pyarrow.table({name: values})), name)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([row % 7 / 2 for row in range(ROWS)], "numeric"),
        ([f"{row % 7}.5" for row in range(ROWS)], "numeric"),
        ([row * 7 % 41 for row in range(ROWS)], "numeric"),
        ([f"0{row % 7}" for row in range(ROWS)], "categorical"),
        (["u", "v"] * (ROWS // 2), "categorical"),
        ([True, False] * (ROWS // 2), "categorical"),
        ([f"{WORDS[row % 3]} {row}" for row in range(ROWS)], "text"),
        ([f"a/{row}.PNG" for row in range(ROWS)], "image"),
        ([f"{row}.wav" for row in range(ROWS)], "audio"),
        ([f"{row}.nii.gz" for row in range(ROWS)], "volume"),
        ([f"{row}.npy" for row in range(ROWS)], "array"),
        ([f"{row}.csv" for row in range(ROWS)], "series"),
    ],
)
def test_a_column_is_the_kind_of_input_that_its_cells_are(values, kind):
    assert described(values).kind == kind


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ([None] * ROWS, "nothing"),
        (["x", *[None] * (ROWS - 1)], "1 filled cells"),
        (["x"] * ROWS, "nothing but 'x'"),
        (list(range(5, 5 + ROWS)), COUNT),
        (DAYS, "dates"),
        ([f"{row % 28 + 1:02}.03.2020" for row in range(ROWS)], "dates"),
        ([[1, 2]] * ROWS, "list<"),
        ([f"https://example.org/{row}.png" for row in range(ROWS)], "addresses"),
        ([f"{row},000.00 €" for row in range(ROWS)], "numbers but for such as '0,000.00 €'"),
        ([float("inf"), *range(1, ROWS)], "numbers that are not finite"),
        ([f"name {row}" for row in range(ROWS)], NAMES),
    ],
)
def test_what_no_input_reads_is_left_out_with_the_reason(values, why):
    column = described(values)
    assert column.kind is None
    assert column.why.startswith(why)


def test_a_column_without_a_name_is_left_out():
    assert described([row % 7 / 2 for row in range(ROWS)], "").why == "cells under an empty name"


def test_codes_are_categories_if_they_repeat():
    assert described([8000 + row % 9 for row in range(ROWS)], "zip").kind == "categorical"
    assert described([8000 + 7 * row % 41 for row in range(ROWS)], "zip").why == CODES


def test_gaps_and_differing_cells_are_noted():
    column = described([None, *[row * 7 % 41 for row in range(ROWS)]])
    assert column.has_gaps
    assert column.differs
    assert not described(["u", "v"] * ROWS).differs
