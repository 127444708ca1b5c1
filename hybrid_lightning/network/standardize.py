"""Layers that standardize the features of a part over the samples of a batch, or each sample over its features."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.errors import check_keys


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
        sums = torch.where(present, features, 0.0).sum(0)
        count, sums = self.totals(present.sum(), sums)
        enough = count > 1
        samples = count.clamp(min=1)
        mean = sums / samples
        deviations = torch.where(present, features - mean, 0.0)
        _, squares = self.totals(present.sum(), deviations.square().sum(0))
        variance = squares / samples
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

    def totals(self, count: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Number of samples and sums `(num_features,)` of all samples that are standardized together."""
        return count, sums


class RanksNorm(SampleNorm):
    """A `SampleNorm` over the samples of all ranks while training, so that several ranks give what one process gives.

    Two small reductions in each forward, and two in each backward; every rank has to call it in each step.
    """

    def forward(self, features: Tensor, present: Tensor | None = None) -> Tensor:
        """Standardizes each feature `(B, num_features)`; while training, over those `present` on all ranks."""
        if self.training and present is None and ranks() > 1:
            present = torch.ones(len(features), dtype=torch.bool, device=features.device)
        return super().forward(features, present)

    def totals(self, count: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Those of all ranks."""
        if ranks() == 1:
            return count, sums
        values = torch.cat([sums, count.to(sums).unsqueeze(0)])
        of_all: Tensor = _SumOfRanks.apply(values)  # type: ignore[no-untyped-call]
        return of_all[-1].detach(), of_all[:-1]


def ranks() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _SumOfRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks; each rank's loss depends on all of their values."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "samples": SampleNorm,
    "samples_of_all_ranks": RanksNorm,
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
