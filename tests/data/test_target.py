import numpy as np
import pyarrow
import pytest
import torch

from hybrid_lightning.data.table import Table
from hybrid_lightning.data.target import Target
from hybrid_lightning.errors import ConfigError, at


def table(**columns):
    return Table(pyarrow.table(columns), "rows.csv")


def read(spec, saved=None, **columns):
    with at("data.target"):
        target = Target(spec).fit(table(**columns), saved)
        return target, target.values


@pytest.mark.parametrize(
    ("column", "kind", "names", "values"),
    [
        (["no", "yes", "no"], "binary", ["no", "yes"], [0, 1, 0]),
        ([True, False, True], "binary", ["false", "true"], [1, 0, 1]),
        ([1, 0, 1], "binary", ["0", "1"], [1, 0, 1]),
        (["b", "c", "a"], "multiclass", ["a", "b", "c"], [1, 2, 0]),
        (["10", "9", "2"], "multiclass", ["2", "9", "10"], [2, 1, 0]),
        ([2, 0, 1], "multiclass", ["0", "1", "2"], [2, 0, 1]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_classes_are_found_and_sorted(column, kind, names, values):
    target, found = read("y", y=column)
    assert (target.kind, target.names) == (kind, names)
    assert torch.equal(found, torch.tensor(values))


@pytest.mark.parametrize("column", [[0.5, 1.5, 2.0], list(range(30)), [0.0, 1.0, 2.0]], ids=str)
def test_quantities_stay_in_their_units(column):
    target, found = read("y", y=column)
    assert (target.kind, target.names, found.dtype) == ("regression", ["y"], torch.float32)
    assert found.tolist() == column


@pytest.mark.parametrize(
    ("column", "said"),
    [([1, 2, 3], "3 whole numbers 1, 2, 3"), ([0, 5, 5], "2 whole numbers 0, 5"), ([0.0, 1.0, 0.0], "0.0 and 1.0")],
)
def test_a_column_that_could_be_either_is_asked_about(column, said):
    with pytest.raises(ConfigError, match=rf"data.target: column 'y' holds .*{said}: .*kind: regression"):
        read("y", y=column)
    assert read({"column": "y", "kind": "regression"}, y=column)[1].tolist() == column
    assert read({"column": "y", "kind": "multiclass"}, y=column)[0].kind == "multiclass"


def test_a_list_of_classes_decides_their_order():
    target, found = read({"column": "y", "classes": ["low", "middle", "high"]}, y=["high", "low", "high"])
    assert (target.kind, target.names, found.tolist()) == ("multiclass", ["low", "middle", "high"], [2, 0, 2])
    with pytest.raises(ConfigError, match=r"holds 'other' \(row 1\), which data.target.classes does not have"):
        read({"column": "y", "classes": ["low", "high"]}, y=["low", "other"])


def test_names_of_an_earlier_run_hold():
    target, found = read("y", saved={"kind": "multiclass", "names": ["a", "b", "c"]}, y=["c", "b"])
    assert (target.names, found.tolist()) == (["a", "b", "c"], [2, 1])
    assert read("y", saved={"kind": "binary", "names": ["a", "b"]}, y=["b", "b"])[1].tolist() == [1, 1]
    with pytest.raises(ConfigError, match=r"holds 'd' \(row 0\), which the checkpoint does not have"):
        read("y", saved={"kind": "binary", "names": ["a", "b"]}, y=["d", "a"])


def test_columns_of_zero_and_one_are_labels():
    target, found = read(["p", "q"], p=[1, 0, 0], q=[True, True, False])
    assert (target.kind, target.names) == ("multilabel", ["p", "q"])
    assert torch.equal(found, torch.tensor([[1.0, 1], [0, 1], [0, 0]]))
    with pytest.raises(ConfigError, match="'p' holds 2 in row 1"):
        read({"column": ["p", "q"], "kind": "multilabel"}, p=[1, 2], q=[0, 1])


def test_several_numbers_are_a_regression():
    target, found = read(["p", "q"], p=[1, 2, 3], q=[0.5, 0.5, 1])
    assert (target.kind, target.names) == ("regression", ["p", "q"])
    assert torch.equal(found, torch.tensor([[1, 0.5], [2, 0.5], [3, 1]]))
    assert read(["p"], p=[0.5, 1.5])[1].shape == (2,)


def test_labels_may_be_listed_in_one_cell():
    spec = {"column": "y", "kind": "multilabel"}
    target, found = read(spec, y=["dog;cat", " cat ", ";", "bird; dog;"])
    assert target.names == ["bird", "cat", "dog"]
    assert found.tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]]
    with pytest.raises(ConfigError, match=r"holds 'fish' \(row 1\), which data.target.classes does not have"):
        read({**spec, "classes": ["cat", "dog"]}, y=["cat", "dog;fish"])


@pytest.mark.parametrize("column", [["a", None, "b", " "], [1.0, float("nan"), 2.0, None]], ids=["text", "numbers"])
def test_empty_cells_are_named(column):
    with pytest.raises(ConfigError, match=r"data.target: column 'y' .* is empty in rows 1, 3. Fill in"):
        read("y", y=column)


def test_files_in_no_folder_of_a_class_are_told_as_such(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"'label' .* is empty in all rows: their files are in no folder of a class"):
        Target("label").fit(Table.read(str(tmp_path)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"columns": "y"}, "unknown key 'columns'. Did you mean 'column'"),
        ({"column": "y", "kind": "classes"}, "data.target.kind: unknown kind 'classes'"),
        ({"column": "y", "classes": ["a", "a"]}, "data.target.classes: .* two or more different"),
        ({"column": ["y", "z"], "kind": "binary"}, "a binary target is one column"),
        ({"column": "y", "kind": "regression", "classes": ["a", "b"]}, "data.target.classes"),
        ({"kind": "binary"}, "neither the name of a column"),
        ([], "neither the name of a column"),
        ([1], "neither the name of a column"),
    ],
)
def test_an_impossible_target_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message), at("data.target"):
        Target(spec)


