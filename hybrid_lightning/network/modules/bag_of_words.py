"""An untrained part for texts: the sum of their words' vectors."""

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError

_START = 0.1


class BagOfWords(nn.Module):
    """The sum of a vector per word, over the root of their number (as fastText: Joulin et al., arXiv 1607.01759).

    It does not read the order of words, which small data seldom tell. Word vectors begin small (normal with deviation
    0.1), so that words which stand in few texts of the training rows add little to a new one. Nothing rescales the sum
    of a text, which would undo that, and no hidden layer follows, which learns small data by heart. The root keeps
    texts of all lengths on one scale, as the vectors of unrelated words add up like random numbers.

    Args:
        vocabulary: Number of words, counted from 0, the padding; an input ``{text: ..., tokenizer: words}`` gives it.
        width: Features of a word, and of the text.
        dropout: Probability of leaving out a word while training.

    Raises:
        ConfigError: If a number is impossible.
    """

    def __init__(self, vocabulary: int, width: int = 64, dropout: float = 0.3) -> None:
        super().__init__()
        if vocabulary < 1 or width < 1:
            raise ConfigError(f"{vocabulary} words of {width} features; both are at least 1.", "vocabulary")
        if not 0 <= dropout < 1:
            raise ConfigError(f"{dropout} is not a number at least 0 and below 1.", "dropout")
        self.words = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.words.weight, std=_START)
        self.dropout = dropout

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Words `(B, T)` int64, of which those with a `mask` `(B, T)` of 0 are padding, → features `(B, width)`."""
        vectors = self.words(values)
        kept = torch.ones_like(values, dtype=vectors.dtype) if mask is None else mask.to(vectors.dtype)
        if self.training and self.dropout:
            kept = kept * (torch.rand_like(kept) >= self.dropout)
        # a text without words is 0
        total = (vectors * kept.unsqueeze(-1)).sum(1)
        count = kept.sum(1, keepdim=True).clamp(min=1)
        features: Tensor = total / count.sqrt()
        return features
