"""What a model serves in place of its joint outputs: a convex blend of them and of votes on single parts."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.blend import FeatureScale
from hybrid_lightning.network.fusion import Features
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import Presence, rows_with
from hybrid_lightning.network.modules.mlp import LinearVote
from hybrid_lightning.probe.blend import mixture
from hybrid_lightning.probe.targets import Kind

JOINT = "joint network"
"""The voter that is the network itself; no part can have this name."""


class FixedVote(nn.Module):
    """A linear map of standardized features that does not train: of buffers, so that no optimizer has to have it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.scale = FeatureScale(in_features)
        self.register_buffer("weight", torch.zeros(in_features, out_features))
        self.register_buffer("bias", torch.zeros(out_features))

    def forward(self, features: Tensor, present: Tensor | None) -> Tensor:
        """Features `(B, in_features)` → outputs `(B, out_features)`; of samples without them those of the mean."""
        scaled = self.scale(features)
        if present is not None:
            scaled = scaled.masked_fill(~present.unsqueeze(1), 0.0)
        outputs: Tensor = scaled @ self.weight.to(scaled.dtype) + self.bias
        return outputs

    def set(self, features: Tensor, vote: LinearVote) -> None:
        """Takes a vote on features as they are given, and the scale of training features `(N, in_features)`."""
        self.scale.set(features)
        scaled = self.scale.scaled(vote)
        self.weight.copy_(scaled.weight)
        self.bias.copy_(scaled.bias)


class Selection(nn.Module):
    """A blend of a network's joint outputs and of linear votes on the features of parts, none of which trains.

    Args:
        in_features: Part that votes → number of its features.
        out_features: Number of outputs of the network.
        kind: What the outputs mean: ``classes``, ``labels`` or ``values``.
    """

    shares: Tensor
    """`(1 + parts,)`, of the joint outputs and of each part's vote; they sum to 1."""

    def __init__(self, in_features: Mapping[str, int], out_features: int, kind: Kind) -> None:
        super().__init__()
        self.kind = kind
        self.votes = nn.ModuleDict()
        for part, size in in_features.items():
            self.votes[part] = FixedVote(size, out_features)
        shares = torch.zeros(1 + len(in_features))
        shares[0] = 1
        self.register_buffer("shares", shares)

    def forward(self, joint: Tensor, features: Features, present: Presence) -> Tensor:
        """Joint outputs `(B, outputs)` and features of each part `(B, features)` → outputs `(B, outputs)`."""
        outputs = [joint]
        for part, vote in self.votes.items():
            outputs.append(vote(features[part], present.get(part)))
        stacked = torch.stack(outputs)
        return mixture(stacked, self.shares.log().to(stacked.dtype), self.kind)

    @torch.no_grad()
    def set(self, features: Features, present: Presence, votes: Mapping[str, LinearVote], shares: list[float]) -> None:
        """Takes votes on features as the parts give them, those of training samples `(N, features)`, and the shares."""
        for part, vote in self.votes.items():
            assert isinstance(vote, FixedVote)
            vote.set(rows_with(part, features, present), votes[part])
        self.shares.copy_(torch.tensor(shares))


def serve(network: HybridNetwork, in_features: Mapping[str, int], kind: Kind | None) -> None:
    """Lets a network serve a `Selection` of votes on parts, at first its joint outputs; without parts these alone.

    Raises `ConfigError` if a part does not vote, or has other features, as a damaged file may say.
    """
    widths = _widths(network)
    for part, size in in_features.items():
        if part not in network.feeding or widths.get(part, size) != size:
            raise ConfigError(
                f"the record of the network is damaged: no part {part!r} with {size} features can vote. Use another "
                f"checkpoint.",
                "checkpoint.network.selection",
            )
    network.selection = None
    network.record = replace(network.record, selection=dict(in_features))
    if in_features and kind is not None:
        device = next(network.parameters()).device
        network.selection = Selection(in_features, network.outputs, kind).to(device)


def _widths(network: HybridNetwork) -> Mapping[str, int]:
    """Part → number of its features, as far as the fusion was made with them."""
    fusion = network.record.parts.get("fusion")
    known = None if fusion is None else fusion.sizes.get("in_features")
    return known if isinstance(known, Mapping) else {}
