"""A manifest: a table with a row per sample, read from CSV or Parquet and kept as Arrow columns."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_lightning.errors import ConfigError, at, listing, unknown

if TYPE_CHECKING:
    import pyarrow

Array = np.ndarray[Any, Any]

_PARQUET = (".parquet", ".pq")
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_LONG = 1 << 30  # bytes from which a column's text gets offsets of 64 bits; Arrow's short ones end at 2 GiB


class Table:
    """The rows of a manifest. Rows are counted from 0, without the header of a CSV file."""

    def __init__(self, arrow: "pyarrow.Table", path: str | Path = "table", place: str = "data.path") -> None:
        self.arrow, self.path, self.place = arrow, Path(path), place
        self.columns: list[str] = list(arrow.column_names)  # names of the columns
        twice = [name for name, count in Counter(self.columns).items() if count > 1]
        if twice:
            raise ConfigError(f"{str(path)!r} has several columns named {listing(twice, 5)}. Rename them.")
        if not len(self):
            raise ConfigError(f"{str(path)!r} has no rows; its columns are {listing(self.columns)}.")
        self._texts: dict[str, pyarrow.Array] = {}

    @classmethod
    def read(cls, path: str | Path, place: str = "data.path", texts: Collection[str] = ()) -> "Table":
        """Reads a ``.parquet`` file, a ``.tsv`` file, or CSV with commas; the latter two in UTF-8, also as ``.gz``.

        In CSV an empty cell is one without text, or with one of the words for it that pandas and R write: NA, N/A, NaN,
        NULL and the like. A category of that name needs Parquet.
        """
        with at(place):
            return cls(_read_arrow(Path(path), texts), path, place)

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def require(self, column: str, place: str = "") -> None:
        """Raises `ConfigError` if there is no such column."""
        if column not in self.columns:
            raise unknown(place, f"column of {str(self.path)!r}", str(column), self.columns)

    def texts(self, column: str) -> "pyarrow.Array":
        """A column as text, where ``array[row].as_py()`` is a str, or None for an empty cell; blank text is empty."""
        if column not in self._texts:
            self._texts[column] = self._as_text(column)
        return self._texts[column]

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
            raise ConfigError(
                f"column {column!r} of {str(self.path)!r} holds {cell!r} in row {rows[0]}, which is not a finite "
                f"number ({len(rows)} such cells). Correct them, or read the column as categorical.",
                place,
            )


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def positions(texts: "pyarrow.Array", names: Sequence[str]) -> Array:
    """The place of each text in a list of names, int64; -1 for others and for empty cells."""
    import pyarrow
    import pyarrow.compute as compute

    found = compute.index_in(texts, value_set=pyarrow.array(names, type=texts.type))
    return np.array(found.fill_null(-1), dtype=np.int64)


def rows_of(rows: Iterable[Any], limit: int = 5) -> str:
    """Rows for a message: "rows 3, 8 and 2 more"."""
    rows = list(rows)
    shown = ", ".join(map(str, rows[:limit]))
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"


def _read_arrow(path: Path, texts: Collection[str]) -> "pyarrow.Table":
    try:
        import pyarrow
    except ModuleNotFoundError:
        raise ConfigError(
            "tables are read with pyarrow, which is missing. Install it with: pip install 'hybrid_lightning[data]'"
        ) from None
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r} (looked up from {str(Path.cwd())!r}).")
    is_parquet = path.suffix in _PARQUET
    try:
        arrow = _read_parquet(path) if is_parquet else _read_csv(path, texts)
        names = arrow.column_names  # which decodes them
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError) or "invalid UTF8" in str(error):
            raise _not_utf8(path, "a name or cell") from None
        raise ConfigError(f"{str(path)!r} cannot be read: {str(error)[:300]}") from error
    _check_separator(names, path)
    for field in arrow.schema:
        # Arrow's reader of CSV keeps text that it cannot decode as bytes
        if pyarrow.types.is_binary(field.type) and not is_parquet:
            raise _not_utf8(path, f"column {field.name!r}")
    return arrow


def _read_parquet(path: Path) -> "pyarrow.Table":
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def _read_csv(path: Path, texts: Collection[str]) -> "pyarrow.Table":
    import pyarrow
    from pyarrow import csv

    separator = "\t" if ".tsv" in path.suffixes else ","
    types = dict.fromkeys(texts, pyarrow.string())
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=True),
    )


def _check_separator(names: list[str], path: Path) -> None:
    """Raises `ConfigError` if a table of one column is one that was split at the wrong character."""
    if len(names) != 1:
        return
    for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "commas")):
        if separator in names[0]:
            raise ConfigError(
                f"{str(path)!r} seems to be separated by {name}, as its header is {names[0][:100]!r}. "
                f"Write it with commas, or with tabs as .tsv."
            )


def _not_utf8(path: Path, what: str) -> ConfigError:
    return ConfigError(f"{str(path)!r} is not in UTF-8: {what} cannot be read. Save the file as UTF-8.")
