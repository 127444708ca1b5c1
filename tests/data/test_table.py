import gzip
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from hybrid_lightning.data.spelling import positions
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError


def read(folder: Path, content: str | bytes, name: str = "rows.csv", **options):
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Table.read(path, **options)


def test_a_column_is_text_numbers_and_gaps(tmp_path):
    table = read(tmp_path, "name,x\na,1\n,2.5\n ,\nd,NA\n")
    assert (len(table), table.columns) == (4, ["name", "x"])
    assert table.texts("name").to_pylist() == ["a", None, None, "d"]
    assert table.empty("name").tolist() == [False, True, True, False]
    np.testing.assert_equal(table.numbers("x", "data"), [1, 2.5, np.nan, np.nan])
    assert table.empty("x").tolist() == [False, False, True, True]


def test_a_column_named_as_text_keeps_its_zeros_and_still_has_numbers(tmp_path):
    content = "id,x\n007, +5\n7,-2e1\n"
    assert read(tmp_path, content).texts("id").to_pylist() == ["7", "7"]
    table = read(tmp_path, content, texts=["id", "x", "nowhere"])
    assert table.texts("id").to_pylist() == ["007", "7"]
    assert table.numbers("x", "data").tolist() == [5, -20]


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv.gz", "rows.tsv.gz"])
def test_the_ending_says_how_a_table_is_written(tmp_path, name):
    content = "a,b\n1,x y\n".replace(",", "\t" if "tsv" in name else ",").encode()
    table = read(tmp_path, gzip.compress(content) if name.endswith("gz") else content, name)
    assert table.columns == ["a", "b"]
    assert table.texts("b").to_pylist() == ["x y"]


def test_quoted_cells_may_hold_commas_and_lines(tmp_path):
    assert read(tmp_path, 'a,b\n"x, y","1\n2"\n').texts("b").to_pylist() == ["1\n2"]


def test_a_mark_of_byte_order_is_no_part_of_the_first_name(tmp_path):
    assert read(tmp_path, "\ufeffa,b\n1,é\n").columns == ["a", "b"]


def test_columns_of_parquet_keep_their_meaning(tmp_path):
    columns = {
        "words": pyarrow.array(["b", None, "a", "b"]).dictionary_encode(),
        "real": pyarrow.array([1.0, np.nan, 0.5, None]),
        "whole": pyarrow.array([7, None, 2**62, 1]),
        "flag": pyarrow.array([True, False, None, True]),
        "day": pyarrow.array([0, 1, None, 3], pyarrow.date32()),
        "nothing": pyarrow.nulls(4),
        "money": pyarrow.array([Decimal(1), Decimal("2.50"), Decimal(3), Decimal(4)]),
    }
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)  # several chunks
    table = Table.read(path)
    assert table.texts("words").to_pylist() == ["b", None, "a", "b"]
    assert table.texts("real").to_pylist() == ["1", None, "0.5", None]
    assert table.texts("flag").to_pylist() == ["true", "false", None, "true"]
    assert table.texts("day").to_pylist() == ["1970-01-01", "1970-01-02", None, "1970-01-04"]
    assert table.texts("nothing").to_pylist() == [None] * 4
    np.testing.assert_equal(table.numbers("whole", "data"), [7, np.nan, 2.0**62, 1])
    np.testing.assert_equal(table.numbers("flag", "data"), [1, 0, np.nan, 1])
    np.testing.assert_equal(table.numbers("money", "data"), [1, 2.5, 3, 4])
    assert np.isnan(table.numbers("nothing", "data")).all()
    empty = {name: table.empty(name).tolist() for name in columns}
    assert empty["real"] == [False, True, False, True]
    assert empty["words"] == empty["whole"] == [False, True, False, False]
    assert empty["nothing"] == [True] * 4
    with pytest.raises(ConfigError, match=r"column 'day' .* holds '1970-01-01' in row 0, which is not a finite number"):
        table.numbers("day", "data.inputs.x")


KINDS = {
    "repeated": pyarrow.array([" b", "a", None, "b ", " ", "a"] * 4),
    "different": pyarrow.array([*map(str, range(23)), ""]),
    "in pieces": pyarrow.chunked_array([["b", "a"] * 6, ["c", "b"] * 6]),
    "of pandas": pyarrow.DictionaryArray.from_arrays([2, 1, 2, None] * 6, ["unused", "a", "b"]),
    "large": pyarrow.array(["b", "a"] * 12, pyarrow.large_string()),
    "accents": pyarrow.array(["e\u0301", "\u00e9", "a"] * 8),
    "whole": pyarrow.array([7, None, 1] * 8),
    "real": pyarrow.array([1.0, np.nan, 0.5, None] * 6),
    "flag": pyarrow.array([True, False, None] * 8),
    "nothing": pyarrow.nulls(24),
}


@pytest.mark.parametrize("kind", KINDS)
def test_codes_stand_for_the_names_in_order_of_their_first_rows(kind):
    table, fresh = (Table(pyarrow.table({"a": KINDS[kind]})) for _ in range(2))
    names, places = table.coded("a")
    decoded = np.array([*names.to_pylist(), None], dtype=object)[places]
    assert decoded.tolist() == fresh.names("a").to_pylist()
    assert names.to_pylist() == fresh.names("a").unique().drop_null().to_pylist()
    assert table.positions("a", ["a", "b"]).tolist() == positions(fresh.names("a"), ["a", "b"]).tolist()
    # what is kept as codes reads as before
    assert table.texts("a").to_pylist() == fresh.texts("a").to_pylist()
    assert table.values("a").type == fresh.values("a").type
    assert [str(table.cell("a", row)) for row in range(24)] == list(map(str, fresh.values("a").to_pylist()))
    assert table.empty("a").tolist() == fresh.empty("a").tolist()


