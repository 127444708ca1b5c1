"""Fusion: from the features of several parts to one vector, also for samples that lack some of them."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, check_keys, check_number
from hybrid_lightning.network.missing import Presence, everybody, rows_with
from hybrid_lightning.network.modules.mlp import LinearVote, set_linear

Features = Mapping[str, Tensor]
"""Part → `(B, features)`."""


class SampleNorm(nn.BatchNorm1d):
    """BatchNorm without parameters that takes its running statistics for a batch of one sample."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, affine=False)

    def forward(self, features: Tensor, present: Tensor | None = None) -> Tensor:
        """Standardizes each feature `(B, num_features)` over the samples; while training, over those `present`."""
        if not self.training or (present is None and len(features) > 1):
            return super().forward(features)
        if present is None:
            return functional.batch_norm(features, self.running_mean, self.running_var, eps=self.eps)
        # sums in half precision would overflow
        exact = features if features.dtype == torch.float64 else features.float()
        mean, variance = self._statistics(exact, present.unsqueeze(1))
        return ((features - mean) * (variance + self.eps).rsqrt()).to(features.dtype)

    def _statistics(self, features: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the present samples; the running ones if they are fewer than two."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count = present.sum()
        enough = count > 1
        samples = count.clamp(min=1)
        mean = torch.where(present, features, 0.0).sum(0) / samples
        deviations = torch.where(present, features - mean, 0.0)
        variance = deviations.square().sum(0) / samples
        with torch.no_grad():
            # 0 with fewer than two samples, so that the running statistics stay
            momentum = self.momentum or 0.0
            share = (momentum * enough).to(self.running_mean)
            # as in torch's BatchNorm, the running variance is the unbiased one
            unbiased = variance * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean), share)
            self.running_var.lerp_(unbiased.to(self.running_var), share)
            self.num_batches_tracked += enough
        mean = torch.where(enough, mean, self.running_mean)
        variance = torch.where(enough, variance, self.running_var)
        return mean, variance


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "samples": SampleNorm,
    "features": partial(nn.LayerNorm, elementwise_affine=False),
    "none": nn.Identity,
}
"""``standardize`` → layer for features `(B, size)`."""


def sample_norm(size: int, standardize: str) -> nn.Module:
    """The layer that ``standardize`` names, for features `(B, size)`."""
    check_keys([standardize], _NORMS, "standardize", "choice")
    return _NORMS[standardize](size)


def standardized(norm: nn.Module, features: Tensor, present: Tensor | None) -> Tensor:
    """Features `(B, size)` after a layer of `sample_norm`; those of absent samples have no meaning."""
    normed: Tensor = norm(features, present) if isinstance(norm, SampleNorm) else norm(features)
    return normed


class StandIn(nn.Module):
    """What a fusion takes in the place of an absent part: a learned vector, at first zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Features `(B, width)`, replaced where `present` `(B,)` is False."""
        return torch.where(present.unsqueeze(1), features, self.token.to(features.dtype))


