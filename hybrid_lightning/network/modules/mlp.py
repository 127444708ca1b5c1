"""A plain untrained network for vectors, and a linear head."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybrid_lightning.distributed.sharding import set_full
from hybrid_lightning.errors import ConfigError


class MLP(nn.Module):
    """Linear layers, each followed by ReLU and dropout, and a plain linear layer at the end if asked for.

    Args:
        in_features: Features of the input.
        hidden: Features of each layer with ReLU.
        out_features: Features of the plain layer at the end; None leaves it out.
        dropout: Probability of zeroing a feature after each ReLU while training.
        init_gain: Factor on the initial weights of every layer, above 0; biases stay as they are. 1 keeps torch's usual
            scale; far from 1 is a bad initialization.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (64,),
        out_features: int | None = None,
        dropout: float = 0.0,
        init_gain: float = 1.0,
    ) -> None:
        super().__init__()
        require_sizes("hidden", hidden)
        if not 0 < init_gain < math.inf:
            raise ConfigError(f"{init_gain!r} is not a number above 0; 1 keeps the usual scale.", "init_gain")
        before = in_features
        for index, after in enumerate(hidden):
            layer = nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Dropout(dropout))
            self.add_module(f"layer{index}", layer)
            before = after
        if out_features is not None:
            self.out = nn.Linear(hidden[-1], out_features)
        with torch.no_grad():
            # biases have one dimension
            for parameter in self.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(init_gain)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features `(B, in_features)` to `(B, out_features)`, or to `(B, hidden[-1])` without `out_features`."""
        return in_turn(self, features)


class LinearVote(NamedTuple):
    """A linear map from features as a part gives them to outputs."""

    weight: Tensor  # (features, outputs)
    bias: Tensor  # (outputs,)


def set_linear(linear: nn.Module, vote: LinearVote) -> None:
    """Makes a linear layer compute a vote."""
    assert isinstance(linear, nn.Linear)
    set_full(linear.weight, vote.weight.T)
    set_full(linear.bias, vote.bias)


class LinearHead(nn.Module):
    """One linear layer after dropout.

    Args:
        in_features: Features of the input.
        out_features: Number of outputs: classes, or values to predict.
        dropout: Probability of zeroing an input feature while training.
    """

    def __init__(self, in_features: int, out_features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features `(B, in_features)` to outputs `(B, out_features)`."""
        logits: Tensor = self.linear(self.dropout(features))
        return logits

    @torch.no_grad()
    def start_at(self, vote: LinearVote) -> None:
        """Makes the layer compute a vote."""
        set_linear(self.linear, vote)


def in_turn(module: nn.Module, value: Tensor) -> Tensor:
    """Passes a value through the children in the order in which they were added."""
    for child in module.children():
        value = child(value)
    return value


def require_sizes(name: str, sizes: Sequence[int]) -> None:
    """Raises `ConfigError` if a list of layer sizes is empty."""
    if not sizes:
        raise ConfigError(f"{list(sizes)!r} is empty; give the size of at least one layer, such as [64].", name)
