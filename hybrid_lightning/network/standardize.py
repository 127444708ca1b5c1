"""Layers that standardize the features of a part over the samples of a batch, or each sample over its features."""

from collections.abc import Callable
from functools import partial

import torch
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
