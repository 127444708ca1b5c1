import pyarrow
import pytest

from hybrid_lightning.data.table import Table
from hybrid_lightning.data.target import Target
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.init.columns import describe
from hybrid_lightning.init.roles import find_roles, find_target, fit_target, words_of_name

ROWS = 40
NUMBERS = [row * 7 % 41 + 0.5 for row in range(ROWS)]
SPLIT = ["train", "train", "val", "test"] * (ROWS // 4)


def roles(**columns):
    table = Table(pyarrow.table({"x": NUMBERS, **columns}))
    return find_roles(table, {name: describe(table, name) for name in table.columns})


def target(**columns):
    table = Table(pyarrow.table(columns))
    return find_target(table, [describe(table, name) for name in table.columns])


def test_names_are_compared_by_their_words():
    assert words_of_name("patientId") == words_of_name("Patient ID") == "patient_id"


def test_rows_of_a_patient_are_a_group_and_a_site_is_none():
    patients = [f"p{row // 2}" for row in range(ROWS)]
    assert roles(patient_id=patients).group == "patient_id"
    assert roles(Patient=[row // 2 for row in range(ROWS)]).group == "Patient"
    assert roles(house_id=patients).group == "house_id"
    assert roles(site_id=["a", "b"] * (ROWS // 2)).group is None
    assert roles(color=patients).group is None


def test_a_patient_comes_before_any_other_group():
    columns = {"scan_id": [f"s{row // 2}" for row in range(ROWS)], "patient": [f"p{row // 4}" for row in range(ROWS)]}
    assert roles(**columns).group == "patient"
    assert roles(**columns).unused == {"scan_id": "another grouping of rows"}


def test_a_group_with_empty_cells_is_told():
    found = roles(patient=[None, *[f"p{row // 2}" for row in range(1, ROWS)]])
    assert found.group is None
    assert found.unused["patient"].startswith("groups of rows, but has empty cells")


def test_a_column_of_splits_is_the_split():
    assert roles(part=SPLIT).split == "part"
    assert roles(part=SPLIT).id is None


@pytest.mark.parametrize(
    ("values", "remark"),
    [
        (["train", "test"] * (ROWS // 2), "test, train and no val, so that the split is drawn anew from all rows"),
        (["learn", "try"] * (ROWS // 2), "learn, try; as a split, it would hold train, val and test"),
        ([0, 1, 2, 3] * (ROWS // 4), "0, 1, 2, ...; as a split"),
    ],
)
def test_a_split_that_cannot_be_used_is_told_and_no_input(values, remark):
    found = roles(split=values)
    assert found.split is None
    assert found.unused["split"].startswith(remark)


def test_the_id_is_the_column_that_names_each_row():
    names = [f"s{row}" for row in range(ROWS)]
    assert roles(code=names, film=list(range(9, 9 + ROWS))).id == "code"
    assert roles(film=list(range(9, 9 + ROWS))).id == "film"
    assert roles(who=names).id == "who"
    assert roles().id is None


def test_columns_of_lists_have_no_role():
    found = roles(patient=[[row // 2] for row in range(ROWS)], split=[["train"]] * ROWS)
    assert (found.group, found.split, found.id) == (None, None, None)
    with pytest.raises(ConfigError, match=r"Likely: 'kind' \(u, v\)\. All columns"):
        target(kind=["u", "v"] * 20, boxes=[[1]] * ROWS)


def test_the_target_is_the_column_that_is_named_so():
    assert target(x=NUMBERS, Label=SPLIT) == "Label"


def test_without_a_name_some_columns_are_proposed():
    with pytest.raises(ConfigError, match=r"Write --target COLUMN. Likely: 'kind' \(u, v\), 'size' \(.*\.\.\.\)\. All"):
        target(x=NUMBERS, speaker=[f"s{row // 8}" for row in range(ROWS)], kind=["u", "v"] * 20, size=NUMBERS)
    with pytest.raises(ConfigError, match=r"Likely: 'label' .*, 'target'"):
        target(x=NUMBERS, label=SPLIT, target=SPLIT)


def fitted(values, **options):
    table = Table(pyarrow.table({"y": values}))
    return fit_target(table, Target({"column": "y", **options}))


def test_a_doubtful_target_is_told_with_the_flag():
    with pytest.raises(ConfigError, match=r"classes, or a quantity\?.* For init that is: --kind regression, or"):
        fitted([1, 2, 3, 4] * 10)
    assert fitted([1, 2, 3, 4] * 10, kind="regression").kind == "regression"


def test_names_of_rows_are_no_classes():
    with pytest.raises(ConfigError, match=r"--target: column 'y' holds 40 different values in 40 rows, which are no"):
        fitted([f"n{row}" for row in range(ROWS)])
