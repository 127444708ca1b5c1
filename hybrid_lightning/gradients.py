"""Gradient norms in one pass, and clipping that reuses them. Nothing here waits for the device."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hybrid_lightning.errors import ConfigError


def optimizer_parameters(param_groups: Iterable[Mapping[str, Any]]) -> list[nn.Parameter]:
    """The parameters of all groups that have a gradient, in order."""
    return [p for group in param_groups for p in group["params"] if p.grad is not None]


def gradient_norms(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The 2-norm of each parameter's gradient, `(number of parameters,)`, on the first one's device.

    The result is float32, or float64 if one of the gradients is. If the gradients are sharded, every rank has to ask,
    and all get the norms of the whole gradients.

    Args:
        parameters: Parameters with a gradient.

    Raises:
        ConfigError: If a gradient is sharded in another way than `fully_shard` does over one group of ranks.
    """
    if not parameters:
        return torch.zeros(0)
    gradients = [_real(_own_share(p.grad)) for p in parameters if p.grad is not None]
    device = gradients[0].device
    dtype = torch.float64 if any(g.dtype == torch.float64 for g in gradients) else torch.float32
    norms: list[Tensor] = list(torch._foreach_norm(gradients, 2, dtype=dtype))
    return _over_ranks(torch.stack([norm.to(device, non_blocking=True) for norm in norms]), parameters)


def _own_share(gradient: Tensor) -> Tensor:
    """This rank's part of a sharded gradient, in the same memory; any other gradient as it is."""
    with torch.no_grad():
        return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _over_ranks(norms: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Combines the norms of the ranks' shares to those of the whole gradients."""
    meshes = {p.grad.device_mesh for p in parameters if isinstance(p.grad, DTensor)}
    if not meshes:
        return norms
    placements = {placement for p in parameters if isinstance(p.grad, DTensor) for placement in p.grad.placements}
    if len(meshes) > 1 or any(mesh.ndim > 1 for mesh in meshes) or not all(p.is_shard() for p in placements):
        raise ConfigError(
            "gradient norms: gradients can be sharded over one group of ranks, as the strategy 'fsdp2' does, but not "
            "by tensor parallelism. Remove GradientNormMonitor, or use 'fsdp2'."
        )
    sharded = torch.tensor([isinstance(p.grad, DTensor) for p in parameters], device=norms.device)
    squares = torch.where(sharded, norms.square(), 0)
    dist.all_reduce(squares, group=meshes.pop().get_group())
    return torch.where(sharded, squares.sqrt(), norms)


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
        by_device.setdefault(gradient.device, []).append(_own_share(gradient))
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
