"""A manifest: a table with a row per sample, read from CSV or Parquet and kept as Arrow columns."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_lightning.data.frames import arrow_of, frame_name, is_frame
from hybrid_lightning.data.table_files import read_arrow
from hybrid_lightning.errors import ConfigError, at, listing, unknown

if TYPE_CHECKING:
    import pyarrow

Array = np.ndarray[Any, Any]

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_DECORATION = re.compile(r"[,\s%€$£¥'’_]|\b(EUR|USD|GBP|CHF)\b", re.IGNORECASE)
_LONG = 1 << 30  # bytes from which a column's text gets offsets of 64 bits; Arrow's short ones end at 2 GiB


class Table:
    """The rows of a manifest. Rows are counted from 0, without the header of a CSV file."""

    def __init__(
        self,
        arrow: "pyarrow.Table",
        path: str | Path = "table",
        place: str = "data.path",
        untyped: Collection[str] = (),
    ) -> None:
        self.arrow, self.path, self.place = arrow, Path(path), place
        self.untyped = untyped  # columns of text that may mean numbers, because the file has no types
        self.columns: list[str] = list(arrow.column_names)  # names of the columns
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        if twice:
            raise ConfigError(f"{str(path)!r} has several columns named {listing(twice, 5)}. Rename them.")
        if not len(self):
            raise ConfigError(f"{str(path)!r} has no rows; its columns are {listing(self.columns)}.")
        self._texts: dict[str, pyarrow.Array] = {}

    @classmethod
    def read(cls, source: Any, place: str = "data.path", texts: Collection[str] = ()) -> "Table":
        """Reads CSV with commas or ``.tsv``, in UTF-8, also as ``.gz``; Parquet; JSON; Excel through pandas.

        A folder of files is a table, see `read_folder`, and so is one in memory, see `arrow_of`.

        In CSV an empty cell is one without text, or with one of the words for it that pandas and R write: NA, N/A, NaN,
        NULL and the like. A category of that name needs Parquet.
        """
        with at(place):
            if is_frame(source):
                return cls(arrow_of(source), frame_name(source, place), place)
            path = checked_path(source)
            arrow, untyped = read_arrow(Path(path), texts)
            return cls(arrow, path, place, untyped)

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
        if column not in self._texts:
            self._texts[column] = self._as_text(column)
        return self._texts[column]

    def names(self, column: str) -> "pyarrow.Array":
        """A column as text that names things: without blanks at its ends, and with composed letters (NFC)."""
        import pyarrow.compute as compute

        return compute.utf8_trim_whitespace(compute.utf8_normalize(self.texts(column), form="NFC"))

    def _as_text(self, column: str) -> "pyarrow.Array":
        import pyarrow
        import pyarrow.compute as compute

        cells = self.values(column)
        kind = pyarrow.large_string() if cells.nbytes > _LONG else pyarrow.string()
        try:
            text = cells.cast(kind).combine_chunks()
        except pyarrow.ArrowException as error:
            raise ConfigError(
                f"column {column!r} of {str(self.path)!r} holds {cells.type} values, which cannot be read as text: "
                f"{str(error)[:200]}"
            ) from error
        if pyarrow.types.is_floating(cells.type):
            text = compute.if_else(compute.is_nan(cells.combine_chunks()), None, text)
        # utf8_is_space is false for text without any letter
        blank = compute.or_(compute.equal(text, ""), compute.utf8_is_space(text))
        return compute.if_else(blank, None, text) if compute.any(blank).as_py() else text

    def values(self, column: str) -> "pyarrow.ChunkedArray":
        """A column in its own type; of a column of categories, the type of these."""
        import pyarrow

        cells = self.arrow.column(column)
        return cells.cast(cells.type.value_type) if pyarrow.types.is_dictionary(cells.type) else cells

    def empty(self, column: str) -> Array:
        """Which cells are empty: `(rows,)` bool; blank text and nan are empty."""
        cells = self.values(column)
        nulls = self.texts(column).is_null() if _is_text(cells.type) else cells.is_null(nan_is_null=True)
        return np.asarray(nulls, dtype=bool)

    def require_filled(self, column: str, advice: str) -> None:
        """Raises `ConfigError` if there is no such column, or a cell of it is empty."""
        self.require(column)
        empty = np.flatnonzero(self.empty(column))
        if len(empty):
            raise ConfigError(f"column {column!r} of {str(self.path)!r} is empty in {rows_of(empty)}{advice}")

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


def rows_of(rows: Iterable[Any], limit: int = 5) -> str:
    """Rows for a message: "rows 3, 8 and 2 more"."""
    rows = list(rows)
    shown = ", ".join(map(str, rows[:limit]))
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"
