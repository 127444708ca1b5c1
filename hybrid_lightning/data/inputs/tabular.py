"""Numbers and categories: cells of the manifest itself, all in memory."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.checks import check_choice, check_columns
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow

Rows = np.ndarray[Any, Any]


class NumericInput(Input):
    """Columns of numbers, standardized with mean and standard deviation of the training rows: `(B, n)` float32.

    A column that is constant there is only centered.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        numeric: Names of the columns.
        gaps: What an empty cell becomes. ``mean``: the training mean, which is 0; ``indicator``: the same, and one more
            column per column says where, with 1; ``keep``: nan.

    Raises:
        ConfigError: If an option is impossible; later, if a cell is infinite or no number, or a column has no value in
            any training row.
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, key: str, where: str, numeric: Any, gaps: Any = "mean") -> None:
        super().__init__(key, check_columns(numeric, f"{where}.numeric"), where)
        self.gaps = check_choice(gaps, f"{where}.gaps", ("mean", "indicator", "keep"))

    def fit(self, table: Table, rows: Rows) -> dict[str, Any]:
        """``mean`` and ``std`` of each column."""
        return fit_numbers(table, self.columns, rows, self.where)

    def bind(self, table: Table, folder: str) -> None:
        """Standardizes all rows."""
        values = standardized(table, self.columns, self.statistics, self.where)
        missing = values.isnan()
        if self.gaps != "keep":
            values = values.nan_to_num_(0.0)
        if self.gaps == "indicator":
            values = torch.cat([values, missing.float()], dim=1)
        self._values = values.masked_fill_(torch.from_numpy(self.empty(table))[:, None], 0.0)

    def batch(self, rows: Tensor) -> Tensor:
        """`(B, n)`, or `(B, 2 n)` with indicators."""
        return self._values[rows]


class CategoricalInput(Input):
    """Columns of categories, numbered from 0 in the order of their text in the training rows: `(B, m)` int64.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        categorical: Names of the columns.
        one_hot: Whether each becomes as many columns as it has categories, 1 in that of its own: `(B, total)` float32.
            A missing or unknown category has no 1; without `one_hot` it is -1.

    Raises:
        ConfigError: If an option is impossible; later, if a column has no value in any training row.
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, key: str, where: str, categorical: Any, one_hot: Any = False) -> None:
        super().__init__(key, check_columns(categorical, f"{where}.categorical"), where)
        self.one_hot = check_choice(one_hot, f"{where}.one_hot", (False, True))

    def fit(self, table: Table, rows: Rows) -> dict[str, Any]:
        """``categories`` of each column."""
        return fit_categories(table, self.columns, rows, self.where)

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """``categories``: how many each column has; nothing with `one_hot`."""
        return {} if self.one_hot else {"categories": self._sizes}

    @property
    def _sizes(self) -> list[int]:
        return [len(self.statistics["categories"][column]) for column in self.columns]

    def bind(self, table: Table, folder: str) -> None:
        """Numbers all rows."""
        self._codes = coded(table, self.columns, self.statistics, self.where)
        self._absent = torch.from_numpy(self.empty(table))

    def batch(self, rows: Tensor) -> Tensor:
        """`(B, m)` int64, or `(B, total)` float32 with `one_hot`; zeros where all cells of a row are empty."""
        codes = self._codes[rows]
        if not self.one_hot:
            return codes.masked_fill(self._absent[rows][:, None], 0)
        columns = [functional.one_hot(c + 1, n + 1)[:, 1:] for c, n in zip(codes.T, self._sizes, strict=True)]
        return torch.cat(columns, dim=1).float()


class TableInput(Input):
    """Columns of numbers and of categories, as ``TabularMLP`` takes them, gaps included.

    A batch has ``numeric`` `(B, n)` float32, standardized as in `NumericInput`, nan in gaps, and ``categorical``
    `(B, m)` int64, numbered as in `CategoricalInput`, -1 for missing and unknown categories. Without columns of a kind
    its entry is left out. Rows in which all cells are empty are zeros.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        numeric: Names of the columns of numbers; may be empty if `categorical` is not.
        categorical: Names of the columns of categories; may be empty if `numeric` is not.
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, key: str, where: str, numeric: Any, categorical: Any) -> None:
        self.numeric = check_columns(numeric, f"{where}.numeric", empty=True)
        self.categorical = check_columns(categorical, f"{where}.categorical", empty=True)
        super().__init__(key, check_columns(self.numeric + self.categorical, where), where)

    def fit(self, table: Table, rows: Rows) -> dict[str, Any]:
        """``mean`` and ``std`` of columns of numbers, ``categories`` of the others."""
        numbers = fit_numbers(table, self.numeric, rows, self.where)
        return {**numbers, **fit_categories(table, self.categorical, rows, self.where)}

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """``categories``: how many each column of categories has."""
        return {"categories": [len(self.statistics["categories"][column]) for column in self.categorical]}

    def bind(self, table: Table, folder: str) -> None:
        """Standardizes and numbers all rows."""
        absent = torch.from_numpy(self.empty(table))[:, None]
        self._values: dict[str, Tensor] = {}
        if self.numeric:
            numbers = standardized(table, self.numeric, self.statistics, self.where)
            self._values["numeric"] = numbers.masked_fill_(absent, 0.0)
        if self.categorical:
            codes = coded(table, self.categorical, self.statistics, self.where)
            self._values["categorical"] = codes.masked_fill_(absent, 0)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """``numeric`` and ``categorical``."""
        return {name: values[rows] for name, values in self._values.items()}


