import json
import pickle
import time

import numpy as np
import pandas
import pyarrow
import pytest
import torch

from hybrid_lightning.data.inputs import parse_inputs
from hybrid_lightning.data.manifest import ManifestDataModule
from hybrid_lightning.data.samples import Samples
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.tabular_mlp import TabularMLP
from tests.data.inputs.bound import bound, table

AGES = [20.0, 30.0, None, 70.0, 90.0]
DOSES = [1, 1, 1, 5, None]
SITES = ["b", None, "a", "c", "b"]


def batch_of_all(folder, columns, **given):
    """The values of an input in a batch of all rows, in which a second input is never missing."""
    rows = len(next(iter(columns.values())))
    manifest = table(folder, {**columns, "more": [1] * rows})
    inputs = parse_inputs({"x": given, "more": {"numeric": "more"}})
    for one in inputs.values():
        one.statistics = one.fit(manifest, np.arange(rows))
    return Samples(inputs, manifest, (), None, {}).batch(torch.arange(rows))["x"]


def test_numbers_are_standardized_with_the_training_rows_alone(tmp_path):
    entry = bound(tmp_path, {"age": AGES}, fit_rows=[0, 1, 2], numeric="age")
    assert entry.statistics == {"mean": {"age": 25.0}, "std": {"age": 5.0}}
    assert entry.batch(torch.tensor([4, 0, 3])).tolist() == [[13.0], [-1.0], [9.0]]
    assert entry.batch(torch.tensor([0])).dtype == torch.float32


def test_a_constant_column_is_only_centered(tmp_path):
    entry = bound(tmp_path, {"dose": DOSES, "tenth": [0.1] * 5}, fit_rows=[0, 1, 2], numeric=["dose", "tenth"])
    assert entry.statistics["std"] == {"dose": 1.0, "tenth": 1.0}
    torch.testing.assert_close(entry.batch(torch.tensor([3])), torch.tensor([[4.0, 0.0]]))


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [
        ("mean", [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]),
        ("indicator", [[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]),
        ("keep", [[float("nan"), 0.0], [1.0, float("nan")], [0.0, 0.0]]),
    ],
)
def test_gaps_become_what_the_option_says_and_missing_rows_zeros(tmp_path, gaps, expected):
    columns = {"a": [None, 3.0, None, 1.0], "b": [7.0, None, None, 7.0]}
    found = batch_of_all(tmp_path, columns, numeric=["a", "b"], gaps=gaps)
    torch.testing.assert_close(found[:3], torch.tensor(expected), equal_nan=True)


def test_huge_numbers_do_not_overflow(tmp_path):
    entry = bound(tmp_path, {"a": [1e300, -1e300]}, numeric="a")
    assert entry.batch(torch.arange(2)).tolist() == [[1.0], [-1.0]]


def test_an_infinite_number_is_told_with_its_row(tmp_path):
    with pytest.raises(ConfigError, match=r"^data\.inputs\.x: column 'a' of .* holds 'inf' in row 1"):
        bound(tmp_path, {"a": [1.0, float("inf"), 2.0]}, fit_rows=[0, 2], numeric="a")


def test_a_word_among_numbers_is_told_with_its_row(tmp_path):
    with pytest.raises(ConfigError, match=r"holds 'many' in row 1"):
        bound(tmp_path, {"a": ["1", "many", "2"]}, numeric="a")


@pytest.mark.parametrize("kind", ["numeric", "categorical"])
def test_a_column_without_training_values_is_refused(tmp_path, kind):
    with pytest.raises(ConfigError, match=r"column 'a' is empty in all 2 training rows"):
        bound(tmp_path, {"a": [None, None, 3], "b": [1, 2, 3]}, fit_rows=[0, 1], **{kind: "a"})


@pytest.mark.parametrize("kind", ["numeric", "categorical", "image", "text", "series"])
def test_a_column_that_is_not_there_is_told_with_the_closest(tmp_path, kind):
    path = tmp_path / "rows.csv"
    path.write_text("age\n1\n2\n")
    data = ManifestDataModule(str(path), {"x": {kind: "agee"}})
    with pytest.raises(ConfigError, match=r"^data\.inputs\.x: unknown column of .* 'agee'\. Did you mean 'age'\?"):
        data.setup()


def test_categories_are_numbered_in_the_order_of_the_training_rows_texts(tmp_path):
    entry = bound(tmp_path, {"site": SITES, "n": [10, 9, 9, 10, None]}, fit_rows=[0, 1, 2], categorical=["site", "n"])
    assert entry.statistics == {"categories": {"site": ["a", "b"], "n": ["10", "9"]}}
    assert entry.inferred_arguments == {"categories": [2, 2]}
    assert entry.batch(torch.arange(5)).tolist() == [[1, 0], [-1, 1], [0, 1], [-1, 0], [1, -1]]
    assert entry.batch(torch.arange(5)).dtype == torch.int64


def test_one_hot_columns_equal_those_of_pandas(tmp_path):
    columns = {"site": SITES, "n": [1, 2, 2, 1, 3]}
    entry = bound(tmp_path, columns, fit_rows=[0, 1, 2], categorical=["site", "n"], one_hot=True)
    known = pandas.DataFrame(columns).where(lambda c: c.isin(["a", "b", 1, 2]))
    expected = torch.from_numpy(pandas.get_dummies(known, columns=["site", "n"]).to_numpy(dtype=np.float32))
    assert torch.equal(entry.batch(torch.arange(5)), expected)
    assert entry.inferred_arguments == {}


