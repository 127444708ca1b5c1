"""An untrained transformer for sequences."""

import math

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError


class SequenceTransformer(nn.Module):
    """A small transformer encoder (Vaswani et al., arXiv 1706.03762; norms before the layers, arXiv 2002.04745).

    Positions are sines and cosines, added to the projected inputs, so sequences may have any length. Initial weights
    are torch's: Xavier uniform for the attention, Kaiming uniform for linear layers, normal with deviation 1 for
    tokens.

    Args:
        in_features: Features of each step; not used with `vocabulary`.
        vocabulary: Number of tokens, for sequences of integers from 0; None for sequences of vectors.
        width: Features of each step inside; even, and a multiple of `heads`.
        depth: Number of layers.
        heads: Number of attention heads.
        dropout: Probability of zeroing a feature within each layer while training.

    Raises:
        ConfigError: If the sizes do not fit together.
    """

    def __init__(
        self,
        in_features: int | None = None,
        vocabulary: int | None = None,
        width: int = 64,
        depth: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if width < 2 or heads < 1 or width % heads or width % 2:
            raise ConfigError(f"{width} is not an even multiple of heads ({heads}); take such as 64 and 4.", "width")
        if depth < 1:
            raise ConfigError(f"{depth} is less than 1 layer.", "depth")
        self.width = width
        self.steps: nn.Module
        if vocabulary is not None:
            self.steps = nn.Embedding(vocabulary, width)
        elif in_features is not None:
            self.steps = nn.Linear(in_features, width)
        else:
            raise ConfigError(
                "give the features of each step, or the vocabulary of a sequence of tokens.", "in_features"
            )
        self.layers = nn.ModuleList()
        for _ in range(depth):
            layer = nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            self.layers.append(layer)
        self.norm = nn.LayerNorm(width)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Sequences `(B, T, in_features)`, or tokens `(B, T)`, → features of each step `(B, T, width)`.

        Steps where `mask` `(B, T)` is 0 are padding. A sequence of nothing but padding counts as a whole one.
        """
        features = self.steps(values)
        # added after the projection, so that any input width works
        features = features + self._positions(features)
        padding = None
        if mask is not None:
            kept = mask.bool()
            # attention to nothing at all would be nan
            padding = ~(kept | ~kept.any(1, keepdim=True))
        for layer in self.layers:
            features = layer(features, src_key_padding_mask=padding)
        normed: Tensor = self.norm(features)
        return normed

    def _positions(self, features: Tensor) -> Tensor:
        """`(T, width)`: sines, then cosines, with periods from 2 pi to 10,000 times 2 pi steps."""
        half = self.width // 2
        rates = torch.exp(torch.arange(half, device=features.device) * (-math.log(10_000) / half))
        angles = torch.arange(features.shape[1], device=features.device).unsqueeze(1) * rates
        return torch.cat([angles.sin(), angles.cos()], dim=1).to(features.dtype)