class Fusion(nn.Module):
    """What the fusions share: each part's features are standardized, projected to one width, and go through a ReLU.

    Where a part is absent, its learned vector stands in; in a model that has never seen it absent, what features of 0
    after standardizing give, those of an average sample if `standardize` is ``samples``.

    Args:
        in_features: Part name → number of features; filled in by the dry run.
        width: Features that each part keeps.
        dropout: Share of the fused features that is dropped while training, in [0, 1).
        standardize: ``samples`` (each feature over the samples of a batch, as BatchNorm does, with running statistics
            in evaluation), ``features`` (each sample over its features, as LayerNorm does, which needs no statistics),
            or ``none`` (features as they are, so that a part on a larger scale drowns the others).
        modality_dropout: Probability of leaving a part out of a sample while training, in [0, 1); never all of them.
        absent: Parts that samples may lack; filled in by the dry run.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(
        self,
        in_features: Mapping[str, int],
        width: int = 64,
        dropout: float = 0.0,
        standardize: str = "samples",
        modality_dropout: float = 0.0,
        absent: Collection[str] = (),
    ) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"{width} is too small; give at least 1.", "width")
        self.modality_dropout = checked_rate(modality_dropout)
        self.width = width
        self.projections = nn.ModuleDict()
        for part, size in in_features.items():
            norm = sample_norm(size, standardize)
            self.projections[part] = nn.Sequential(norm, nn.Linear(size, width))
        self.dropout = nn.Dropout(dropout)
        self.stand_ins = nn.ModuleDict({part: StandIn(width) for part in absent})
        self.extend(len(in_features))

    def extend(self, parts: int) -> None:
        """For subclasses: makes what follows the projections of so many parts."""

    def projected(self, features: Features, present: Presence | None) -> dict[str, Tensor]:
        """Part → its projected features `(B, width)`, or what stands in for them."""
        found = {}
        for part, layers in self.projections.items():
            norm, linear = layers.children()
            mask = (present or {}).get(part)
            vectors = linear(standardized(norm, features[part], mask)).relu()
            if part in self.stand_ins:
                there = everybody(vectors) if mask is None else mask
                vectors = self.stand_ins[part](vectors, there)
            elif mask is not None:
                average = linear(torch.zeros_like(features[part][:1])).relu()
                vectors = torch.where(mask.unsqueeze(1), vectors, average)
            found[part] = vectors
        return found


def checked_rate(rate: float) -> float:
    """The rate of modality dropout, if it is in [0, 1)."""
    check_number(rate, "modality_dropout", low=0)
    if rate >= 1:
        raise ConfigError(f"{rate} would drop everything; give less than 1.", "modality_dropout")
    return rate


def masks(parts: Iterable[str], present: Presence | None, like: Tensor) -> Tensor:
    """`(B, parts)` bool: which parts are there."""
    known = present or {}
    of_parts = [known.get(part, everybody(like)) for part in parts]
    return torch.stack(of_parts, dim=1)


def masked_softmax(scores: Tensor, there: Tensor, dim: int) -> Tensor:
    """Weights over what is there, 0 elsewhere; where nothing is there, equal weights."""
    there = there | ~there.any(dim, keepdim=True)
    return scores.masked_fill(~there, float("-inf")).softmax(dim)


class ConcatFusion(Fusion):
    """Concatenates projections of standardized features, so that no part dominates by its scale or its width."""

    def forward(self, features: Features, present: Presence | None = None) -> Tensor:
        """Features of each part `(B, features)` → `(B, parts × width)`."""
        vectors = self.projected(features, present)
        fused: Tensor = self.dropout(torch.cat(list(vectors.values()), dim=1))
        return fused


class GatedFusion(Fusion):
    """A weighted sum of the projections; for each sample and feature, gates decide how much of each part it holds.

    The gates see all projections, and sum to 1 over the parts that a sample has: the gated multimodal unit (Arevalo et
    al., arXiv 1702.01992), for any number of parts, with a softmax for its sigmoid.
    """

    def extend(self, parts: int) -> None:
        """Makes the gates."""
        self.gates = nn.Linear(parts * self.width, parts * self.width)

    def forward(self, features: Features, present: Presence | None = None) -> Tensor:
        """Features of each part `(B, features)` → `(B, width)`."""
        # (B, parts, width)
        vectors = torch.stack(list(self.projected(features, present).values()), dim=1)
        there = masks(self.projections, present, vectors).unsqueeze(2)
        gates = self.gates(vectors.flatten(1)).view_as(vectors)
        weights = masked_softmax(gates, there, dim=1)
        fused: Tensor = self.dropout((weights * vectors).sum(1))
        return fused


class AttentionFusion(Fusion):
    """Attention over the parts: a learned query reads them through one transformer layer (norms first).

    A part that is absent is not attended to, unless the model has learned a vector for it: that is attended to instead.

    Args:
        heads: Number of attention heads, which divides `width`; the other arguments are those of `Fusion`.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(
        self,
        in_features: Mapping[str, int],
        width: int = 64,
        dropout: float = 0.0,
        standardize: str = "samples",
        modality_dropout: float = 0.0,
        absent: Collection[str] = (),
        heads: int = 4,
    ) -> None:
        super().__init__(in_features, width, dropout, standardize, modality_dropout, absent)
        if heads < 1 or width % heads:
            raise ConfigError(f"{heads} heads do not divide the width {width}.", "heads")
        self.marks = nn.Parameter(torch.randn(1 + len(in_features), width) * width**-0.5)
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )

    def forward(self, features: Features, present: Presence | None = None) -> Tensor:
        """Features of each part `(B, features)` → `(B, width)`."""
        vectors = torch.stack(list(self.projected(features, present).values()), dim=1)
        query = vectors.new_zeros(vectors.shape[0], 1, self.width)
        steps = torch.cat([query, vectors], dim=1) + self.marks
        without_vector = dict(present or {})
        for part in self.stand_ins:
            without_vector.pop(part, None)
        hidden = ~masks(self.projections, without_vector, vectors)
        hidden = functional.pad(hidden, (1, 0))  # the query itself is always there
        attended: Tensor = self.layer(steps, src_key_padding_mask=hidden)
        return self.dropout(attended[:, 0])  # type: ignore[no-any-return]


