import gzip
import json
import os
import time
from pathlib import Path

import pandas
import pytest

from hybrid_lightning.data import table_files
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError


def read(content: str | bytes, name: str = "m.csv", **options):
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Table.read(name, **options)


OPEN = ["label,text", *[f"{'yes' if i % 2 else 'no'},some words {i}" for i in range(40)]]
OPEN[11] = 'no,"he said and never closed it'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("\n".join(OPEN) + "\n", 12),
        ("\n".join([*OPEN, 'no,"closed, this time"']) + "\n", 12),
        ('a,b\n1,"He said "hi" to me"\n', 2),
        ('\ufeff"a,b\n1,2\n', 1),
        ('"a","b"\n"1","2"\n3,"4\n', 3),
    ],
    ids=["to the end", "to the next quote", "quotes within", "header", "last line"],
)
def test_a_quote_that_is_not_closed_is_told_with_its_line(folder, content, line):
    with pytest.raises(ConfigError, match=rf"^data.path: 'm.csv' has a cell in line {line} that opens a quote"):
        read(content)


@pytest.mark.parametrize(
    ("content", "cell"),
    [
        ('a,b\n1,"x ""y"" z"\n', 'x "y" z'),
        ('a,b\n1,12" screen\n', '12" screen'),
        ('a,b\n1,"x, y\nz"\n', "x, y\nz"),
        ('a,b\r\n1,"x"\r\n', "x"),
        ('\ufeff"a","b"\n1,"x"', "x"),
        ('a,b\n1,""""\n', '"'),
    ],
)
def test_quotes_that_are_closed_are_read(folder, content, cell):
    assert read(content).texts("b").to_pylist() == [cell]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id;dose;label\n0;0,5;a\n1;1,5;a\n", r"separated by semicolons.*sep=';', decimal=','"),
        ("id;dose, mg;label\n0;0,5;a\n1;1,5;a\n", "separated by semicolons"),
        ("id\tx\n0\t0,5\n1\t1\n", "separated by tabs"),
        ('[{"id": 1, "label": "a"}]', "is JSON, not CSV"),
        ("a,b\n1,é\n".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04 and so on", "zip archive"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "is compressed"),
        ("<!DOCTYPE html>", "web page"),
        ("version https://git-lfs.github.com/spec/v1\noid 1\n", "pointer of Git LFS"),
        (bytes(100), "is not a text"),
        ("a,b\n" + "1,2\n" * 5 + "1,2,3\n", r"Row #7: Expected 2 columns, got 3"),
    ],
)
def test_what_is_no_csv_is_told_as_what_it_is(folder, content, message):
    with pytest.raises(ConfigError, match=rf"^data.path: 'm.csv' .*{message}"):
        read(content)


def test_labels_with_semicolons_are_no_separator(folder):
    assert read("id,labels\n1,a;b\n2,b;c\n").columns == ["id", "labels"]
    assert read("labels\na;b\n").columns == ["labels"]


def test_json_is_a_list_of_objects_or_an_object_a_line(folder):
    rows = [{"id": "007", "x": 1.5}, {"id": "8", "label": "a"}]
    for table in (read(json.dumps(rows), "m.json"), read("\n".join(map(json.dumps, rows)), "m.jsonl")):
        assert table.columns == ["id", "x", "label"]
        assert table.texts("id").to_pylist() == ["007", "8"]
        assert table.empty("label").tolist() == [True, False]
    for content in ("[1, 2]", "[]", "{", '"a"'):
        with pytest.raises(ConfigError, match=r"'m.json' (is not a table|cannot be read)"):
            read(content, "m.json")


def test_excel_is_read_through_pandas(folder, monkeypatch):
    Path("m.xlsx").write_bytes(b"PK\x03\x04")

    def sheet(path, dtype):
        assert dtype == {"id": str}
        return pandas.DataFrame({"id": ["007"], "x": [1]})

    monkeypatch.setattr(pandas, "read_excel", sheet)
    table = Table.read("m.xlsx", texts=["id"])
    assert (table.texts("id").to_pylist(), list(table.untyped)) == (["007"], ["id"])

    def missing(path, dtype):
        raise ImportError("Missing optional dependency 'openpyxl'")

    monkeypatch.setattr(pandas, "read_excel", missing)
    with pytest.raises(ConfigError, match=r"'m.xlsx' is an Excel file, .*openpyxl.* save the sheet as CSV"):
        Table.read("m.xlsx")


def test_capitals_in_a_suffix_and_first_bytes_count(folder):
    frame = pandas.DataFrame({"a": [1, 2]})
    frame.to_parquet("M.PARQUET")
    frame.to_parquet("m.csv")
    assert len(Table.read("M.PARQUET")) == len(Table.read("m.csv")) == 2
    assert read("a\tb\n1\t2\n", "M.TSV").columns == ["a", "b"]


def test_what_is_no_regular_file_is_refused_and_never_opened(folder):
    os.mkfifo("pipe.csv")
    Path("zero.csv").symlink_to("/dev/zero")
    Path("sub").mkdir()
    for name in ("pipe.csv", "zero.csv", "sub", "x" * 300, "a\0b"):
        with pytest.raises(ConfigError, match=r"data\.path: there is no file"):
            Table.read(name)


