"""Sharding with torch's FSDP2 (`fully_shard`): one wrap unit per stage of each part, so that stages unfreeze alone."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hybrid_lightning.errors import ConfigError, listing


def shard(module: nn.Module, mesh: DeviceMesh, groups: Iterable[Mapping[str, Any]]) -> None:
    """Shards a module in place; every rank starts from the weights of the first one.

    Call it in ``configure_model`` of a LightningModule for each network that its steps call as ``module(...)``::

        groups = named_param_groups(self, {"backbone": "backbone", "head": "head"}, lr=0.01)
        for network in (self.backbone, self.head):
            shard(network, self.device_mesh["data_parallel"], groups)

    The groups made before are of the old, full parameters: make those of the optimizer anew.

    Args:
        module: The module to shard, with full parameters.
        mesh: One-dimensional mesh of the ranks to shard over.
        groups: From `named_param_groups`, of this module or of one around it: each part × stage becomes a unit, see
            `wrap_units`.

    Raises:
        ConfigError: If a parameter is tied across units, has no dimension, or belongs to nothing that is called.
    """
    units = wrap_units(module, groups)
    _refuse_tied(module, units)
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise ConfigError(
                f"trainer.strategy: fsdp2 cannot shard {name!r}, which has no dimension. "
                f"Give it the shape (1,), or use the strategy 'ddp'."
            )
    for parameter in module.parameters():  # one at a time, to spare memory
        same_as_first_rank([parameter], mesh)
    same_as_first_rank(module.buffers(), mesh)
    for modules in units:
        fully_shard(modules, mesh=mesh)
    if _is_called(module) and not isinstance(module, FSDPModule):
        fully_shard(module, mesh=mesh)
    left = [name for name, parameter in module.named_parameters() if not isinstance(parameter, DTensor)]
    if left:
        raise ConfigError(
            f"trainer.strategy: fsdp2: {listing(left, 5)} belong to no module that is called. "
            f"Shard the module around them, which has a forward."
        )


def wrap_units(module: nn.Module, groups: Iterable[Mapping[str, Any]]) -> list[list[nn.Module]]:
    """The modules that each unit gathers together: one unit per stage, and one per part that has further parameters."""
    # A unit holds the outermost modules whose parameters all belong to the stage (or part). They have to be called; a
    # part whose blocks are used without a call (``self.block.weight``) needs ``stages: ['*']``.
    of_stages: dict[tuple[str, int], set[int]] = {}
    of_parts: dict[str, set[int]] = {}
    for group in groups:
        ids = {id(parameter) for parameter in group["params"]}
        of_stages.setdefault((group["part"], group["stage"]), set()).update(ids)
        of_parts.setdefault(group["part"], set()).update(ids)
    units = []
    taken: set[int] = set()
    for wanted in (*of_stages.values(), *of_parts.values()):
        found = dict.fromkeys(outermost(module, wanted))  # a module that is there twice counts once
        unit = [inner for inner in found if not taken.issuperset(map(id, inner.parameters()))]
        for inner in unit:
            taken.update(map(id, inner.parameters()))
        if unit:
            units.append(unit)
    return units


def _is_called(module: nn.Module) -> bool:
    """Whether a module has a forward, unlike a ModuleList."""
    return type(module).forward is not nn.Module.forward


def outermost(module: nn.Module, wanted: Collection[int]) -> list[nn.Module]:
    """The outermost modules with a forward whose parameters are all `wanted`."""
    parameters = list(module.parameters())
    if parameters and _is_called(module) and all(id(parameter) in wanted for parameter in parameters):
        return [module]
    found = []
    for child in module.children():
        found += outermost(child, wanted)
    return found


def _refuse_tied(module: nn.Module, units: list[list[nn.Module]]) -> None:
    """Raises `ConfigError` if a parameter has names in two units, one of which would lack it."""
    unit_of: dict[nn.Module, int] = {}
    for index, members in enumerate(units):
        unit_of.update(dict.fromkeys(members, index))
    modules = dict(module.named_modules(remove_duplicate=False))

    def unit(name: str) -> int | None:
        while name:
            name = name.rpartition(".")[0]
            if modules[name] in unit_of:
                return unit_of[modules[name]]
        return None

    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if unit(other) != unit(name):
            raise ConfigError(
                f"trainer.strategy: fsdp2 cannot shard {other!r} and {name!r}, one parameter in two stages or parts. "
                f"Give the part one stage (stages: ['*']), or use the strategy 'ddp'."
            )


def same_as_first_rank(tensors: Iterable[Tensor], mesh: DeviceMesh) -> None:
    """Overwrites tensors with those of the first rank of a one-dimensional mesh, with one message per dtype."""
    # shapes and types are the same on all ranks; sharded tensors are left alone
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if not isinstance(tensor, DTensor):
            by_dtype.setdefault(tensor.dtype, []).append(tensor.detach())
    for of_dtype in by_dtype.values():
        sent = torch.cat([tensor.flatten().to(mesh.device_type) for tensor in of_dtype])
        dist.broadcast(sent, group=mesh.get_group(), group_src=0)
        sizes = [tensor.numel() for tensor in of_dtype]
        for tensor, received in zip(of_dtype, torch.split(sent, sizes), strict=True):
            tensor.copy_(received.view(tensor.shape))


def reshard(module: nn.Module) -> None:
    """Puts the sharded parameters back into all units of a module; does nothing in a module without units."""
    # call it before a flag changes or is read: while a unit is gathered (its root is, after a validation), the module
    # holds gathered copies, and a flag set on these is lost
    for unit in module.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def any_sharded(tensors: Sequence[Tensor]) -> bool:
    """Whether one of the tensors is sharded."""
    kinds = set(map(type, tensors))  # few kinds, many tensors
    return any(issubclass(kind, DTensor) for kind in kinds)


def own_shares(tensors: Sequence[Tensor]) -> list[Tensor]:
    """This rank's local shard of each tensor, see `own_share`."""
    return [own_share(tensor) for tensor in tensors] if any_sharded(tensors) else list(tensors)


def own_share(tensor: Tensor) -> Tensor:
    """This rank's local shard of a sharded tensor, in the same memory; any other tensor as it is."""
    with torch.no_grad():
        return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(value: Any) -> Any:
    """A sharded tensor as a full one on the CPU, anything else as it is. Collective: call it on every rank."""
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def set_full(tensor: Tensor, value: Tensor) -> None:
    """Overwrites a tensor, sharded or not, with full values, which are the same on all ranks."""
    tensor.copy_(sharded_like(value, tensor, "value") if isinstance(tensor, DTensor) else value)


def sharded_like(value: Tensor, like: Tensor, name: str) -> Tensor:
    """A full (or otherwise sharded) tensor, the same on all ranks, sharded as another one of its shape is."""
    # raises `ConfigError`, with the tensor's name, if the shapes differ
    if not isinstance(like, DTensor):
        return whole(value)  # type: ignore[no-any-return]
    if value.shape != like.shape:
        raise ConfigError(
            f"--ckpt_path: {name} has shape {tuple(value.shape)}, its parameter {tuple(like.shape)}; a state of "
            f"another shape cannot be sharded again. Use the strategy 'ddp', or another optimizer."
        )
    if isinstance(value, DTensor):
        return value.redistribute(like.device_mesh, like.placements)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
