"""Which rows of a manifest belong together, as closed-form fits and calibration ask for it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hybrid_lightning.data.samples import SampleDataset
from hybrid_lightning.data.splits import SplitRule, groups_of
from hybrid_lightning.data.table import Table


class RowGroups:
    """What a task reads of the groups of a DataModule's rows, after its `setup`."""

    path: str
    split_rule: SplitRule
    datasets: dict[str, SampleDataset]
    _tables: Mapping[str, Table]

    @property
    def train_groups(self) -> Tensor | None:
        """A number per training row `(N,)`, the same for rows of one value of ``split_by``; None without it."""
        return self._groups("train")

    @property
    def val_groups(self) -> Tensor | None:
        """The same for the validation rows."""
        return self._groups("val")

    @property
    def calibration_groups(self) -> Tensor | None:
        """The same for the calibration rows."""
        return self._groups("calibration")

    def _groups(self, split: str) -> Tensor | None:
        column = self.split_rule.group_column
        if column is None:
            return None
        return torch.from_numpy(groups_of(self._tables[self.path], column))[self.datasets[split].rows]