def test_a_table_without_a_header_is_told(folder):
    with pytest.raises(ConfigError, match=r"unknown column .* 'label'.* here it holds numbers"):
        read("a.png,850,yes\nb.png,900,no\n").require("label")


def test_a_small_file_that_becomes_a_large_table_is_refused(folder, monkeypatch):
    from hybrid_lightning.data import table_files

    monkeypatch.setattr(table_files, "_HARMLESS", 2**16)
    read(gzip.compress(b"a,b\n" + b"1,2\n" * 1000), "m.csv.gz")
    with pytest.raises(ConfigError, match=r"holds more than .* GiB of text \([0-9]+ bytes are stored\)"):
        read(gzip.compress(b"a,b\n" + b"1,2\n" * 200_000), "m.csv.gz")
    monkeypatch.setattr(table_files, "_MOST_CELLS", 99)
    with pytest.raises(ConfigError, match="10 rows that name 10 columns"):
        read(json.dumps([{f"c{row}": 1} for row in range(10)]), "m.json")
    monkeypatch.setattr(table_files, "_LARGEST", 10_000)
    for rows in (1000, 2000):  # by the size of what is read, and by the number of cells
        pandas.DataFrame({"a": ["same text"] * rows}).to_parquet("m.parquet")
        with pytest.raises(ConfigError, match="GiB of values"):
            Table.read("m.parquet")


def test_of_parquet_the_columns_that_are_read_count_alone(folder, monkeypatch):
    monkeypatch.setattr(table_files, "_LARGEST", 10_000)
    pandas.DataFrame({"a": range(500), "notes": ["the same long text"] * 500}).to_parquet("m.parquet")
    table = Table.read("m.parquet", columns=["a"])
    assert table.numbers("a").sum() == sum(range(500))
    with pytest.raises(ConfigError, match=r"^data.path: 'm.parquet' holds more than .* GiB of values"):
        table.texts("notes")


@pytest.mark.parametrize("library", ["pyarrow", "pandas"])
def test_a_missing_library_is_named_with_its_installation(folder, monkeypatch, library):
    Path("m.csv").write_text("a\n1\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == library else object())
    with pytest.raises(ConfigError, match=rf"data.path: tables are read with {library}, which is missing.*\[data\]"):
        Table.read("m.csv")


def test_a_header_that_begins_with_the_letters_of_an_archive_is_one(folder):
    assert read("PK,x\n1,2\n").columns == ["PK", "x"]


def test_separators_of_lines_within_a_text_of_json_are_letters(folder):
    rows = [{"x": "a\u2028b"}, {"x": "c\x85d"}]
    content = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert read(content, "m.jsonl").texts("x").to_pylist() == ["a\u2028b", "c\x85d"]


def test_a_cell_may_be_longer_than_a_block_of_the_reader(folder):
    texts = ["a" * 3_000_000, "b", "c" * 3_000_000]
    content = "x\n" + "\n".join(texts) + "\n"
    assert read(content, texts=["x"]).texts("x").to_pylist() == texts
    with pytest.raises(ConfigError, match=r"'m\.csv' has a row longer than 16 MiB\. Save the table as Parquet"):
        read("x,y\n" + "a" * 40_000_000 + ",b\n")


def test_quotes_within_plain_cells_take_a_time_that_grows_with_their_number(folder):
    def seconds(rows):
        content = b"x\ty\n" + b'he said "hi" and went on to say nothing\t1\n' * rows
        start = time.process_time()
        table_files._check_quotes(content, b"\t", Path("m.tsv"))
        return time.process_time() - start

    assert seconds(32_000) < 30 * seconds(4_000), "8 times as many would take 64 times as long"


def test_a_small_csv_is_read_without_threads(folder, monkeypatch):
    from pyarrow import csv

    asked = []

    def note(**options):
        asked.append(options["use_threads"])
        return read_options(**options)

    read_options = csv.ReadOptions
    monkeypatch.setattr(csv, "ReadOptions", note)
    read("a,b\n1,2\n")
    assert asked == [False]
    monkeypatch.setattr(table_files, "_LONGEST_ROW", 4)
    read("a,b\n1,2\n")
    assert asked == [False, True]


@pytest.mark.parametrize("is_ordered", [False, True])
def test_texts_of_categories_count_once_however_many_batches_bring_them(folder, monkeypatch, is_ordered):
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.array([letter * 1000 for letter in "ab"])
    codes = pyarrow.array([row % 2 for row in range(1000)], pyarrow.int32())
    words = pyarrow.DictionaryArray.from_arrays(codes, texts, ordered=is_ordered)
    pyarrow.parquet.write_table(pyarrow.table({"words": words}), "rows.parquet")
    monkeypatch.setattr(table_files, "_BATCH_OF_CODES", 10)
    monkeypatch.setattr(table_files, "_LARGEST", 8100)  # bytes; 4000 of codes and 2000 of texts
    table = Table.read("rows.parquet")
    assert table.texts("words").to_pylist() == words.to_pylist()
    monkeypatch.setattr(table_files, "_LARGEST", 5900)
    with pytest.raises(ConfigError, match="GiB of values"):
        Table.read("rows.parquet")
