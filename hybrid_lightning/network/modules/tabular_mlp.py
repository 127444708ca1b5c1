"""An untrained network for tables of numbers and categories with gaps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.mlp import MLP


class ColumnEmbedding(nn.Module):
    """Each column of a table as a vector of its own.

    A number x becomes ReLU(w x + b) with vectors w and b of its column (there "LR": Gorishniy et al., arXiv
    2203.05556). A missing number, and a missing or unknown category, have a learned vector per column. Initial values
    are uniform between -1 and 1 for numbers, so that each column starts with bends at different places within a few
    standard deviations of 0, and normal with deviation 1 for categories and missing values.
    """

    sizes: Tensor
    starts: Tensor

    def __init__(self, in_features: int, categories: Sequence[int], width: int) -> None:
        super().__init__()
        self.width = width
        self.columns = in_features + len(categories)
        if in_features:
            self.slope = nn.Parameter(torch.empty(in_features, width).uniform_(-1, 1))
            self.offset = nn.Parameter(torch.empty(in_features, width).uniform_(-1, 1))
            self.missing = nn.Parameter(torch.randn(in_features, width))
        sizes = torch.tensor(categories, dtype=torch.long)
        starts = sizes.cumsum(0) - sizes + torch.arange(len(sizes))
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("starts", starts, persistent=False)
        if len(sizes):
            # the first row of each column is for missing and unknown categories
            self.categories = nn.Embedding(int((sizes + 1).sum()), width)

    def forward(self, numeric: Tensor | None, categorical: Tensor | None) -> Tensor:
        """Columns `(B, in_features)` and `(B, len(categories))` → `(B, columns × width)`."""
        vectors = []
        if numeric is not None:
            known = numeric.isfinite().unsqueeze(-1)
            # nan times a weight would be nan also where it is not chosen, and so would its gradient
            finite = numeric.nan_to_num(0.0, 0.0, 0.0).unsqueeze(-1)
            bent = (finite * self.slope + self.offset).relu()
            vectors.append(torch.where(known, bent, self.missing))
        if categorical is not None:
            codes = categorical.long()
            # -1 and what is above the known codes share the row for missing values
            known = (codes >= 0) & (codes < self.sizes)
            rows = self.starts + torch.where(known, codes + 1, 0)
            vectors.append(self.categories(rows))
        return torch.cat(vectors, dim=1).flatten(1)


class TabularMLP(nn.Module):
    """An MLP over a vector per column, for numbers and categories, either of them with gaps.

    Its input is a dict with ``numeric``, ``categorical`` or both, a list of two keys in this order, or the numbers
    alone. The layers start with torch's weights (Kaiming uniform).

    Args:
        in_features: Number of numeric columns; best standardized, because initial weights assume it.
        categories: Number of categories of each categorical column.
        hidden: Features of each layer with ReLU.
        embedding: Size of the vector of a column, see `ColumnEmbedding`.
        dropout: Probability of zeroing a feature after each ReLU while training.

    Raises:
        ConfigError: If there are no columns, or a batch has another number of them.
    """

    def __init__(
        self,
        in_features: int = 0,
        categories: Sequence[int] = (),
        hidden: Sequence[int] = (128, 64),
        embedding: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_columns(in_features, categories)
        self.in_features = in_features
        self.categories = list(categories)
        self.embedding = ColumnEmbedding(in_features, categories, embedding)
        self.layers = MLP(self.embedding.columns * embedding, hidden, dropout=dropout)

    def forward(
        self,
        numeric: Tensor | None = None,
        categorical: Tensor | None = None,
    ) -> Tensor:
        """Columns `(B, in_features)` and `(B, len(categories))` → `(B, hidden[-1])`.

        A number that is not finite, and an integer outside the column's categories, such as -1, are missing.
        """
        self._check_columns("numeric", numeric, "in_features", self.in_features)
        self._check_columns("categorical", categorical, "categories", len(self.categories))
        vectors = self.embedding(
            numeric if self.in_features else None,
            categorical if self.categories else None,
        )
        features: Tensor = self.layers(vectors)
        return features

    @staticmethod
    def _check_columns(name: str, columns: Tensor | None, option: str, count: int) -> None:
        found = 0 if columns is None else columns.shape[-1]
        if found != count:
            raise ConfigError(f"TabularMLP: {found} {name} columns came, and {option} says {count}. Correct it.")


def require_columns(in_features: int, categories: Sequence[int]) -> None:
    """Raises `ConfigError` if a table has no column, or a categorical column no category."""
    if in_features + len(categories) < 1 or min(categories, default=1) < 1:
        raise ConfigError(
            f"{list(categories)!r} beside {in_features} numeric columns; a table needs a column, and a categorical "
            f"column at least one category. Give each column's number of categories, such as [3, 12].",
            "categories",
        )
