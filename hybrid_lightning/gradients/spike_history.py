"""Spikes of gradient norms: each part's norm against its own history. Numbers on the host alone."""

import math
from dataclasses import dataclass
from typing import Any

SMALLEST_DEVIATION = 0.05  # of the logarithm of a norm; a part that is quieter is taken to vary by this much


@dataclass(frozen=True)
class Sensitivity:
    """What counts as a spike; both `z` and `ratio` have to be exceeded."""

    z: float  # standard deviations of the logarithm of the norm above its mean, above 0
    ratio: float  # times the typical norm, above 1
    warm_up: int  # norms that a history has to hold before anything is a spike, 2 or more
    decay: float  # weight of the past in mean and variance, in (0, 1); 1 / (1 - decay) steps are remembered


@dataclass(frozen=True)
class Spike:
    """A part's norm that is far above its history."""

    part: str  # name of the part
    norm: float  # its norm; inf if it is not finite
    typical: float  # geometric moving mean of the norms before; nan without a history
    z: float  # distance from there in standard deviations of the logarithm; inf if the norm is not finite

    @property
    def finite(self) -> bool:
        """Whether the norm is a number."""
        return math.isfinite(self.norm)

    @property
    def ratio(self) -> float:
        """Norm over the typical norm; inf if the norm is not finite."""
        return self.norm / self.typical if self.finite else math.inf

    def __str__(self) -> str:
        if not self.finite:
            return f"{self.part!r} is not finite"
        return f"{self.part!r} {self.norm:.3g}, typically {self.typical:.3g} (× {self.ratio:.3g}, z {self.z:.3g})"


HISTORY_FORM = {"trains": int, "norms": int, "mean": float, "variance": float, str: ()}
"""What a checkpoint holds of a `NormHistory`, and nothing else."""


@dataclass
class NormHistory:
    """The norms that one part had, as exponentially weighted mean and variance of their logarithms, without bias.

    A norm beyond the threshold of a spike, or as far below the mean, is remembered as if it were just there. So one
    spike changes little, and a level that lasts becomes typical.
    """

    sensitivity: Sensitivity  # what counts as a spike
    trains: int  # number of the part's parameters that train; with another number, another history begins
    norms: int = 0  # how many norms it holds
    mean: float = 0.0  # of their logarithms
    variance: float = 0.0  # of their logarithms

    @property
    def deviation(self) -> float:
        """Standard deviation of the logarithm of the norm."""
        return max(math.sqrt(self.variance), SMALLEST_DEVIATION)

    @property
    def threshold(self) -> float:
        """How far above the mean a logarithm may be without being a spike."""
        return max(self.sensitivity.z * self.deviation, math.log(self.sensitivity.ratio))

    def compare(self, part: str, norm: float) -> Spike | None:
        """The spike that a norm is, if it is one; a norm that is not finite always is."""
        typical = math.exp(self.mean) if self.norms else math.nan
        if not math.isfinite(norm):
            return Spike(part, math.inf, typical, math.inf)
        if norm == 0 or self.norms < self.sensitivity.warm_up:
            return None
        distance = math.log(norm) - self.mean
        return Spike(part, norm, typical, distance / self.deviation) if distance > self.threshold else None

    def add(self, norm: float) -> None:
        """Includes a norm, unless it is 0, of a frozen part, or not finite: these have no logarithm."""
        if norm == 0 or not math.isfinite(norm):
            return
        distance = math.log(norm) - self.mean
        if self.norms >= self.sensitivity.warm_up:  # before, the deviation is not known well enough
            distance = min(max(distance, -self.threshold), self.threshold)
        self.norms += 1
        # the weights of all norms so far add up to 1, so that the mean does not start near 0
        decay = self.sensitivity.decay
        weight = (1 - decay) / (1 - decay**self.norms)
        self.mean += weight * distance
        self.variance = (1 - weight) * (self.variance + weight * distance**2)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the sensitivity, as plain data."""
        return {"trains": self.trains, "norms": self.norms, "mean": self.mean, "variance": self.variance}
