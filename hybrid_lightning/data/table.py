"""A manifest: a table with a row per sample, read from CSV or Parquet and kept as Arrow columns."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_lightning.data.frames import arrow_of, frame_name, is_frame
from hybrid_lightning.data.shard_members import Members
from hybrid_lightning.data.shard_table import is_shards, read_shards, shards_name
from hybrid_lightning.data.spelling import positions
from hybrid_lightning.data.table_files import read_arrow
from hybrid_lightning.errors import ConfigError, at, listing, unknown

if TYPE_CHECKING:
    import pyarrow

Array = np.ndarray[Any, Any]

_SHOWN = 5  # rows in an error
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_DECORATION = re.compile(r"[,\s%€$£¥'’_]|\b(EUR|USD|GBP|CHF)\b", re.IGNORECASE)
_REPEATED = 4  # rows to each different cell of a column from which its texts are kept as codes
_LONG = 1 << 30  # bytes from which a column's text gets offsets of 64 bits; Arrow's short ones end at 2 GiB


class Table:
    """The rows of a manifest. Rows are counted from 0, without the header of a CSV file."""

    def __init__(
        self,
        arrow: "pyarrow.Table",
        path: str | Path = "table",
        place: str = "data.path",
        untyped: Collection[str] = (),
        columns: Collection[str] | None = None,
    ) -> None:
        self.arrow, self.path, self.place = arrow, Path(path), place
        self.untyped = untyped  # columns of text that may mean numbers, because the file has no types
        self.columns: list[str] = list(arrow.column_names if columns is None else columns)
        """Names of all columns, of which `arrow` may lack some."""
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        if twice:
            raise ConfigError(f"{str(path)!r} has several columns named {listing(twice, 5)}. Rename them.")
        if not len(self):
            raise ConfigError(f"{str(path)!r} has no rows; its columns are {listing(self.columns)}.")
        self._texts: dict[str, pyarrow.Array] = {}
        self._coded: set[str] = set()  # columns of text that `arrow` holds as codes, see `coded`
        self.members: dict[str, Members] = {}
        """Column → its files, of a table of shards."""
        self.shards: Array | None = None
        """The number of each row's shard `(rows,)`, of a table of shards."""
        self.sample_names: pyarrow.Array | None = None
        """What messages call each row, of a table of shards."""

    @classmethod
    def read(
        cls,
        source: Any,
        place: str = "data.path",
        texts: Collection[str] = (),
        columns: Collection[str] | None = None,
    ) -> "Table":
        """Reads CSV with commas or ``.tsv``, in UTF-8, also as ``.gz``; Parquet; JSON; Excel through pandas.

        A folder of files is a table, see `read_folder`, and so are shards, see `read_shards`, and one in memory, see
        `arrow_of`.

        In CSV an empty cell is one without text, or with one of the words for it that pandas and R write: NA, N/A, NaN,
        NULL and the like. A category of that name needs Parquet.

        Of Parquet, `columns` alone are read, and others when they are asked for.
        """
        with at(place):
            if is_frame(source):
                return cls(arrow_of(source), frame_name(source, place), place)
            if is_shards(source):
                found = read_shards(source, texts)
                table = cls(found.arrow, shards_name(source), place)
                table.members, table.shards, table.sample_names = found.members, found.shards, found.samples
                return table
            path = checked_path(source)
            arrow, names, untyped = read_arrow(Path(path), texts, columns)
            return cls(arrow, path, place, untyped, names)

    @property
    def title(self) -> str:
        """A name for heads of tables and names of files, which patterns of shards are not."""
        return self.path.name if self.shards is None else "shards"

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def require(self, column: str, place: str = "") -> None:
        """Raises `ConfigError` if there is no such column."""
        if column in self.columns:
            return
        error = unknown(place, f"column of {str(self.path)!r}", str(column), self.columns)
        if any(re.match(_NUMBER, name) for name in self.columns):
            error.args = (f"{error.args[0]} The first line of a table has to name its columns; here it holds numbers.",)
        raise error

    def texts(self, column: str) -> "pyarrow.Array":
        """A column as text, where ``array[row].as_py()`` is a str, or None for an empty cell; blank text is empty."""
        if column in self._texts:
            return self._texts[column]
        texts = self._as_text(_in_one_piece(self.values(column)), column)
        if column not in self._coded:  # those take no memory but while they are used
            self._texts[column] = texts
        return texts

    def names(self, column: str) -> "pyarrow.Array":
        """A column as text that names things: without blanks at its ends, and with composed letters (NFC)."""
        return _as_names(self.texts(column))

    def coded(self, column: str) -> "tuple[pyarrow.Array, Array]":
        """The different names of a column, in order of their first rows; and the place of each row's, `(rows,)` int32.

        Names are as in `names`; the place of an empty cell is -1.
        """
        import pyarrow

        encoded = self._encoded(column)
        pyarrow.default_memory_pool().release_unused()  # of the texts whose place the codes have taken
        names = _as_names(self._as_text(encoded.dictionary, column)).dictionary_encode()
        # of each different cell, which may be empty, or another one but for blanks; the last is for cells without value
        places = np.append(_filled(names.indices), np.int32(-1))
        return names.dictionary, places[_filled(encoded.indices)]

    def positions(self, column: str, names: Sequence[str]) -> Array:
        """The place of each row's name in a list, `(rows,)` int64; see `spelling.positions`."""
        distinct, places = self.coded(column)
        found: Array = np.append(positions(distinct, names), -1)[places]
        return found

    def _encoded(self, column: str) -> "pyarrow.DictionaryArray":
        """The different cells of a column, in order of their first rows, and their indices.

        Texts that repeat are kept so from now on, which takes 4 bytes a row.
        """
        import pyarrow

        if column in self._coded:
            return self.arrow.column(column).chunk(0)
        cells = self.values(column)
        # Arrow does not compare lists, which are no text either
        whole = self.texts(column) if pyarrow.types.is_nested(cells.type) else _in_one_piece(cells)
        encoded = whole.dictionary_encode()
        if _is_text(cells.type) and _REPEATED * len(encoded.dictionary) <= len(self):
            self.arrow = self.arrow.set_column(self.arrow.column_names.index(column), column, encoded)
            self._coded.add(column)
            self._texts.pop(column, None)
        return encoded

    def _as_text(self, cells: "pyarrow.Array", column: str) -> "pyarrow.Array":
        import pyarrow
        import pyarrow.compute as compute

        kind = pyarrow.large_string() if cells.nbytes > _LONG else pyarrow.string()
        try:
            text = cells.cast(kind)
        except pyarrow.ArrowException as error:
            raise ConfigError(
                f"column {column!r} of {str(self.path)!r} holds {cells.type} values, which cannot be read as text: "
                f"{str(error)[:200]}"
            ) from error
        if pyarrow.types.is_floating(cells.type):
            text = compute.if_else(compute.is_nan(cells), None, text)
        # utf8_is_space is false for text without any letter
        blank = compute.or_(compute.equal(text, ""), compute.utf8_is_space(text))
        return compute.if_else(blank, None, text) if compute.any(blank).as_py() else text

    def values(self, column: str) -> "pyarrow.ChunkedArray":
        """A column in its own type; of a column of categories, the type of these."""
        import pyarrow

        cells = self._stored(column)
        return cells.cast(cells.type.value_type) if pyarrow.types.is_dictionary(cells.type) else cells

    def cell(self, column: str, row: int) -> Any:
        """A single cell, as `values` has it; of a column that is kept as codes, without the others."""
        return self._stored(column)[row].as_py()

    def _stored(self, column: str) -> "pyarrow.ChunkedArray":
        """A column as `arrow` has it; one that was left out is read."""
        if column not in self.columns or column in self.arrow.column_names:
            return self.arrow.column(column)
        with at(self.place):
            arrow, _, _ = read_arrow(self.path, columns=[column])
            if arrow.num_rows != len(self) or column not in arrow.column_names:
                raise ConfigError(f"{str(self.path)!r} has changed since it was read. Start again.")
        self.arrow = self.arrow.append_column(column, arrow.column(column))
        return arrow.column(column)

    def empty(self, column: str) -> Array:
        """Which cells are empty: `(rows,)` bool; blank text and nan are empty."""
        if column in self._coded:
            is_empty: Array = self.coded(column)[1] < 0
            return is_empty
        cells = self.values(column)
        nulls = self.texts(column).is_null() if _is_text(cells.type) else cells.is_null(nan_is_null=True)
        return np.asarray(nulls, dtype=bool)

    def require_filled(self, column: str, advice: str) -> None:
        """Raises `ConfigError` if there is no such column, or a cell of it is empty."""
        self.require(column)
        empty = np.flatnonzero(self.empty(column))
        if len(empty):
            rows = "all rows" if len(empty) == len(self) > 1 else self.named(empty)
            raise ConfigError(f"column {column!r} of {str(self.path)!r} is empty in {rows}{advice}")

    def named(self, rows: Array) -> str:
        """Rows for a message, by their numbers; of shards, samples by their keys."""
        if self.sample_names is None:
            return rows_of(rows)
        shown = listing(self.sample_names.take(rows[:_SHOWN]).to_pylist())
        more = f" and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
        return f"{'sample' if len(rows) == 1 else 'samples'} {shown}{more}"

    def numbers(self, column: str, place: str = "") -> Array:
        """A column as `(rows,)` float64, nan in empty cells; true is 1 and false 0."""
        import pyarrow
        import pyarrow.compute as compute

        cells = self.values(column)
        if _is_text(cells.type):
            cells = compute.utf8_trim_whitespace(self.texts(column))
            wrong = compute.invert(compute.match_substring_regex(cells, _NUMBER))
            self._refuse(column, place, np.asarray(compute.fill_null(wrong, False)))
            cells = compute.utf8_ltrim(cells, "+")  # Arrow reads no sign but the minus
        try:
            # safe would refuse whole numbers above 2**53
            values: Array = np.array(cells.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False))
        except pyarrow.ArrowException:  # dates, lists
            values = np.where(self.empty(column), np.nan, np.inf)
        self._refuse(column, place, np.isinf(values))
        return values

    def _refuse(self, column: str, place: str, wrong: Array) -> None:
        """Raises an error about the cells that are not numbers, if there are any."""
        rows = np.flatnonzero(wrong)
        if len(rows):
            cell = self.texts(column)[int(rows[0])].as_py()
            advice = "Correct them, or read the column as categorical."
            if is_written_number(cell):
                advice = "Write them as plain numbers, with a point, and without thousands separators, % or currency."
            raise ConfigError(
                f"column {column!r} of {str(self.path)!r} holds {cell!r} in row {rows[0]}, which is not a finite "
                f"number ({len(rows)} such cells). {advice}",
                place,
            )


