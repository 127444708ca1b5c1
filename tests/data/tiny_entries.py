"""Kinds of input that need no files, for tests of what stands on entries."""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.data.entries.base import Entry
from hybrid_lightning.data.table import Table


class Numbers(Entry):
    """Columns of numbers relative to their training means, 0 in gaps."""

    in_memory: ClassVar[bool] = True

    def __init__(self, key: str, numeric: list[str]) -> None:
        super().__init__(key, numeric, f"data.inputs.{key}")

    def fit(self, table: Table, rows: np.ndarray[Any, Any]) -> dict[str, Any]:
        return {"mean": [float(np.nanmean(table.numbers(c, self.where)[rows])) for c in self.columns]}

    @property
    def facts(self) -> dict[str, Any]:
        return {"means": self.statistics["mean"]}

    def bind(self, table: Table, folder: str) -> None:
        columns = [table.numbers(c, self.where) - m for c, m in zip(self.columns, self.statistics["mean"], strict=True)]
        self.values = torch.from_numpy(np.stack(columns, axis=1)).float().nan_to_num()

    def batch(self, rows: Tensor) -> Tensor:
        return self.values[rows]


class Cells(Entry):
    """A number read row by row, as files are: `(2,)`, the number and, in training, something random."""

    def __init__(self, key: str, cell: str) -> None:
        super().__init__(key, [cell], f"data.inputs.{key}")

    def bind(self, table: Table, folder: str) -> None:
        self.values, self.folder = table.numbers(self.columns[0], self.where), folder

    def read(self, row: int, training: bool) -> Tensor:
        return torch.tensor([float(self.values[row]), float(torch.rand(())) if training else 0.0])


def parse(inputs: dict[str, Any]) -> dict[str, Entry]:
    return {key: (Numbers if "numeric" in given else Cells)(key, **given) for key, given in inputs.items()}
