"""How similar two sets of features of the same samples are, whatever their axes."""

import torch
from torch import Tensor

FEWEST_SAMPLES = 4  # the debiased estimator needs so many samples
_ROUNDING = 1e-12  # features that vary less than this, relative to their size, are the same for all samples


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear centered kernel alignment of features `(samples, p)` and `(samples, q)` (arXiv 1905.00414), debiased.

    Rotating either set, or scaling it by one number, changes nothing. The plain estimate is near 1 for any features
    when they are many and the samples are few; here each HSIC is the unbiased estimate (Song et al., 2012; Nguyen et
    al., arXiv 2010.15327): the product of kernels that are centered without their diagonals (U-centring, Székely and
    Rizzo, 2014).
    """
    first, second = _centered_kernel(one), _centered_kernel(other)
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return float((first * second).sum() / scale) if scale != 0 else 0.0


def _centered_kernel(features: Tensor) -> Tensor:
    """The U-centered linear kernel `(samples, samples)`, float64 with zeros on the diagonal."""
    features = features.to("cpu", torch.float64)
    centered = features - features.mean(0)  # changes nothing but the rounding
    samples = len(features)
    spread = centered.abs().max()
    if spread <= _ROUNDING * features.abs().max():
        return centered.new_zeros(samples, samples)
    centered = centered / spread
    kernel = (centered @ centered.T).fill_diagonal_(0)
    rows = kernel.sum(0) / (samples - 2)
    kernel = kernel - rows[:, None] - rows + rows.sum() / (samples - 1)
    return kernel.fill_diagonal_(0)
