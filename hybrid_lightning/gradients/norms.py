"""Gradient norms per parameter, part and stage, and clipping that reuses them. No host-device synchronization."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from hybrid_lightning.distributed.sharding import any_sharded, own_share, own_shares
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.unfreezing.timeline import Group, label

_SMALLEST_WEIGHTS = 1e-3
"""ε of AGC: the norm that smaller weights are taken to have, so that what starts at zero can learn."""


def gradient_norms(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The 2-norm of each parameter's gradient, `(number of parameters,)`; every parameter has one."""
    return tensor_norms(_gradients(parameters))


def tensor_norms(tensors: Sequence[Tensor], shards: list[Tensor] | None = None) -> Tensor:
    """The 2-norm of each tensor, `(number of tensors,)`: float32, or float64 if one of the tensors is."""
    # Collective if tensors are sharded: call it on every rank; all get the norms of the full tensors. `shards` are
    # measured in place of this rank's, one per tensor and sharded as it is, such as differences.
    if not tensors:
        return torch.zeros(0)
    mesh = mesh_of(tensors)
    if shards is None:
        shards = own_shares(tensors)
    # in bfloat16 and float16 the sum of squares would overflow or lose its digits
    dtype = torch.float64 if torch.float64 in {shard.dtype for shard in shards} else torch.float32
    norms = torch.stack(torch._foreach_norm(shards, 2, dtype=dtype)).to(tensors[0].device)
    if mesh is None:
        return norms
    # a whole tensor beside sharded ones is the same on every rank and must not be summed over them
    sharded = torch.tensor([isinstance(tensor, DTensor) for tensor in tensors], device=norms.device)
    squares = torch.where(sharded, norms.square(), 0)
    dist.all_reduce(squares, group=mesh.get_group())
    return torch.where(sharded, squares.sqrt(), norms)


def mesh_of(tensors: Sequence[Tensor]) -> DeviceMesh | None:
    """The ranks over which tensors are sharded, None if all are whole; refuses tensor parallelism."""
    if not any_sharded(tensors):
        return None
    shards = [tensor for tensor in tensors if isinstance(tensor, DTensor)]
    mesh = shards[0].device_mesh
    for shard in shards:
        if mesh.ndim > 1 or shard.device_mesh != mesh or not shard.placements[0].is_shard():
            raise ConfigError(
                "norms of weights and gradients need tensors that are whole, or sharded over one group of ranks as "
                "'fsdp2' does, not tensor parallelism. Use 'ddp' or 'fsdp2', or leave out the callbacks that measure.",
                "trainer.strategy",
            )
    return mesh


def _gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _is_below(value: Tensor, limit: float) -> bool:
    """Whether a scalar on the CPU is below a limit; False for one on a device, where a look would wait."""
    return value.device.type == "cpu" and value.item() < limit


class MeasuredGroups:
    """The groups whose gradients are measured, for as long as no others train: `training` of all `groups`."""

    def __init__(self, groups: Sequence[Group], training: Sequence[Group]) -> None:
        self.training = [group["params"] for group in training]
        trains = {id(group) for group in training}
        self._names: list[tuple[str, str, bool]] = []
        for group in groups:
            self._names.append((group["part"], label(group), id(group) in trains))
        self._tables: dict[tuple[torch.device, tuple[int, ...]], NormTable] = {}

    def rows(self, counts: Sequence[int], device: torch.device) -> "NormTable":
        """The table of norms, in which frozen parts have rows too; `counts` of parameters are those of `training`."""
        key = (device, tuple(counts))
        if key not in self._tables:
            left = iter(counts)
            sizes = [(part, stage, next(left) if trains else 0) for part, stage, trains in self._names]
            self._tables[key] = norm_table(tuple(sizes), device)
        return self._tables[key]


