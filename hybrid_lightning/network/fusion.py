"""Fusion: from the features of several parts to one vector."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, unknown


class SampleNorm(nn.BatchNorm1d):
    """BatchNorm without parameters that takes its running statistics for a batch of one sample.

    Args:
        num_features: Number of features.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        """Standardises each feature over the samples, `(B, num_features)`."""
        if self.training and len(features) == 1:
            return functional.batch_norm(features, self.running_mean, self.running_var, eps=self.eps)
        return super().forward(features)


class ConcatFusion(nn.Module):
    """Concatenates projections of standardised features, so that no part dominates by its scale or its width.

    Each part's features are standardised, go through a linear layer to the same width, and through a ReLU.

    Args:
        in_features: Part name → number of features; filled in by the dry run.
        width: Features that each part keeps.
        dropout: Share of the concatenated features that is dropped while training, in [0, 1).
        standardise: ``samples`` (each feature over the samples of a batch, as BatchNorm does, with running statistics
            in evaluation), ``features`` (each sample over its features, as LayerNorm does, which needs no statistics),
            or ``none`` (features as they are, so that a part on a larger scale drowns the others).

    Raises:
        ConfigError: If ``standardise`` is none of these.
    """

    def __init__(
        self, in_features: Mapping[str, int], width: int = 64, dropout: float = 0.0, standardise: str = "samples"
    ) -> None:
        super().__init__()
        norms: dict[str, Callable[[int], nn.Module]] = {
            "samples": SampleNorm,
            "features": partial(nn.LayerNorm, elementwise_affine=False),
            "none": nn.Identity,
        }
        if standardise not in norms:
            raise unknown("model.fusion.args.standardise", "choice", str(standardise), norms)
        if width < 1:
            raise ConfigError(f"model.fusion.args.width: {width} is too small; give at least 1.")
        self.projections = nn.ModuleDict(
            {
                part: nn.Sequential(norms[standardise](size), nn.Linear(size, width))
                for part, size in in_features.items()
            }
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Features of each part `(B, features)` → `(B, parts × width)`."""
        projected = [layer(features[part]).relu() for part, layer in self.projections.items()]
        fused: Tensor = self.dropout(torch.cat(projected, dim=1))
        return fused
