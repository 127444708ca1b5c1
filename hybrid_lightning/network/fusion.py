"""Fusion: from the features of several parts to one vector."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError


class ConcatFusion(nn.Module):
    """Concatenates standardised projections, so that no part dominates by its scale or its width.

    Each part's features go through a linear layer to the same width and a layer normalisation without parameters.

    Args:
        in_features: Part name → number of features; filled in by the dry run.
        width: Features that each part keeps, at least 2 (a single one, standardised, would be constant).
        dropout: Share of the concatenated features that is dropped while training, in [0, 1).
    """

    def __init__(self, in_features: Mapping[str, int], width: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        if width < 2:
            raise ConfigError(f"model.fusion.args.width: {width} is too small; give at least 2.")
        self.projections = nn.ModuleDict({part: nn.Linear(size, width) for part, size in in_features.items()})
        self.standardise = nn.LayerNorm(width, elementwise_affine=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Features of each part `(B, features)` → `(B, parts × width)`."""
        projected = [self.standardise(layer(features[part])) for part, layer in self.projections.items()]
        fused: Tensor = self.dropout(torch.cat(projected, dim=1))
        return fused
