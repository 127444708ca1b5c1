"""Gradient norms in one pass, and clipping that reuses them. Nothing here waits for the device."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def optimizer_parameters(param_groups: Iterable[Mapping[str, Any]]) -> list[nn.Parameter]:
    """The parameters of all groups that have a gradient, in order."""
    return [p for group in param_groups for p in group["params"] if p.grad is not None]


def gradient_norms(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The 2-norm of each parameter's gradient, `(number of parameters,)`, on the first one's device.

    The result is float32, or float64 if one of the gradients is.

    Args:
        parameters: Parameters with a gradient.
    """
    if not parameters:
        return torch.zeros(0)
    gradients = [_real(p.grad) for p in parameters if p.grad is not None]
    device = gradients[0].device
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
    norms: list[Tensor] = list(torch._foreach_norm(gradients, 2, dtype=dtype))
    return torch.stack([norm.to(device, non_blocking=True) for norm in norms])


def _real(gradient: Tensor) -> Tensor:
    """A complex gradient as pairs of real numbers, which have the same 2-norm."""
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


def clip_coefficient(norms: Tensor, max_norm: float) -> Tensor:
    """The factor that brings the global norm down to `max_norm`, a scalar in (0, 1], as in ``clip_grad_norm_``."""
    coefficient: Tensor = max_norm / (norms.norm() + 1e-6)
    return coefficient.clamp(max=1.0)


def scale_gradients(parameters: Sequence[nn.Parameter], coefficient: Tensor) -> None:
    """Multiplies all gradients by one scalar, in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    by_device: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        by_device.setdefault(gradient.device, []).append(gradient)
    for device, tensors in by_device.items():
        torch._foreach_mul_(tensors, coefficient.to(device, non_blocking=True))


def norms_by_part(param_groups: Iterable[Mapping[str, Any]], norms: Tensor) -> dict[str, Tensor]:
    """Combines per-parameter norms to one scalar per part, plus ``total``.

    Args:
        param_groups: Groups with the key ``part``.
        norms: What `gradient_norms` returned for `optimizer_parameters` of the same groups.

    Returns:
        Part name → norm; 0 for a part without gradients.
    """
    groups = list(param_groups)
    counts = [sum(p.grad is not None for p in group["params"]) for group in groups]
    squares: dict[str, Tensor] = {}
    for group, of_group in zip(groups, torch.split(norms.square(), counts), strict=True):
        squares[group["part"]] = squares.get(group["part"], norms.new_zeros(())) + of_group.sum()
    return {**{part: square.sqrt() for part, square in squares.items()}, "total": norms.norm()}
