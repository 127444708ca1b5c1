"""Files of tables: CSV, Parquet, JSON and Excel, each read to Arrow columns, or refused with the place that breaks."""

import contextlib
import importlib.util
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_lightning.data.class_folders import read_folder
from hybrid_lightning.errors import ConfigError, reason
from hybrid_lightning.files import exists, is_regular_file

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
_LOOKED_AT = 2**16  # bytes of a text that tell what separates its cells
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BEGINNING = 4096  # bytes that tell what a file is
_OTHERS = {
    b"PK\x03\x04": "a zip archive, not a table. Unpack it, and name the file inside.",
    b"\x1f\x8b": "compressed. Let its name end in .gz.",
    b"\xff\xfe": "in UTF-16, not in UTF-8. Save the file as UTF-8.",
    b"\xfe\xff": "in UTF-16, not in UTF-8. Save the file as UTF-8.",
    b"\xd0\xcf\x11\xe0": "a file of Excel, not CSV. Let its name end in .xls, or save the sheet as CSV in UTF-8.",
    b"{": "JSON, not CSV. Name it .jsonl, with an object a line.",
    b"[": "JSON, not CSV. Name it .json.",
    b"<!": "a web page, not a table. Fetch it again from its source.",
    b"<html": "a web page, not a table. Fetch it again from its source.",
    b"<?xml": "XML, not a table. Save it as CSV or Parquet.",
    b"version https://git-lfs": "a pointer of Git LFS, not a table. Fetch the file itself with: git lfs pull",
}
"""What a file that is no CSV begins with → what it is and what to do."""
_LARGEST = 4 * 2**30  # bytes of a table, unpacked
_MOST_GROWTH = 100  # of a text when it is unpacked; ordinary tables become ten times as large
_HARMLESS = 2**28  # bytes that may be unpacked of any text
_CHUNK = 2**24  # bytes
_LONGEST_ROW = 2**24  # bytes
_BATCH = 4096  # rows
_BATCH_OF_CODES = 2**20  # rows of a column of categories, all of which each batch brings along
_WAITING = 256  # batches
_MOST_CELLS = 2**26  # of JSON, whose rows may each name columns of their own
_EXCEL = (".xlsx", ".xls", ".xlsm", ".ods")
_LARGEST_JSON = 2**30  # bytes; Python's objects take ten times as many


def read_arrow(
    path: Path, texts: Collection[str] = (), columns: Collection[str] | None = None
) -> "tuple[pyarrow.Table, list[str], list[str]]":
    """The table in a file; the names of all its columns; and those that CSV and Excel read as they are, of `texts`.

    Of Parquet, `columns` alone are read; None reads all.
    """
    missing = [name for name in ("pyarrow", "pandas") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"tables are read with {missing[0]}, which is missing. Install it with: "
            f"pip install 'hybrid_lightning[data]'"
        )
    if exists(path) and path.is_dir():
        arrow = read_folder(path)
        return arrow, arrow.column_names, []
    if not is_regular_file(path):
        what = "; what is there is not a file that can be read" if exists(path) else ""
        raise ConfigError(f"there is no file {str(path)[:300]!r} (looked up from {str(Path.cwd())!r}){what}.")
    try:
        kind = _kind_of(path)
        if kind in ("csv", "excel"):
            arrow = _read_csv(path, texts) if kind == "csv" else _read_excel(path, texts)
            names = arrow.column_names  # which decodes them
        elif kind == "parquet":
            arrow, names = _read_parquet(path, columns)
        else:
            arrow = _read_json(path)
            names = arrow.column_names
    except ConfigError:
        raise
    except Exception as error:  # libraries raise any exception on a broken file
        if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error):
            raise _not_utf8(path, "a name or cell") from None
        raise ConfigError(f"{str(path)!r} cannot be read: {reason(error)}") from error
    if kind == "csv":
        _check_decoded(arrow, path)
    if not names:
        raise ConfigError(f"{str(path)!r} has no columns.")
    untyped = [name for name in names if name in texts] if kind in ("csv", "excel") else []
    return arrow, names, untyped


def _kind_of(path: Path) -> str:
    """What a file is: its first bytes decide, and after them its suffix."""
    with path.open("rb") as file:
        start = file.read(_BEGINNING)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    if start[:4] == b"PAR1" or last in (".parquet", ".pq"):
        return "parquet"
    if last in _EXCEL:
        return "excel"
    if last in (".json", ".jsonl", ".ndjson"):
        return "json"
    is_compressed = last in (".gz", ".bz2", ".zst", ".lz4", ".br")
    for beginning, what in _OTHERS.items():
        if start.startswith(beginning) and not is_compressed:
            raise ConfigError(f"{str(path)!r} is {what}")
    if b"\0" in start and not is_compressed:
        raise ConfigError(f"{str(path)!r} is not a text, as a table in CSV has to be; it begins with {start[:20]!r}.")
    return "csv"


