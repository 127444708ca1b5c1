"""A manifest: a table with a row per sample, read from CSV or Parquet and kept as Arrow columns."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_lightning.errors import ConfigError, unknown

if TYPE_CHECKING:
    import pandas
    import pyarrow


class Table:
    """The rows of a manifest. Rows are counted from 0, without the header of a CSV file.

    Arrow-backed, so that a million rows take little memory and processes that are forked share it.

    Args:
        frame: Columns of Arrow types.
        path: Where it was read from, for errors.
        where: Config path of the setting, for errors.
    """

    def __init__(self, frame: "pandas.DataFrame", path: str | Path, where: str = "data.path") -> None:
        self.frame, self.path, self.where = frame, Path(path), where
        self._texts: dict[str, pyarrow.Array] = {}

    @classmethod
    def read(cls, path: str | Path, where: str = "data.path") -> "Table":
        """Reads a ``.csv``, ``.csv.gz``, ``.tsv`` or ``.parquet`` file.

        Raises:
            ConfigError: If pandas or pyarrow (extra ``data``) is missing, or the file is not there or not readable.
        """
        try:
            import pandas
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{where}: tables are read with pandas and pyarrow, and {error.name} is missing. Install them with: "
                f"pip install 'hybrid_lightning[data]'"
            ) from None
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"{where}: there is no file {str(path)!r} (looked up from {str(Path.cwd())!r}).")
        try:
            if path.suffix == ".parquet":
                frame = pandas.read_parquet(path, dtype_backend="pyarrow")
            else:
                separator = "\t" if ".tsv" in path.suffixes else ","
                frame = pandas.read_csv(path, sep=separator, engine="pyarrow", dtype_backend="pyarrow")
        except Exception as error:  # whatever the readers raise on a broken file
            raise ConfigError(f"{where}: {str(path)!r} cannot be read: {str(error)[:300]}") from error
        return cls(frame, path, where)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [str(name) for name in self.frame.columns]

    def require(self, column: str, where: str) -> None:
        """Raises `ConfigError` if there is no such column."""
        if column not in self.columns:
            raise unknown(where, f"column of {str(self.path)!r}", column, self.columns)

    def texts(self, column: str) -> "pyarrow.Array":
        """A column as text; ``array[row].as_py()`` is a str, or None for an empty cell."""
        if column not in self._texts:
            import pyarrow

            chunked = pyarrow.chunked_array(pyarrow.array(self.frame[column]))
            text = chunked.combine_chunks() if chunked.num_chunks > 1 else chunked.chunk(0)
            text = text.cast(pyarrow.string())
            blank = pyarrow.compute.equal(pyarrow.compute.utf8_trim_whitespace(text), "")
            self._texts[column] = pyarrow.compute.if_else(blank, None, text)
        return self._texts[column]

    def empty(self, column: str) -> np.ndarray[Any, Any]:
        """Which cells are empty: `(rows,)` bool; blank text and nan are empty."""
        empty: np.ndarray[Any, Any] = self.frame[column].isna().to_numpy(dtype=bool)
        return empty

    def numbers(self, column: str, where: str) -> np.ndarray[Any, Any]:
        """A column as `(rows,)` float64, nan in empty cells.

        Raises:
            ConfigError: If a cell holds something else; it names the row and the cell.
        """
        import pandas

        values = pandas.to_numeric(self.frame[column], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
        wrong = np.flatnonzero(np.isnan(values) & ~self.empty(column))
        if len(wrong):
            cell = self.texts(column)[int(wrong[0])].as_py()
            raise ConfigError(
                f"{where}: column {column!r} of {str(self.path)!r} holds {cell!r} in row {wrong[0]}, which is no "
                f"number ({len(wrong)} such cells). Correct them, or read the column as categorical."
            )
        return values
