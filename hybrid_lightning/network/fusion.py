"""Fusion: from the features of several parts to one vector, also for samples that lack some of them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, check_number
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import Presence, everybody
from hybrid_lightning.network.standardize import sample_norm, standardized

Features = Mapping[str, Tensor]
"""Part → `(B, features)`."""
SHRINK_ABOVE = 64
"""What the dry run fills in; a checkpoint holds it, so that another number here would leave old ones as they are."""


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

    Adam moves every weight by the rate, so that a projection of many features learns, and overfits, in fewer steps than
    one of few. With `shrink_above` the standardized features of a wide part are shrunk, so that what its projection
    gives starts small and moves as fast as that of a narrow part (rates by fan-in, arXiv 2203.03466).

    Where a part is absent, its learned vector stands in; in a model that has never seen it absent, what features of 0
    after standardizing give, those of an average sample if `standardize` is ``samples``.

    Args:
        in_features: Part name → number of features; filled in by the dry run.
        width: Features that each part keeps.
        dropout: Share of the fused features that is dropped while training, in [0, 1).
        standardize: ``samples`` (each feature over the samples of a batch, as BatchNorm does, with running statistics
            in evaluation; of several ranks, each takes its own samples), ``samples_of_all_ranks`` (over the samples of
            all ranks, so that their number changes nothing, for four small reductions per part in each step),
            ``features`` (each sample over its features, as LayerNorm does, which needs no statistics), or ``none``
            (features as they are, so that a part on a larger scale drowns the others).
        modality_dropout: Probability of leaving a part out of a sample while training, in [0, 1); never all of them.
        absent: Parts that samples may lack; filled in by the dry run.
        shrink_above: Number of features above which those of a part are multiplied by ``shrink_above / features``, at
            least 1; filled in by the dry run (64). None, as in models that are older than this option, shrinks nothing.

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
        shrink_above: int | None = None,
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
        self.shrink_above = checked_shrinking(shrink_above)
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
            vectors = linear(shrunk(standardized(norm, features[part], mask), self.shrink_above)).relu()
            if part in self.stand_ins:
                there = everybody(vectors) if mask is None else mask
                vectors = self.stand_ins[part](vectors, there)
            elif mask is not None:
                average = linear(torch.zeros_like(features[part][:1])).relu()
                vectors = torch.where(mask.unsqueeze(1), vectors, average)
            found[part] = vectors
        return found


def shrunk(features: Tensor, above: int | None) -> Tensor:
    """Standardized features `(B, size)` times ``above / size`` if they are more than `above`; None shrinks none."""
    size = features.shape[1]
    return features if above is None or size <= above else features * (above / size)


def checked_shrinking(above: int | None) -> int | None:
    """The number of features above which a part is shrunk, if there may be such."""
    if above is not None:
        check_number(above, "shrink_above", low=1)
    return above


def follow_shrinking(network: HybridNetwork, made_with: Mapping[str, Any] | None) -> None:
    """Lets a network shrink wide parts as that did whose weights it takes; its fusion was `made_with` these ``args``.

    Nothing changes if that is not known, or if the options of today say it themselves.
    """
    is_stated = "fusion" not in network.parts or "shrink_above" in network.options["fusion"].args
    if made_with is None or is_stated:
        return
    fusion = network.parts["fusion"]
    above = made_with.get("args", {}).get("shrink_above")  # None in files that are older than this option
    if isinstance(fusion, Fusion | LogitFusion) and fusion.shrink_above != above:
        fusion.shrink_above = checked_shrinking(above)
        of_fusion = network.record.parts["fusion"]
        changed = replace(of_fusion, sizes={**of_fusion.sizes, "shrink_above": above})
        network.record = replace(network.record, parts={**network.record.parts, "fusion": changed})


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
        shrink_above: int | None = None,
    ) -> None:
        super().__init__(in_features, width, dropout, standardize, modality_dropout, absent, shrink_above)
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
        standardize: As in `Fusion`.
        modality_dropout: Probability of leaving a part out of a sample while training, in [0, 1); never all of them.
        shrink_above: As in `Fusion`.

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
        shrink_above: int | None = None,
    ) -> None:
        super().__init__()
        self.modality_dropout = checked_rate(modality_dropout)
        self.shrink_above = checked_shrinking(shrink_above)
        self.heads = PartHeads(in_features, out_features, standardize, dropout)
        self.scores = nn.Parameter(torch.zeros(len(in_features)))

    def forward(self, features: Features, present: Presence | None = None) -> Tensor:
        """Features of each part `(B, features)` → outputs `(B, out_features)`."""
        of_parts = self.heads(features, present, self.shrink_above)
        outputs = torch.stack(list(of_parts.values()), dim=1)
        there = masks(features, present, outputs)
        scores = self.scores.to(outputs.dtype).expand(there.shape)
        weights = masked_softmax(scores, there, dim=1)
        return (weights.unsqueeze(2) * outputs).sum(1)


class PartHeads(nn.Module):
    """A linear head on the standardized features of each part."""

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

    def forward(
        self, features: Features, present: Presence | None = None, shrink_above: int | None = None
    ) -> dict[str, Tensor]:
        """Features of each part `(B, features)` → outputs of each part `(B, out_features)`."""
        outputs = {}
        for part, layers in self.heads.items():
            norm, dropout, linear = layers.children()
            mask = (present or {}).get(part)
            vectors = shrunk(standardized(norm, features[part], mask), shrink_above)
            outputs[part] = linear(dropout(vectors))
        return outputs