def _read_parquet(path: Path, columns: Collection[str] | None) -> "tuple[pyarrow.Table, list[str]]":
    """The table, of some columns or all, and the names of all."""
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    schema = file.schema_arrow
    if len(set(schema.names)) < len(schema.names):
        return schema.empty_table(), schema.names  # a table with such names is refused
    # without any column the number of rows would be lost
    wanted = [name for name in schema.names if columns is not None and name in columns] or schema.names
    room = _LARGEST if 8 * file.metadata.num_rows * len(wanted) <= _LARGEST else -1
    found = {}
    for name in wanted:  # one after the other, as each is in memory twice while its pieces are joined
        cells, size = _read_column(file, schema.field(name), room)
        room -= size
        if room < 0:
            raise ConfigError(
                f"{str(path)!r} holds more than {_LARGEST >> 30} GiB of values. Leave out rows or columns."
            )
        found[name] = _joined(cells)
        del cells
    pyarrow.default_memory_pool().release_unused()  # what the pieces have taken
    return pyarrow.table(found), schema.names


def _read_column(file: "ParquetFile", field: "pyarrow.Field", room: int) -> "tuple[pyarrow.ChunkedArray, int]":
    """A column in pieces, and its bytes, of which no more are read than there is room for."""
    import pyarrow

    pieces: list[pyarrow.Array] = []
    waiting: list[pyarrow.Array] = []
    size = 0
    is_coded = pyarrow.types.is_dictionary(field.type)
    texts = None  # those of the codes of the batch before
    # batch by batch, because equal values take no room in a file
    batches = file.iter_batches(_BATCH_OF_CODES if is_coded else _BATCH, columns=[field.name]) if room >= 0 else ()
    for batch in batches:
        cells = batch.column(field.name)  # a dot in a name brings other columns along
        if is_coded:
            if texts is not None and texts.equals(cells.dictionary):  # of which each batch has a copy
                cells = pyarrow.DictionaryArray.from_arrays(cells.indices, texts, ordered=field.type.ordered)
            else:
                texts = cells.dictionary
                size += texts.nbytes
        size += getattr(cells, "indices", cells).nbytes
        if size > room:
            break
        waiting.append(cells)
        if len(waiting) == _WAITING:  # joined, as those of texts take up to twice the memory of their letters
            pieces += _joined(pyarrow.chunked_array(waiting)).chunks
            waiting.clear()
    return pyarrow.chunked_array([*pieces, *waiting], field.type), size


def _joined(cells: "pyarrow.ChunkedArray") -> "pyarrow.ChunkedArray":
    """The cells in one piece, or of more than 2 GiB of text in as few as Arrow can."""
    import pyarrow

    return pyarrow.table({"cells": cells}).combine_chunks().column(0)


def _read_excel(path: Path, texts: Collection[str]) -> "pyarrow.Table":
    """The first sheet, through pandas."""
    import pyarrow

    try:
        import pandas

        frame = pandas.read_excel(path, dtype=dict.fromkeys(texts, str))
    except ImportError as error:
        raise ConfigError(
            f"{str(path)!r} is an Excel file, which pandas reads ({reason(error)}). Install it with: pip install "
            f"pandas openpyxl; or save the sheet as CSV in UTF-8."
        ) from None
    return pyarrow.Table.from_pandas(frame, preserve_index=False)


def _read_json(path: Path) -> "pyarrow.Table":
    """A list of objects, or an object a line."""
    import pyarrow

    if path.stat().st_size > _LARGEST_JSON:
        raise ConfigError(f"{str(path)!r} is larger than 1 GiB. Save it as Parquet.")
    content = path.read_text(encoding="utf-8-sig")
    if content.lstrip()[:1] == "[":
        rows = json.loads(content)
    else:
        rows = [json.loads(line) for line in content.split("\n") if line.strip()]
    wrong = [number for number, row in enumerate(rows) if not isinstance(row, dict)]
    if wrong or not rows:
        place = f"row {wrong[0]} is not an object" if wrong else "it holds no rows"
        raise ConfigError(f"{str(path)!r} is not a table: {place}. Write a list of objects, one per row.")
    names = dict.fromkeys(name for row in rows for name in row)  # in order of their first row
    if len(names) * len(rows) > _MOST_CELLS:
        raise ConfigError(f"{str(path)!r} has {len(rows)} rows that name {len(names)} columns. Save it as Parquet.")
    return pyarrow.table({name: [row.get(name) for row in rows] for name in names})