def _in_one_piece(cells: "pyarrow.ChunkedArray") -> "pyarrow.Array":
    """The cells; Arrow's own function copies also what is in one piece, and fails for more than 2 GiB of text."""
    import pyarrow

    if cells.num_chunks == 1:
        return cells.chunk(0)
    is_long = pyarrow.types.is_string(cells.type) and cells.nbytes > _LONG
    return (cells.cast(pyarrow.large_string()) if is_long else cells).combine_chunks()


def _as_names(texts: "pyarrow.Array") -> "pyarrow.Array":
    import pyarrow.compute as compute

    return compute.utf8_trim_whitespace(compute.utf8_normalize(texts, form="NFC"))


def _filled(indices: "pyarrow.Array") -> Array:
    """Indices as an array, -1 for those that are missing."""
    return np.asarray(indices.fill_null(-1))


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def checked_path(path: Any) -> str:
    """The path of a table; `ConfigError` for what is none."""
    if not isinstance(path, str | Path):
        raise ConfigError(
            f"a {type(path).__name__} is neither a table nor the path of one. Give a path, a DataFrame of pandas or "
            f"polars, or a table of Arrow."
        )
    return str(path)


def is_plain_number(text: str) -> bool:
    """Whether a text is a number as a program reads it."""
    return re.match(_NUMBER, text.strip()) is not None


def is_written_number(text: str) -> bool:
    """Whether a text is a number but for commas, blanks, a percent sign or a currency."""
    return not is_plain_number(text) and is_plain_number(_DECORATION.sub("", text))


def rows_of(rows: Iterable[Any], limit: int = _SHOWN) -> str:
    """Rows for a message: "rows 3, 8 and 2 more"."""
    rows = list(rows)
    shown = ", ".join(map(str, rows[:limit]))
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"
