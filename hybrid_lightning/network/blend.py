"""A fusion that begins at a closed-form solution: linear votes of the parts, and their convex blend."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from hybrid_lightning.distributed.sharding import set_full
from hybrid_lightning.errors import check_choice
from hybrid_lightning.network.fusion import Features, checked_rate
from hybrid_lightning.network.missing import Presence, rows_with
from hybrid_lightning.network.modules.mlp import LinearVote, set_linear
from hybrid_lightning.probe.blend import mixture
from hybrid_lightning.probe.targets import KINDS, Kind

_MOST = 10.0  # deviations


class FeatureScale(nn.Module):
    """Standardizes features by means and deviations that are set once, from training samples.

    Values beyond ten deviations count as ten: a feature that hardly varies in training may be huge in a new sample.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set(self, features: Tensor) -> None:
        """Takes both from features `(N, size)`; a constant one keeps the deviation 1."""
        std, mean = torch.std_mean(features.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(features.amax(0) == features.amin(0), 1.0, std))

    def forward(self, features: Tensor) -> Tensor:
        """Features `(B, size)` at mean 0 and deviation 1, from -10 to 10."""
        return ((features - self.mean) / self.std).clamp(-_MOST, _MOST)

    def scaled(self, vote: LinearVote) -> LinearVote:
        """A vote on features as they are given, as one on standardized features."""
        mean, std = self.mean.double().cpu(), self.std.double().cpu()
        weight = vote.weight.double()
        return LinearVote(weight * std[:, None], vote.bias.double() + mean @ weight)


class BlendFusion(nn.Module):
    """Each part votes by a linear head of its own, and one head reads all parts; a convex blend of them is the output.

    With ``start: probe`` the heads and the weights of the blend begin at a closed-form solution, see `start_at`. Of
    classes the output is the logarithm of the mixture of probabilities, of labels the logit of it, of values the
    weighted mean. Features are standardized by training samples once, not by batches. A part that a sample lacks votes
    as for its mean features.

    Args:
        in_features: Part name → number of features; filled in by the dry run.
        out_features: Number of outputs of the model; filled in by the dry run.
        kind: What the outputs mean: ``classes``, ``labels`` or ``values``; filled in by the task.
        dropout: Share of the standardized features that is dropped while training, in [0, 1).
        modality_dropout: Probability of leaving a part out of a sample while training, in [0, 1); never all of them.

    Raises:
        ConfigError: If an argument is impossible.
    """

    makes_outputs = True

    def __init__(
        self,
        in_features: Mapping[str, int],
        out_features: int,
        kind: Kind = "classes",
        dropout: float = 0.0,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice(kind, "kind", KINDS)
        self.kind = kind
        self.modality_dropout = checked_rate(modality_dropout)
        self.dropout = nn.Dropout(dropout)
        self.scales = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for part, size in in_features.items():
            self.scales[part] = FeatureScale(size)
            self.heads[part] = nn.Linear(size, out_features)
        self.joint = nn.Linear(sum(in_features.values()), out_features)
        voters = len(in_features) + 1  # the last one is the joint head
        self.scores = nn.Parameter(torch.zeros(voters))
        # a weight of zero is a mask, because no finite score gives it; int64, because gloo does not send bool
        self.register_buffer("used", torch.ones(voters, dtype=torch.int64))
        self.used: Tensor

    def log_weights(self) -> Tensor:
        """Logarithms of the weights of the parts and of the joint head `(parts + 1,)`; -inf where they are 0."""
        return self.scores.masked_fill(self.used == 0, -torch.inf).log_softmax(0)

    def forward(self, features: Features, present: Presence | None = None) -> Tensor:
        """Features of each part `(B, features)` → outputs `(B, out_features)`."""
        scaled = []
        votes = []
        for part, head in self.heads.items():
            own = self.scales[part](features[part])
            mask = (present or {}).get(part)
            if mask is not None:
                own = own.masked_fill(~mask.unsqueeze(1), 0.0)  # the mean
            own = self.dropout(own)
            scaled.append(own)
            votes.append(head(own))
        votes.append(self.joint(torch.cat(scaled, dim=1)))
        stacked = torch.stack(votes)
        return mixture(stacked, self.log_weights().to(stacked.dtype), self.kind)

    @torch.no_grad()
    def start_at(
        self,
        features: Features,
        present: Presence,
        votes: Mapping[str, LinearVote],
        joint: LinearVote,
        weights: Collection[float],
    ) -> None:
        """Sets heads and blend to a closed-form solution on training features `(N, features)`.

        The votes are on features as the parts give them; `joint` reads those of all parts in order; the weights are
        those of the parts in order, then of the joint head, and sum to 1.
        """
        scaled_weights = []
        joint_bias = joint.bias.double()
        first = 0
        for part, scale in self.scales.items():
            assert isinstance(scale, FeatureScale)
            piece = joint.weight[first : first + len(scale.mean)]
            first += len(scale.mean)
            scale.set(rows_with(part, features, present))
            set_linear(self.heads[part], scale.scaled(votes[part]))
            own = scale.scaled(LinearVote(piece, torch.zeros_like(joint.bias)))
            scaled_weights.append(own.weight)
            joint_bias = joint_bias + own.bias
        set_linear(self.joint, LinearVote(torch.cat(scaled_weights), joint_bias))
        shares = torch.tensor(list(weights))
        self.used.copy_((shares > 0).long())
        set_full(self.scores, torch.where(shares > 0, shares, 1.0).log())


class ScaledHead(nn.Module):
    """A linear head on features standardized by training samples, for ``start: probe`` with one part.

    Args:
        in_features: Features of the input; filled in by the dry run.
        out_features: Number of outputs; filled in by the dry run.
        dropout: Probability of zeroing a standardized feature while training.
    """

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = FeatureScale(in_features)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features `(B, in_features)` to outputs `(B, out_features)`."""
        outputs: Tensor = self.linear(self.dropout(self.scale(features)))
        return outputs

    @torch.no_grad()
    def start_at(self, features: Tensor, vote: LinearVote) -> None:
        """Takes the scale of training features `(N, in_features)`, and a vote on features as they are given."""
        self.scale.set(features)
        set_linear(self.linear, self.scale.scaled(vote))