def _read_csv(path: Path, texts: Collection[str]) -> "pyarrow.Table":
    import pyarrow
    from pyarrow import csv

    suffixes = [suffix.lower() for suffix in path.suffixes]
    separator = "\t" if ".tsv" in suffixes else ","
    content = _unpacked(path)
    _check_separator(content, separator, path)
    _check_quotes(content, separator.encode(), path)

    def read(is_threaded: bool, block_size: int | None = None) -> "pyarrow.Table":
        return csv.read_csv(
            pyarrow.BufferReader(content),
            read_options=csv.ReadOptions(use_threads=is_threaded, block_size=block_size),
            parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(texts, pyarrow.string()), strings_can_be_null=True
            ),
        )

    if len(content) > _LONGEST_ROW:
        with contextlib.suppress(pyarrow.ArrowException):
            return read(is_threaded=True)
    try:
        # all of a small table at once: Arrow's threads may abort a process that ends soon (apache/arrow issue 34314);
        # of a large one a row may have been longer than a block; anything else fails again, and names the row
        return read(is_threaded=False, block_size=_LONGEST_ROW)
    except pyarrow.ArrowException as error:
        if "straddling" not in str(error):
            raise
        longest = _LONGEST_ROW >> 20
        raise ConfigError(f"{str(path)!r} has a row longer than {longest} MiB. Save the table as Parquet.") from None


def _unpacked(path: Path) -> bytes:
    """The text of a file, which may be compressed."""
    import pyarrow

    most = min(_LARGEST, max(_HARMLESS, _MOST_GROWTH * path.stat().st_size))
    chunks = []
    size = 0
    with pyarrow.input_stream(str(path), compression="detect") as stream:
        while chunk := stream.read(_CHUNK):  # the library takes the memory for all that it is asked for
            chunks.append(chunk)
            size += len(chunk)
            if size > most:
                raise ConfigError(
                    f"{str(path)!r} holds more than {most / 2**30:.1f} GiB of text ({path.stat().st_size} bytes are "
                    f"stored). Save it as Parquet."
                )
    return b"".join(chunks)


def _check_separator(content: bytes, separator: str, path: Path) -> None:
    """Raises `ConfigError` if the first lines are split evenly by another separator, and not better by this one."""
    start = content[:_LOOKED_AT].decode("utf-8-sig", errors="replace")
    lines = [line for line in start.split("\n") if line.strip()]
    if len(content) > _LOOKED_AT:
        lines = lines[:-1]  # which may be half a line
    own_count = _even_count(lines, separator)
    for other, name in _SEPARATORS.items():
        if other != separator and _even_count(lines, other) > own_count:
            decimal = ", decimal=','" if other == ";" else ""
            raise ConfigError(
                f"{str(path)!r} seems to be separated by {name}, as its header is {lines[0].strip()[:100]!r}. Write it "
                f"with commas, or with tabs as .tsv. With pandas: read_csv({path.name!r}, sep={other!r}{decimal})"
                f".to_csv('new.csv', index=False)."
            )


def _even_count(lines: list[str], separator: str) -> int:
    """How often a separator stands in each line; 0 if not equally often, -1 if not in the header."""
    counts = {line.count(separator) for line in lines}
    if not lines or separator not in lines[0]:
        return -1
    return counts.pop() if len(counts) == 1 else 0


def _check_quotes(content: bytes, separator: bytes, path: Path) -> None:
    """Raises `ConfigError` for a quoted cell that is never closed, or that goes on behind its closing quote."""
    for start, end in _quoted_cells(content, separator):
        next_byte = content[end + 1 : end + 40].lstrip(b" ")[:1]
        if end >= 0 and next_byte in (b"", b"\r", b"\n", separator):
            continue
        line = content.count(b"\n", 0, start) + 1
        cell = content[start : start + 60].split(b"\n")[0].decode("utf-8", errors="replace")
        swallowed = content.count(b"\n", start, end if end >= 0 else len(content))
        raise ConfigError(
            f"{str(path)!r} has a cell in line {line} that opens a quote and does not close it properly: {cell!r} "
            f"({swallowed} line ends stand before the next quote that could close it). Close it, or write quotes "
            f"within a quoted cell twice."
        )


def _quoted_cells(content: bytes, separator: bytes) -> Iterator[tuple[int, int]]:
    """Where each quoted cell has its opening and its closing quote; -1 if it has no closing one."""
    start = content.find(b'"')
    while start >= 0:
        before = content[max(0, start - 1) : start]
        is_marked = start == len(_BYTE_ORDER_MARK) and content.startswith(_BYTE_ORDER_MARK)
        if before not in (b"", separator, b"\n", b"\r") and not is_marked:
            start = content.find(b'"', start + 1)  # a quote within a plain cell is a letter
            continue
        end = content.find(b'"', start + 1)
        while end >= 0 and content[end + 1 : end + 2] == b'"':  # two stand for one
            end = content.find(b'"', end + 2)
        yield start, end
        start = content.find(b'"', end + 1) if end >= 0 else -1


def _check_decoded(arrow: "pyarrow.Table", path: Path) -> None:
    import pyarrow

    for field in arrow.schema:
        # Arrow's reader of CSV keeps text that it cannot decode as bytes
        if pyarrow.types.is_binary(field.type):
            raise _not_utf8(path, f"column {field.name!r}")


def _not_utf8(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{str(path)!r} is not in UTF-8: {what} cannot be read. Save the file as UTF-8.")
