"""Gradients of one optimizer step: norms in one pass, clipping that reuses them. Nothing here waits for the device."""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hybrid_lightning.distributed.sharding import any_sharded, own_share, own_shares
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.unfreezing.timeline import label


def gradient_norms(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The 2-norm of each parameter's gradient, see `tensor_norms`.

    Args:
        parameters: Parameters with a gradient.
    """
    return tensor_norms(_gradients(parameters))


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [gradient for p in parameters if (gradient := p.grad) is not None]


def tensor_norms(tensors: Sequence[Tensor], shares: list[Tensor] | None = None) -> Tensor:
    """The 2-norm of each tensor, `(number of tensors,)`, on the first one's device.

    The result is float32, or float64 if one of the tensors is. If tensors are sharded, every rank has to ask, and all
    get the norms of the whole tensors.

    Args:
        tensors: Gradients or parameters.
        shares: This rank's parts of what is asked for instead: tensors of the same kind, sharded in the same way.

    Raises:
        ConfigError: If a tensor is sharded in another way than `fully_shard` does over one group of ranks.
    """
    if not tensors:
        return torch.zeros(0)
    shares = own_shares(tensors) if shares is None else shares
    dtypes = {share.dtype for share in shares}
    if any(dtype.is_complex for dtype in dtypes):
        shares = [_real(share) for share in shares]
    dtype = torch.float32 if dtypes.isdisjoint({torch.float64, torch.complex128}) else torch.float64
    norms = list(torch._foreach_norm(shares, 2, dtype=dtype))
    if len({norm.device for norm in norms}) > 1:
        norms = [norm.to(norms[0].device, non_blocking=True) for norm in norms]
    return _over_ranks(torch.stack(norms), tensors)


def _over_ranks(norms: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Combines the norms of the ranks' shares to those of the whole tensors."""
    if not any_sharded(tensors):
        return norms
    shards = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    meshes = {tensor.device_mesh for tensor in shards}
    placements = {placement for tensor in shards for placement in tensor.placements}
    if len(meshes) > 1 or any(mesh.ndim > 1 for mesh in meshes) or not all(p.is_shard() for p in placements):
        raise ConfigError(
            "gradient norms: gradients can be sharded over one group of ranks, as the strategy 'fsdp2' does, but not "
            "by tensor parallelism. Remove GradientNormMonitor, or use 'fsdp2'."
        )
    sharded = torch.tensor([isinstance(tensor, DTensor) for tensor in tensors], device=norms.device)
    squares = torch.where(sharded, norms.square(), 0)
    dist.all_reduce(squares, group=meshes.pop().get_group())
    return torch.where(sharded, squares.sqrt(), norms)


def _real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, which have the same 2-norm."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def clip_coefficient(norms: Tensor, max_norm: float) -> Tensor:
    """The factor that brings the global norm down to `max_norm`, a scalar in (0, 1], as in ``clip_grad_norm_``."""
    coefficient: Tensor = max_norm / (norms.norm() + 1e-6)
    return coefficient.clamp(max=1.0)


def scale_gradients(parameters: Sequence[nn.Parameter], coefficient: Tensor) -> None:
    """Multiplies all gradients by one scalar, in place."""
    for device, gradients in _by_device(parameters).items():
        torch._foreach_mul_(gradients, coefficient.to(device, non_blocking=True))


def limit_gradients(parameters: Sequence[nn.Parameter], limit: float) -> None:
    """Brings every value of all gradients into [-limit, limit], in place, as ``clip_grad_value_``."""
    for gradients in _by_device(parameters).values():
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)


def limit_units(parameters: Sequence[nn.Parameter], norms: Tensor, ratio: float, smallest: float = 1e-3) -> None:
    """Adaptive gradient clipping (AGC, arXiv 2102.06171): limits each unit's gradient by its weights, in place.

    A unit is what feeds one output: a row of a matrix, a filter of a convolution; a bias or a gain is one as a whole.

    Args:
        parameters: Parameters with a gradient.
        norms: The gradients' norms, `(number of parameters,)`.
        ratio: λ, the largest norm of a unit's gradient over the norm of its weights.
        smallest: ε, the norm that smaller weights are taken to have, so that what starts at zero can learn.
    """
    weights = tensor_norms([p.detach() for p in parameters])
    for index, parameter in enumerate(parameters):
        assert parameter.grad is not None
        weight, gradient = own_share(parameter.detach()), own_share(parameter.grad)
        if weight.ndim > 1:  # shards are whole rows
            weight_norm, norm = (_unit_norms(tensor) for tensor in (weight, gradient))
        else:
            weight_norm, norm = weights[index], norms[index]
        limit = ratio * weight_norm.clamp(min=smallest)
        gradient.mul_(torch.where(norm > limit, limit / norm, torch.ones_like(norm)).to(gradient.device))