def fit_numbers(table: Table, columns: list[str], rows: Rows, where: str) -> dict[str, dict[str, float]]:
    """``mean`` and ``std`` of columns over rows, gaps left out; a constant column has std 1."""
    found: dict[str, dict[str, float]] = {"mean": {}, "std": {}}
    for column in columns:
        table.require(column, where)
        values = table.numbers(column, where)[rows]
        values = values[~np.isnan(values)]
        if not len(values):
            raise _nothing_known(column, rows, where)
        largest = 2.0 ** (int(np.frexp(np.abs(values).max())[1]) - 1)  # squares of huge numbers overflow
        mean, std = (values / largest).mean(), (values / largest).std()
        found["mean"][column] = float(mean * largest)
        found["std"][column] = float(std * largest) if std > 1e-9 else 1.0
    return found


def standardized(table: Table, columns: list[str], statistics: dict[str, Any], where: str) -> Tensor:
    """`(rows, n)` float32 of all rows, nan in gaps."""
    values = np.empty((len(table), len(columns)), dtype=np.float32)
    for index, column in enumerate(columns):
        mean, std = (fitted(statistics, name, column, where) for name in ("mean", "std"))
        table.require(column, where)
        values[:, index] = (table.numbers(column, where) - mean) / std
    return torch.from_numpy(values)


def fit_categories(table: Table, columns: list[str], rows: Rows, where: str) -> dict[str, dict[str, list[str]]]:
    """``categories``: what stands in each column in these rows, sorted as text."""
    import pyarrow

    categories = {}
    for column in columns:
        table.require(column, where)
        known = table.texts(column).take(pyarrow.array(rows)).unique().drop_null()
        if not len(known):
            raise _nothing_known(column, rows, where)
        categories[column] = sorted(known.to_pylist())
    return {"categories": categories}


def coded(table: Table, columns: list[str], statistics: dict[str, Any], where: str) -> Tensor:
    """`(rows, m)` int64 of all rows: positions in the categories, -1 elsewhere."""
    codes = np.empty((len(table), len(columns)), dtype=np.int64)
    for index, column in enumerate(columns):
        table.require(column, where)
        codes[:, index] = _positions(table.texts(column), fitted(statistics, "categories", column, where))
    return torch.from_numpy(codes)


def _positions(texts: "pyarrow.Array", categories: list[str]) -> Rows:
    import pyarrow
    from pyarrow import compute

    found = compute.index_in(texts, value_set=pyarrow.array(categories, texts.type))
    positions: Rows = compute.fill_null(found, -1).to_numpy(zero_copy_only=False)
    return positions


def fitted(statistics: Mapping[str, Any], name: str, column: str, where: str) -> Any:
    """What was fitted for a column.

    Raises:
        ConfigError: If nothing was, as when the statistics are those of another config.
    """
    try:
        return statistics[name][column]
    except (KeyError, TypeError):
        raise ConfigError(
            f"{where}: the statistics hold no {name} of column {column!r}; they were fitted for another config. Use "
            f"the config of the checkpoint that they come from, or fit anew."
        ) from None


def _nothing_known(column: str, rows: Rows, where: str) -> ConfigError:
    return ConfigError(
        f"{where}: column {column!r} is empty in all {len(rows)} training rows, so nothing can be learned from it. "
        f"Leave it out, or split the rows otherwise."
    )