def test_one_class_or_too_many_are_refused():
    with pytest.raises(ConfigError, match="has 1 class, 'a'; a multiclass target has at least two"):
        read("y", y=["a", "a"])
    with pytest.raises(ConfigError, match=r"has 3 classes, .*; a binary target has exactly two"):
        read({"column": "y", "kind": "binary"}, y=["a", "b", "c"])
    with pytest.raises(ConfigError, match="holds dates"):
        read("y", y=pyarrow.array([1, 2, 3], pyarrow.date32()))


def test_a_class_that_does_not_train_is_named():
    target, _ = read("y", y=["a", "b", "a", "c", "c"])
    with pytest.raises(ConfigError, match=r"'c' stand in test rows, but in no training row; 'c' in rows 3, 4\."):
        target.check_split(np.array([0, 0, 0, 2, 2]))
    target.check_split(np.array([0, 0, 2, 0, 2]))
    target.check_split(np.array([2, 2, 2, 2, 2]))  # another run trained
    labels, _ = read(["p", "q"], p=[1, 1, 0], q=[0, 0, 1])
    with pytest.raises(ConfigError, match=r"'q' stand in val rows, but in no training row; 'q' in row 2\."):
        labels.check_split(np.array([0, 0, 1]))


def test_strata_follow_the_kind():
    assert read("y", y=["a", "b", "a"])[0].strata().tolist() == [0, 1, 0]
    labels = read(["p", "q"], p=[1, 0, 1], q=[0, 1, 0])[0].strata()
    assert labels[0] == labels[2] != labels[1]
    numbers = read("y", y=[float(index) for index in range(40)])[0].strata()
    assert numbers.tolist() == [0] * 20 + [1] * 20


def untyped(**columns):
    return Table(pyarrow.table(columns), "rows.csv", untyped=list(columns))


@pytest.mark.parametrize(
    ("column", "kind", "names"),
    [
        (["True", "False"], "binary", ["False", "True"]),
        (["007", "010", "007"], "binary", ["007", "010"]),
        (["1", "0", "2"], "multiclass", ["0", "1", "2"]),
        (["yes ", "no", " yes"], "binary", ["no", "yes"]),
        (["1.5", "2", "3"], "regression", ["y"]),
        ([str(number) for number in range(30)], "regression", ["y"]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_classes_of_a_text_bear_the_names_that_stand_there(column, kind, names):
    target = Target("y").fit(untyped(y=column))
    assert (target.kind, target.names) == (kind, names)
    if kind != "regression":
        said = Target({"column": "y", "kind": "multiclass"}).fit(untyped(y=column))
        assert said.names == names


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (["850", "1,100", "2,000"], "3 of the 3 different values .* are numbers.*'1,100'"),
        (["10 %", "20 %", "x"], "2 of the 3 .*'10 %'"),
        (["$5", "7 EUR"], "2 of the 2"),
        ([*map(str, range(30)), "unknown"], "30 of the 31 .*'unknown'"),
        (["a;b", "a", "b"], "'a;b': several labels in a cell, or classes"),
        (["2020-01-01", "2020-02-01 10:00"], "holds dates"),
        (["Yes", "no", "yes"], "'Yes', 'yes', which seem to be one class"),
        (["7", "07", "x"], "'07', '7', which seem to be one class"),
    ],
)
def test_texts_that_may_not_be_classes_are_asked_about(column, said):
    with pytest.raises(ConfigError, match=said):
        Target("y").fit(untyped(y=column))


def test_names_of_an_earlier_run_hold_in_other_spellings():
    saved = {"kind": "binary", "names": ["false", "true"]}
    assert Target("y").fit(untyped(y=["True", "False"]), saved).values.tolist() == [1, 0]


def test_numbers_that_float32_would_make_equal_are_no_target():
    with pytest.raises(ConfigError, match=r"column 'y' cannot be learned: .* large beside their differences"):
        Target("y").fit(table(y=1.7e12 + 1000.0 * np.arange(30)))


def test_a_transform_says_that_the_target_is_a_number_and_leaves_its_units():
    target, values = read({"column": "y", "transform": "log"}, y=[1, 2, 3])
    assert (target.kind, target.transform, values.tolist()) == ("regression", "log", [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("spec", "column", "message"),
    [
        (
            {"transform": "log"},
            [1.0, 0.0, -2.0],
            "transform: log takes numbers above 0; column 'y' holds 0 in row 1 .2 s",
        ),
        ({"transform": "log"}, [1.0, 0.0], "log1p takes those above -1"),
        ({"transform": "log1p"}, [1.0, -1.0], "log1p takes numbers above -1; column 'y' holds -1 in row 1"),
        ({"transform": "ln"}, [1.0, 2.0], "transform: unknown transform 'ln'. Possible: 'log', 'log1p'"),
        ({"transform": 2}, [1.0, 2.0], "transform: unknown transform '2'"),
        ({"transform": "log", "kind": "binary"}, [0, 1], "only numbers have logarithms"),
        ({"transform": "log", "classes": ["a", "b"]}, ["a", "b"], "only numbers have logarithms"),
    ],
)
def test_numbers_without_a_logarithm_are_named_by_their_row(spec, column, message):
    with pytest.raises(ConfigError, match=message):
        read({"column": "y", **spec}, y=column)