def _unit_norms(tensor: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(_real(tensor).flatten(1).float(), dim=1)
    return norms.view(-1, *[1] * (tensor.ndim - 1))


def _by_device(parameters: Sequence[nn.Parameter]) -> dict[torch.device, list[Tensor]]:
    gradients = own_shares(_gradients(parameters))
    devices = {gradient.device for gradient in gradients}
    if len(devices) == 1:
        return {devices.pop(): gradients}
    return {device: [gradient for gradient in gradients if gradient.device == device] for device in devices}


class GradientPass:
    """The gradients of one optimizer step: measured once, then clipped, with the norms kept up to date.

    Args:
        param_groups: Groups with the keys ``name``, ``part`` and ``params``; their gradients are complete and unscaled.
            Groups whose ``observer`` is True, which nothing else depends on, are neither measured nor clipped.
    """

    def __init__(self, param_groups: Iterable[Mapping[str, Any]]) -> None:
        every = list(param_groups)
        groups = [group for group in every if not group.get("observer")]
        self._observers = [p for group in every if group.get("observer") for p in group["params"]]
        members = [[p for p in group["params"] if p.grad is not None] for group in groups]
        self.parameters: list[nn.Parameter] = [parameter for of_group in members for parameter in of_group]
        """Those that have a gradient."""
        self.norms = gradient_norms(self.parameters)
        """Norm of each of their gradients as it is now, `(number of parameters,)`."""
        self.before = self.norms
        """Norms before anything was clipped."""
        self.skipped = False
        """Whether the step will not be made; nothing is clipped then."""
        self.complete = False
        """Whether whoever clips has said that `norms` are up to date."""
        self.rows = _rows(tuple((g["part"], label(g), len(own)) for g, own in zip(groups, members, strict=True)))

    def observers(self) -> Tensor:
        """Sum of the norms of the observers' gradients, a scalar: a gradient scaler looks at these, too."""
        return gradient_norms([p for p in self._observers if p.grad is not None]).sum()

    def of_part(self, part: str) -> list[nn.Parameter]:
        """The part's parameters that have a gradient."""
        return [self.parameters[index] for index in self.rows.members[part]]

    def norm_of(self, part: str) -> Tensor:
        """The part's norm as it is now, a scalar."""
        norm: Tensor = self._of(part).norm()
        return norm

    def _of(self, part: str) -> Tensor:
        return self.norms[self.rows.index(part, self.norms.device)]

    def scale(self, coefficient: Tensor, part: str | None = None) -> None:
        """Multiplies all gradients, or those of one part, by a scalar."""
        if self.skipped:
            return
        if part is None:
            scale_gradients(self.parameters, coefficient)
            self.norms = self.norms * coefficient
        elif self.rows.members[part]:
            scale_gradients(self.of_part(part), coefficient)
            self._replace(part, self._of(part) * coefficient)

    def clip_norm(self, max_norm: float, part: str | None = None) -> None:
        """Brings the norm of everything, or of one part, down to `max_norm`."""
        self.scale(clip_coefficient(self.norms if part is None else self._of(part), max_norm), part)

    def clip_value(self, limit: float, part: str | None = None) -> None:
        """Brings every value, or those of one part, into [-limit, limit]."""
        if self.skipped:
            return
        if part is None:
            limit_gradients(self.parameters, limit)
            self.norms = gradient_norms(self.parameters)
        else:
            limit_gradients(self.of_part(part), limit)
            self._replace(part, gradient_norms(self.of_part(part)))

    def clip_units(self, ratio: float, part: str) -> None:
        """Clips the units of one part, see `limit_units`."""
        limit_units(self.of_part(part), self._of(part), ratio)
        self._replace(part, gradient_norms(self.of_part(part)))

    def _replace(self, part: str, norms: Tensor) -> None:
        if self.rows.members[part]:
            self.norms = self.norms.index_copy(0, self.rows.index(part, norms.device), norms.to(self.norms.dtype))

    def skip(self) -> None:
        """Takes all gradients away: the optimizer's step will change nothing, neither weights nor its own state."""
        self.skipped = True
        for parameter in (*self.parameters, *self._observers):
            parameter.grad = None


class Rows:
    """Which parameters each part and each stage of a step consists of; the last row is ``total``.

    Args:
        groups: Part, label of the stage and number of gradients of each group, in the order of the parameters.
    """

    def __init__(self, groups: Sequence[tuple[str, str, int]]) -> None:
        parts: dict[str, list[int]] = {}
        stages: dict[str, list[int]] = {}
        start = 0
        for part, stage, count in groups:
            own = range(start, start := start + count)
            parts.setdefault(part, []).extend(own)
            stages.setdefault(stage, []).extend(own)
        self.members = parts
        """Part → positions of its parameters."""
        self.parts = tuple(parts)
        self.stages = tuple(stage for stage in stages if stage not in parts)
        """Labels ``<part>.<stage>`` of the parts that have several stages."""
        self.names = (*self.parts, *self.stages, "total")
        self._positions = [*parts.values(), *(stages[stage] for stage in self.stages), list(range(start))]
        self._start = start
        self._kept: dict[Any, Tensor] = {}

    def norms(self, norms: Tensor) -> Tensor:
        """Norm of each row, `(..., rows)`, from those of the parameters, `(..., parameters)`."""
        padded = nn.functional.pad(norms, (0, 1))
        combined: Tensor = torch.linalg.vector_norm(padded[..., self._places(norms.device)], dim=-1)
        return combined

    def _places(self, device: torch.device) -> Tensor:
        """Positions of each row's parameters, `(rows, longest)`, filled up with the position after the last one."""
        if device not in self._kept:
            longest = max(map(len, self._positions))
            filled = [own + [self._start] * (longest - len(own)) for own in self._positions]
            self._kept[device] = torch.tensor(filled, dtype=torch.long, device=device)
        return self._kept[device]

    def index(self, part: str, device: torch.device) -> Tensor:
        """Positions of the part's parameters."""
        if (part, device) not in self._kept:
            self._kept[part, device] = torch.tensor(self.members[part], dtype=torch.long, device=device)
        return self._kept[part, device]


@lru_cache(maxsize=16)
def _rows(groups: tuple[tuple[str, str, int], ...]) -> Rows:
    """Kept, because they change only when something unfreezes."""
    return Rows(groups)
