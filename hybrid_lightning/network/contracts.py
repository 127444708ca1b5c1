"""What a module of a user's own may offer beside `forward`."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class FusionModule(Protocol):
    """Joins the features of several parts.

    `present` may be left out of the signature; then no sample may lack a part, see `takes_presence`.
    """

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Features of each part `(B, features)` → `(B, ...)`.

        Args:
            features: Of all parts; zeros where a sample lacks the part.
            present: Part → which samples have it, `(B,)` bool; a part that is not named is there in all of them.
        """


@runtime_checkable
class DropsModalities(Protocol):
    """A fusion for whose sake parts are left out of samples at random while training."""

    modality_dropout: float
    """The probability, in [0, 1)."""


@runtime_checkable
class MakesOutputs(Protocol):
    """A fusion whose result is the model's outputs if `makes_outputs` is true: no head is added."""

    makes_outputs: bool


@runtime_checkable
class ReadsTrainingData(Protocol):
    """A part that takes something from training samples once, before training, such as quantiles or bandwidths.

    What it takes stands in buffers, whose shapes do not depend on the samples, so that a checkpoint holds it.
    """

    prepared: Tensor
    """Whether it has, a buffer `()` of 0 or 1; int64, because gloo does not send bool."""

    def prepare(self, batches: Iterable[list[Any]]) -> None:
        """Takes it, and sets `prepared` to 1.

        Args:
            batches: What `forward` is called with, batch after batch of training samples in a fixed order; a lone dict
                holds keyword arguments. To be read once at most.
        """


def takes_presence(fusion: nn.Module) -> bool:
    """Whether a fusion's forward has the second argument of `FusionModule`."""
    return len(inspect.signature(fusion.forward).parameters) > 1


def modality_dropout(fusion: Any) -> float:
    """The probability of leaving a part out of a sample while training; 0 where the fusion is no `DropsModalities`."""
    # asked for each batch, where a protocol's isinstance would be noticed
    return float(getattr(fusion, "modality_dropout", 0.0))