def test_a_table_is_what_tabular_mlp_takes(tmp_path):
    columns = {"age": AGES, "site": SITES, "sex": ["f", "m", None, "m", "f"]}
    entry = bound(tmp_path, columns, fit_rows=[0, 1, 2], numeric="age", categorical=["site", "sex"])
    assert entry.inferred_arguments == {"categories": [2, 2]}
    batch = entry.batch(torch.arange(5))
    torch.testing.assert_close(
        batch["numeric"], torch.tensor([[-1.0], [1.0], [float("nan")], [9.0], [13.0]]), equal_nan=True
    )
    assert batch["categorical"].tolist() == [[1, 0], [-1, 1], [0, -1], [-1, 1], [1, 0]]
    assert TabularMLP(1, **entry.inferred_arguments)(**batch).isfinite().all()


def test_a_row_of_a_table_without_any_cell_is_missing_and_zeros(tmp_path):
    columns = {"age": [None, 5.0, 7.0, None], "site": [None, "b", "a", "a"]}
    batch = batch_of_all(tmp_path, columns, numeric="age", categorical="site")
    numbers = torch.tensor([[0.0], [-1.0], [1.0], [float("nan")]])
    torch.testing.assert_close(batch["numeric"], numbers, equal_nan=True)
    assert batch["categorical"].tolist() == [[0], [1], [0], [0]]


def test_a_row_without_any_category_is_missing_and_zeros(tmp_path):
    columns = {"site": [None, "b", "a", None], "sex": [None, None, "f", "m"]}
    assert batch_of_all(tmp_path, columns, categorical=["site", "sex"]).tolist() == [[0, 0], [1, -1], [0, 0], [-1, 1]]
    found = batch_of_all(tmp_path, columns, categorical=["site", "sex"], one_hot=True)
    assert found.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_a_table_of_one_kind_has_one_entry(tmp_path):
    entry = bound(tmp_path, {"site": SITES}, numeric=[], categorical="site")
    assert list(entry.batch(torch.arange(2))) == ["categorical"]


def test_statistics_are_plain_and_belong_to_their_columns(tmp_path):
    columns = {"a": [1.0, 3.0], "b": [10.0, 30.0], "c": ["x", "y"]}
    first = bound(tmp_path, columns, numeric=["a", "b"], categorical="c")
    assert json.loads(json.dumps(first.statistics)) == first.statistics
    turned = parse_inputs({"x": {"numeric": ["b", "a"], "categorical": "c"}})["x"]
    turned.statistics = first.statistics
    turned.bind(table(tmp_path, columns))
    assert torch.equal(turned.batch(torch.arange(2))["numeric"], torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    other = parse_inputs({"x": {"numeric": ["c", "a"]}})["x"]
    other.statistics = first.statistics
    with pytest.raises(ConfigError, match=r"the statistics hold no mean of column 'c'; they were fitted for another"):
        other.bind(table(tmp_path, {"a": [1.0], "c": [2.0]}))


def test_an_entry_can_be_sent_to_another_process(tmp_path):
    entry = bound(tmp_path, {"age": AGES, "site": SITES}, numeric="age", categorical="site")
    sent = pickle.loads(pickle.dumps(entry))
    for name, values in entry.batch(torch.arange(5)).items():
        torch.testing.assert_close(sent.batch(torch.arange(5))[name], values, equal_nan=True)


def test_a_million_rows_are_ready_within_seconds():
    rows = 1_000_000
    random = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {f"n{i}": random.standard_normal(rows) for i in range(5)}
        | {f"c{i}": random.choice(["a", "b", "c"], rows) for i in range(5)}
    )
    [entry] = parse_inputs({"x": {"numeric": list(frame)[:5], "categorical": list(frame)[5:]}}).values()
    manifest, start = Table(pyarrow.Table.from_pandas(frame), "x"), time.process_time()
    entry.statistics = entry.fit(manifest, np.arange(rows))
    entry.bind(manifest)
    assert time.process_time() - start < 8  # 1.5 s on two cores at rest
    assert len(entry.batch(torch.arange(rows))["categorical"]) == rows


def test_a_category_is_known_under_other_spellings(tmp_path):
    entry = bound(tmp_path, {"site": ["1", "2", "3", "Bonn", "7.0", "7"]}, categorical="site")
    assert entry.statistics["categories"]["site"] == ["1", "2", "3", "7", "Bonn"]
    (tmp_path / "new.csv").write_text("site\n1.0\n 2\n03\nBONN\n7\nelsewhere\n")
    entry.bind(Table.read(tmp_path / "new.csv", texts=["site"]))
    assert entry.batch(torch.arange(6))[:, 0].tolist() == [0, 1, 2, 4, 3, -1]


def test_numbers_that_vary_by_a_billionth_are_standardized(tmp_path):
    entry = bound(tmp_path, {"time": [1.7e12 + 100.0 * step for step in range(20)]}, numeric="time")
    values = entry.batch(torch.arange(20))
    torch.testing.assert_close(values.std(correction=0), torch.tensor(1.0))
