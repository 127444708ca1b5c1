import pandas
import pyarrow
import pytest

from hybrid_lightning.data.frames import arrow_of
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError

COLUMNS = {"age": [1, 2, None], "site": ["x", None, "z"]}


class Streamed:
    """A table with nothing but Arrow's PyCapsule interface, as polars has it."""

    def __init__(self, table):
        self.table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self.table.__arrow_c_stream__(requested_schema)


class Interchanged:
    """A table with nothing but dataframe interchange."""

    def __init__(self, table):
        self.table = table

    def __dataframe__(self, **options):
        return self.table.__dataframe__(**options)


@pytest.mark.parametrize("make", [pandas.DataFrame, pyarrow.table, lambda c: Streamed(pyarrow.table(c))])
def test_tables_in_memory_hold_the_same_cells(make):
    table = Table.read(make(COLUMNS))
    assert table.columns == ["age", "site"]
    assert table.empty("age").tolist() == [False, False, True]
    assert table.numbers("age")[:2].tolist() == [1, 2]
    assert table.texts("site").to_pylist() == ["x", None, "z"]
    assert str(table.path.parent) == "."


def test_dataframe_interchange_is_read():
    assert arrow_of(Interchanged(pyarrow.table({"a": [1, 2]}))).column("a").to_pylist() == [1, 2]


def test_text_views_and_categories_of_polars_are_text():
    views = pyarrow.array(["x", None, "z"], pyarrow.string_view())
    codes = pyarrow.array([1, 0, None], pyarrow.uint32())
    category = pyarrow.DictionaryArray.from_arrays(codes, pyarrow.array(["u", "v"], pyarrow.string_view()))
    table = Table.read(Streamed(pyarrow.table({"text": views, "category": category})))
    assert table.names("text").to_pylist() == ["x", None, "z"]
    assert table.names("category").to_pylist() == ["v", "u", None]


def test_a_named_index_of_pandas_is_a_column_and_another_is_none():
    frame = pandas.DataFrame(COLUMNS)
    assert arrow_of(frame.set_index("site")).column_names == ["age", "site"]
    assert arrow_of(frame.iloc[[2, 0]]).column_names == ["age", "site"]


def test_a_column_of_several_types_is_told():
    with pytest.raises(ConfigError, match=r"data.path: the DataFrame cannot be read.*column a.* Give each column one"):
        Table.read(pandas.DataFrame({"a": [1, "x"]}))
