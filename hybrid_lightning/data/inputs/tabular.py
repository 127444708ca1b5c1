"""Numbers and categories: cells of the manifest itself, all in memory."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.spelling import without_decimals
from hybrid_lightning.data.table import Array, Table
from hybrid_lightning.errors import ConfigError, check_choice


class ColumnInput(Input):
    """Columns of the manifest, each of which is fitted by itself."""

    in_memory: ClassVar[bool] = True

    @abstractmethod
    def batch(self, rows: Tensor) -> Tensor:
        """`(B, columns)`."""

    def fitted(self, name: str, column: str) -> Any:
        """What was fitted for a column."""
        try:
            return self.statistics[name][column]
        except (KeyError, TypeError):
            raise ConfigError(
                f"the statistics hold no {name} of column {column!r}; they were fitted for another config. Use the "
                f"config of the checkpoint that they come from, or fit anew.",
                self.where,
            ) from None

    def empty_column(self, column: str, rows: Array) -> ConfigError:
        """An error for a column without a value in the training rows."""
        return ConfigError(
            f"column {column!r} is empty in all {len(rows)} training rows, so nothing can be learned from it. Leave it "
            f"out, or split the rows otherwise.",
            self.where,
        )


class NumericInput(ColumnInput):
    """Columns of numbers, standardized with mean and standard deviation of the training rows: `(B, n)` float32.

    A column that is constant there is only centered.

    Args:
        numeric: Names of the columns.
        gaps: What an empty cell becomes. ``mean``: the training mean, which is 0; ``indicator``: the same, and one more
            column per column is 1 there; ``keep``: nan.
    """

    def __init__(self, key: str, numeric: Any, gaps: Any = "mean") -> None:
        super().__init__(key, check_columns(numeric, "numeric"))
        self.gaps = check_choice(gaps, "gaps", ("mean", "indicator", "keep"))

    @property
    def text_columns(self) -> list[str]:
        """None: cells are numbers."""
        return []

    def fit(self, table: Table, rows: Array) -> dict[str, Any]:
        """``mean`` and ``std`` of each column, gaps left out; a constant column has std 1."""
        means: dict[str, float] = {}
        stds: dict[str, float] = {}
        for column in self.columns:
            values = table.numbers(column, self.where)[rows]
            values = values[~np.isnan(values)]
            if not len(values):
                raise self.empty_column(column, rows)
            _, exponent = np.frexp(max(values.max(), -values.min()))
            largest = 2.0 ** (int(exponent) - 1)  # squares of huge numbers would overflow
            values /= largest  # in place, as copies of long columns take most of the memory
            std = values.std()
            means[column] = float(values.mean() * largest)
            stds[column] = float(std * largest) if std > 1e-12 else 1.0  # below are rounding errors
        return {"mean": means, "std": stds}

    def bind(self, table: Table) -> None:
        """Standardizes all rows."""
        shape = (len(table), len(self.columns))
        columns = np.empty(shape, dtype=np.float32)
        for index, column in enumerate(self.columns):
            numbers = table.numbers(column, self.where)
            mean = self.fitted("mean", column)
            std = self.fitted("std", column)
            numbers -= mean  # in float64
            numbers /= std
            columns[:, index] = numbers
        values = torch.from_numpy(columns)
        gaps = values.isnan()
        if self.gaps != "keep":
            values.nan_to_num_(0.0)
        if self.gaps == "indicator":
            values = torch.cat([values, gaps.float()], dim=1)
        self._values = values

    def batch(self, rows: Tensor) -> Tensor:
        """`(B, n)`, or `(B, 2 n)` with indicators."""
        return self._values[rows]


class CategoricalInput(ColumnInput):
    """Columns of categories, numbered from 0 in the order of their text in the training rows: `(B, m)` int64.

    Blanks at the ends do not count, and 7.0 is 7. What no training row has is taken for the one category of which it is
    another spelling (letter case, leading zeros), if there is one.

    Args:
        categorical: Names of the columns.
        one_hot: Whether each becomes as many columns as it has categories, 1 in that of its own: `(B, total)` float32.
            A missing or unknown category has no 1; without `one_hot` it is -1.
    """

    def __init__(self, key: str, categorical: Any, one_hot: Any = False) -> None:
        super().__init__(key, check_columns(categorical, "categorical"))
        self.one_hot = check_choice(one_hot, "one_hot", (False, True))

    def fit(self, table: Table, rows: Array) -> dict[str, Any]:
        """``categories`` of each column: the texts of these rows, sorted."""
        categories = {}
        for column in self.columns:
            names, places = table.coded(column)
            is_there = np.zeros(len(names) + 1, dtype=bool)  # the last one: an empty cell
            is_there[places[rows]] = True
            texts = without_decimals(names.take(np.flatnonzero(is_there[:-1]))).unique()
            if not len(texts):
                raise self.empty_column(column, rows)
            categories[column] = sorted(texts.to_pylist())
        return {"categories": categories}

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """``categories``: how many each column has; nothing with `one_hot`."""
        return {} if self.one_hot else {"categories": self._sizes}

    @property
    def _sizes(self) -> list[int]:
        return [len(self.fitted("categories", column)) for column in self.columns]

    def bind(self, table: Table) -> None:
        """Numbers all rows."""
        codes = [table.positions(column, self.fitted("categories", column)) for column in self.columns]
        self._codes = torch.from_numpy(np.stack(codes, axis=1))

    def batch(self, rows: Tensor) -> Tensor:
        """`(B, m)` int64, or `(B, total)` float32 with `one_hot`."""
        codes = self._codes[rows]
        if not self.one_hot:
            return codes
        columns = []
        for column, size in zip(codes.T, self._sizes, strict=True):
            own = functional.one_hot(column + 1, size + 1)
            columns.append(own[:, 1:])  # the first column is that of -1
        return torch.cat(columns, dim=1).float()


class TableInput(Input):
    """Columns of numbers and of categories, as ``TabularMLP`` takes them, gaps included.

    A batch has ``numeric`` `(B, n)` float32, standardized as in `NumericInput`, nan in gaps, and ``categorical``
    `(B, m)` int64, numbered as in `CategoricalInput`, -1 for missing and unknown categories. Without columns of a kind
    its entry is left out.
    """

    in_memory: ClassVar[bool] = True

    def __init__(self, key: str, numeric: Any, categorical: Any) -> None:
        self._inputs: dict[str, ColumnInput] = {}
        if numeric != []:
            self._inputs["numeric"] = NumericInput(key, numeric, gaps="keep")
        if categorical != []:
            self._inputs["categorical"] = CategoricalInput(key, categorical)
        columns = []
        for one in self._inputs.values():
            columns += one.columns
        super().__init__(key, check_columns(columns, ""))

    @property
    def text_columns(self) -> list[str]:
        """The columns of categories."""
        return [column for part in self._inputs.values() for column in part.text_columns]

    def fit(self, table: Table, rows: Array) -> dict[str, Any]:
        """``mean`` and ``std`` of columns of numbers, ``categories`` of the others."""
        statistics: dict[str, Any] = {}
        for one in self._inputs.values():
            statistics.update(one.fit(table, rows))
        return statistics

    @property
    def inferred_arguments(self) -> dict[str, Any]:
        """``categories``: how many each column of categories has."""
        categories = self.statistics.get("categories", {})
        return {"categories": [len(known) for known in categories.values()]}

    def bind(self, table: Table) -> None:
        """Standardizes and numbers all rows."""
        for one in self._inputs.values():
            one.statistics = self.statistics
            one.bind(table)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """``numeric`` and ``categorical``."""
        return {name: one.batch(rows) for name, one in self._inputs.items()}


def check_columns(value: Any, place: str) -> list[str]:
    """Names of columns, each once; a single name stands for a list of one."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(f"{value!r} is neither the name of a column nor a list of names.", place)
    if len(set(names)) != len(names):
        raise ConfigError(f"{list(names)!r} names a column twice.", place)
    if not names:
        raise ConfigError("there is no column in the list; name at least one.", place)
    return list(names)