class GradientPass:
    """The gradients of one optimizer step: measured once, then clipped, with the norms kept up to date."""

    def __init__(self, measured: MeasuredGroups) -> None:
        self.parameters: list[nn.Parameter] = []  # those that have a gradient
        counts = []
        for parameters in measured.training:
            own = [parameter for parameter in parameters if parameter.grad is not None]
            self.parameters += own
            counts.append(len(own))
        self.norms = gradient_norms(self.parameters)
        """Norm of each of their gradients as it is now, `(number of parameters,)`."""
        self.before = self.norms  # norms before anything was clipped
        self.total_before = torch.linalg.vector_norm(self.norms)  # scalar; not finite if one of the gradients is not
        self.skipped = False  # whether the step will not be made; nothing is clipped then
        self.complete = False
        """Whether the global limit has acted through this pass, so that `norms` are what the optimizer gets."""
        self.rows = measured.rows(counts, self.norms.device)

    def norms_of(self, part: str | None) -> Tensor:
        """Norms of one part's gradients as they are now, `(parameters of the part,)`; None: of all."""
        return self.norms if part is None else self.norms[self.rows.positions[part]]

    def scale(self, coefficient: Tensor, part: str | None = None) -> None:
        """Multiplies all gradients, or those of one part, by a scalar."""
        gradients = self._shards(part)
        if gradients:
            torch._foreach_mul_(gradients, coefficient)
            self._replace(part, self.norms_of(part) * coefficient)

    def clip_norm(self, max_norm: float, part: str | None = None) -> None:
        """Brings the norm of everything, or of one part, down to `max_norm`."""
        is_known = part is None and self.norms is self.before
        total = self.total_before if is_known else self.norms_of(part).norm()
        # most steps are not clipped; the margin is above what rounding could change
        if _is_below(total, 0.999 * max_norm - 1e-6):
            self.complete = self.complete or part is None
            return
        coefficient = max_norm / (total + 1e-6)  # as in clip_grad_norm_, for equal weights
        self.scale(coefficient.clamp(max=1.0), part)

    def clip_value(self, limit: float, part: str | None = None) -> None:
        """Brings every value, or those of one part, into [-limit, limit]."""
        gradients = self._shards(part)
        if gradients:
            torch._foreach_clamp_min_(gradients, -limit)
            torch._foreach_clamp_max_(gradients, limit)
            self._replace(part, gradient_norms(self._of(part)))

    def clip_units(self, ratio: float, part: str) -> None:
        """Adaptive gradient clipping (AGC, arXiv 2102.06171): limits each unit's gradient by its weights, in place."""
        # a unit is what feeds one output: a row of a matrix, a filter of a convolution; a bias is one as a whole
        parameters = self._of(part)
        norms = self.norms_of(part)
        weights = tensor_norms([parameter.detach() for parameter in parameters])
        for index, parameter in enumerate(parameters):
            assert parameter.grad is not None
            weight = own_share(parameter.detach())
            gradient = own_share(parameter.grad)
            if weight.ndim > 1:  # a shard holds whole rows, so that its units need no other rank
                unit = tuple(range(1, weight.ndim))
                weight_norm = torch.linalg.vector_norm(weight, dim=unit, keepdim=True, dtype=norms.dtype)
                norm = torch.linalg.vector_norm(gradient, dim=unit, keepdim=True, dtype=norms.dtype)
            else:
                # a sharded bias is one unit, whose norm the ranks have combined already
                weight_norm = weights[index]
                norm = norms[index]
            limit = ratio * weight_norm.clamp(min=_SMALLEST_WEIGHTS)
            gradient.mul_(torch.where(norm > limit, limit / norm, torch.ones_like(norm)))
        if parameters:
            self._replace(part, gradient_norms(parameters))

    def skip(self) -> None:
        """Removes all gradients: the optimizer's step will change nothing, neither weights nor its own state."""
        self.skipped = True
        for parameter in self.parameters:
            parameter.grad = None

    def _of(self, part: str | None) -> list[nn.Parameter]:
        if part is None:
            return self.parameters
        return [self.parameters[index] for index in self.rows.members[part]]

    def _shards(self, part: str | None) -> list[Tensor]:
        """This rank's shards of the gradients, to be changed in place; none after a skip."""
        return own_shares(_gradients(self._of(part)))

    def _replace(self, part: str | None, norms: Tensor) -> None:
        if part is None:
            self.norms = norms
            self.complete = True
        else:
            # out of place, because `before` may be the same tensor
            self.norms = self.norms.index_copy(0, self.rows.positions[part], norms.to(self.norms.dtype))


class NormTable:
    """Combines the norms of parameters into one row per part, one per stage, and a last one, ``total``."""

    # groups: part, label of the stage and number of parameters, in the order of the parameters

    def __init__(self, groups: tuple[tuple[str, str, int], ...], device: torch.device) -> None:
        self.parts = tuple(dict.fromkeys(part for part, _, _ in groups))
        members: dict[str, list[int]] = {part: [] for part in self.parts}
        count = 0
        for part, stage, number in groups:
            own = range(count, count + number)
            members[part] += own
            if stage not in self.parts:
                members.setdefault(stage, []).extend(own)
            count += number
        self.members = members  # part or stage → positions of its parameters
        self.stages = tuple(members)[len(self.parts) :]
        """Labels ``<part>.<stage>`` of the parts that have several stages."""
        self.names = (*members, "total")
        belongs = torch.zeros(len(self.names), count, dtype=torch.bool)
        for row, own_positions in enumerate(members.values()):
            belongs[row, own_positions] = True
        belongs[-1] = True
        # on the device once and for all: at each step a copy would take longer than the operation
        self._belongs = belongs.to(device)
        self.positions = {part: torch.tensor(members[part], dtype=torch.long, device=device) for part in self.parts}

    def combine(self, norms: Tensor) -> Tensor:
        """Norm of each row, `(..., rows)`, from those of the parameters, `(..., parameters)`."""
        # not a product with 0 and 1: 0 times a norm that is infinite would spoil the other rows
        own = torch.where(self._belongs, norms.unsqueeze(-2), 0)
        combined: Tensor = torch.linalg.vector_norm(own, dim=-1)
        return combined


# kept, because the groups change only when something unfreezes, not at each step
norm_table = lru_cache(maxsize=16)(NormTable)