def test_texts_that_repeat_take_four_bytes_a_row_once_they_are_coded():
    names = ["a patient with a long name", "another patient"] * 500
    table = Table(pyarrow.table({"a": names, "different": list(map(str, range(1000)))}))
    table.texts("a")
    for column in ("a", "different"):
        table.coded(column)
    assert table.arrow.column("a").nbytes < 5 * len(names)
    assert pyarrow.types.is_string(table.arrow.column("different").type)
    assert table.texts("a").to_pylist() == names


def test_long_texts_in_pieces_get_wide_offsets_before_they_are_joined(monkeypatch):
    monkeypatch.setattr("hybrid_lightning.data.table._LONG", 20)
    table = Table(pyarrow.table({"a": KINDS["in pieces"]}))
    assert pyarrow.types.is_large_string(table.texts("a").type)
    assert table.coded("a")[0].to_pylist() == ["b", "a", "c"]
    assert table.texts("a").to_pylist() == KINDS["in pieces"].to_pylist()


def test_numbers_of_a_coded_column_are_those_of_its_texts():
    table = Table(pyarrow.table({"a": ["1", "2.5", ""] * 4}))
    table.coded("a")
    np.testing.assert_equal(table.numbers("a"), [1, 2.5, np.nan] * 4)


def test_of_parquet_other_columns_are_read_when_they_are_asked_for(tmp_path):
    path = tmp_path / "rows.parquet"
    content = {"a": [1, 2], "a.b": ["x", "y"], "c": [None, "z"]}
    parquet.write_table(pyarrow.table(content), path)
    table = Table.read(path, columns=["a", "nowhere"])
    assert (table.columns, table.arrow.column_names) == (["a", "a.b", "c"], ["a"])
    assert table.texts("c").to_pylist() == [None, "z"]
    assert table.arrow.column_names == ["a", "c"]
    assert Table.read(path).arrow.to_pydict() == content
    assert len(Table.read(path, columns=["nowhere"])) == 2
    parquet.write_table(pyarrow.table({"a.b": ["x"]}), path)
    with pytest.raises(ConfigError, match=r"^data.path: .*rows.parquet' has changed since it was read"):
        table.values("a.b")


@pytest.mark.parametrize("columns", [None, ["a"]])
def test_parquet_without_rows_or_with_equal_names_is_refused(tmp_path, columns):
    path = tmp_path / "rows.parquet"
    for arrays, names, message in (([[1], [2]], ["a", "a"], "several columns named 'a'"), ([[]], ["a"], "no rows")):
        parquet.write_table(pyarrow.table([pyarrow.array(cells, "int64") for cells in arrays], names), path)
        with pytest.raises(ConfigError, match=message):
            Table.read(path, columns=columns)


def test_parquet_is_the_same_in_pieces_of_any_size(tmp_path, monkeypatch):
    words = pyarrow.array(["b", None, "a", "b", "c"])
    content = pyarrow.table({"a": words, "b": words.dictionary_encode(), "c": [[1], [], None, [2, 3], [4]]})
    parquet.write_table(content, tmp_path / "rows.parquet", row_group_size=2)
    monkeypatch.setattr("hybrid_lightning.data.table_files._BATCH", 1)
    monkeypatch.setattr("hybrid_lightning.data.table_files._WAITING", 2)
    table = Table.read(tmp_path / "rows.parquet")
    assert table.arrow.to_pydict() == content.to_pydict()
    assert {column.num_chunks for column in table.arrow.columns} == {1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read: Empty CSV"),
        ("a,b\n", "has no rows; its columns are 'a', 'b'"),
        ("a,b,a\n1,2,3\n", "several columns named 'a'"),
        ("a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("a;b\n1;2\n", "separated by semicolons, as its header is 'a;b'"),
        ("a\tb\n1\t2\n", "separated by tabs"),
        ("a,b\n1,é\n".encode("latin-1"), "not in UTF-8: column 'b'"),
        ("é,b\n1,2\n".encode("latin-1"), "not in UTF-8"),
        ("a,b\n1,é\n".encode("utf-16"), "cannot be read|not in UTF-8"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path, content, message):
    with pytest.raises(ConfigError, match=rf"^data.path: .*rows.csv' .*({message})"):
        read(tmp_path, content)


def test_a_broken_parquet_file_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"data.predict_path: .*rows.parquet' cannot be read"):
        read(tmp_path, b"no parquet", "rows.parquet", place="data.predict_path")
    with pytest.raises(ConfigError, match=r"there is no file 'nowhere.csv'"):
        Table.read("nowhere.csv")


def test_a_cell_that_is_no_number_is_named(tmp_path):
    table = read(tmp_path, "a,b\n1,inf\ntwo,3\nthree,4\n")
    with pytest.raises(ConfigError, match=r"data.x: column 'a' .* holds 'two' in row 1, .* \(2 such cells\)"):
        table.numbers("a", "data.x")
    with pytest.raises(ConfigError, match="holds 'inf' in row 0"):
        table.numbers("b", "data.x")


def test_an_unknown_column_suggests_the_closest(tmp_path):
    with pytest.raises(ConfigError, match=r"data.id: unknown column of .* 'nmae'. Did you mean 'name'"):
        read(tmp_path, "name\n1\n").require("nmae", "data.id")


def test_lists_in_cells_are_told_when_they_are_read():
    table = Table(pyarrow.table({"a": [[1], [2]]}))
    assert table.empty("a").tolist() == [False, False]
    with pytest.raises(ConfigError, match=r"column 'a' .* list<.*int64> values, which cannot be read as text"):
        table.texts("a")


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'hybrid_lightning\[data\]'"):
        Table.read("rows.csv")