class LogitFusion(nn.Module):
    """Late fusion: each part makes its own outputs, and learned weights average them over the parts that are there.

    The weights are equal at first and sum to 1 for every sample. Its results are the model's outputs, so the head is
    left out unless one is named.

    Args:
        in_features: Part name → number of features; filled in by the dry run.
        out_features: Number of outputs of the model; filled in by the dry run.
        dropout: Share of each part's features that is dropped while training, in [0, 1).
        standardize: ``samples``, ``features`` or ``none``, as in `Fusion`.
        modality_dropout: Probability of leaving a part out of a sample while training, in [0, 1); never all of them.

    Raises:
        ConfigError: If an argument is impossible.
    """

    makes_outputs = True
    """Any fusion may say so of itself: its result is the model's outputs."""

    def __init__(
        self,
        in_features: Mapping[str, int],
        out_features: int,
        dropout: float = 0.0,
        standardize: str = "samples",
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.modality_dropout = checked_rate(modality_dropout)
        self.heads = PartHeads(in_features, out_features, standardize, dropout)
        self.scores = nn.Parameter(torch.zeros(len(in_features)))

    def forward(self, features: Features, present: Presence | None = None) -> Tensor:
        """Features of each part `(B, features)` → outputs `(B, out_features)`."""
        of_parts = self.heads(features, present)
        outputs = torch.stack(list(of_parts.values()), dim=1)
        there = masks(features, present, outputs)
        scores = self.scores.to(outputs.dtype).expand(there.shape)
        weights = masked_softmax(scores, there, dim=1)
        return (weights.unsqueeze(2) * outputs).sum(1)


class PartHeads(nn.Module):
    """A linear head on the standardized features of each part, which measures that part alone."""

    def __init__(
        self,
        in_features: Mapping[str, int],
        out_features: int,
        standardize: str = "samples",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()
        for part, size in in_features.items():
            self.heads[part] = nn.Sequential(
                sample_norm(size, standardize),
                nn.Dropout(dropout),
                nn.Linear(size, out_features),
            )

    def forward(self, features: Features, present: Presence | None = None) -> dict[str, Tensor]:
        """Features of each part `(B, features)` → outputs of each part `(B, out_features)`."""
        outputs = {}
        for part, layers in self.heads.items():
            norm, dropout, linear = layers.children()
            mask = (present or {}).get(part)
            vectors = standardized(norm, features[part], mask)
            outputs[part] = linear(dropout(vectors))
        return outputs

    @torch.no_grad()
    def start_at(self, features: Features, present: Presence, votes: Mapping[str, LinearVote]) -> None:
        """Makes each head compute a vote in evaluation; `features` `(N, features)` of training samples give the scales.

        With another ``standardize`` than ``samples`` the heads stay as they are.
        """
        for part, layers in self.heads.items():
            norm, _, linear = layers.children()
            if not isinstance(norm, SampleNorm):
                continue
            assert norm.running_mean is not None
            assert norm.running_var is not None
            rows = rows_with(part, features, present)
            variance, mean = torch.var_mean(rows.double(), dim=0, correction=0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
            weight, bias = votes[part]
            spread = (variance + norm.eps).sqrt().to(weight.device)
            set_linear(linear, LinearVote(weight * spread[:, None], bias + mean.to(weight) @ weight))
