"""The weights that parts had when the fit began, one copy per Trainer, shared by the callbacks that need them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.distributed.sharding import own_share, reshard, sharded_like, whole
from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.lightning_private import saves_shares
from hybrid_lightning.trainer import named_groups

REFERENCE_KEY = "hybrid_lightning_reference"
"""Where a checkpoint holds the reference weights: parameter name → tensor."""
Group = Mapping[str, Any]


class Reference:
    """The reference weights w0: parameter → its value when the fit began; of a sharded one, this rank's share.

    A fit that continues from a checkpoint takes them from it, so they stay those of the first start.
    """

    def __init__(self) -> None:
        self.weights: dict[nn.Parameter, Tensor] = {}
        self._names: dict[nn.Parameter, str] = {}
        self._parts: dict[str, None] = {}
        self._saved: Mapping[str, Tensor] | None = None
        self._announced = False

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Remembers what a checkpoint holds, until the parameters are known."""
        self._saved = checkpoint.get(REFERENCE_KEY, {})

    def take(self, pl_module: pl.LightningModule, groups: Iterable[Group], on_device: bool) -> None:
        """Copies the weights of groups, unless they are held already.

        Args:
            pl_module: Names the parameters.
            groups: Named param groups.
            on_device: Whether the copy is kept on the parameters' device; if not, on the CPU.
        """
        reshard(pl_module)
        names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        late: dict[str, None] = {}
        for group in groups:
            self._parts[group["part"]] = None
            for parameter in filter(_has_norm, group["params"]):
                if parameter not in self.weights:
                    self._names[parameter] = name = names[id(parameter)]
                    if self._saved is not None and not _fits(self._saved.get(name), parameter):
                        late[group["part"]] = None
                    self.weights[parameter] = self._original(name, parameter)
                if on_device:
                    self.weights[parameter] = self.weights[parameter].to(parameter.device)
        if late:
            rank_zero_warn(
                f"The checkpoint holds no reference weights of {listing(late)}, or not all. What it lacks is compared "
                f"with the weights at this restart, not with those of the first start."
            )

    def _original(self, name: str, parameter: nn.Parameter) -> Tensor:
        value: Tensor = parameter.detach()
        saved = (self._saved or {}).get(name)
        if saved is not None and _fits(saved, parameter):
            value = sharded_like(saved.to(parameter.dtype), parameter, name)
        return own_share(value).to("cpu", copy=True)

    def announce(self) -> None:
        """Says once how much memory the copy takes; what was read from a checkpoint is not needed any more."""
        self._saved = None
        if self._announced or not self.weights:
            return
        self._announced = True
        sizes: dict[str, int] = {}
        for tensor in self.weights.values():
            device = str(tensor.device)
            sizes[device] = sizes.get(device, 0) + tensor.numel() * tensor.element_size()
        memory = " and ".join(f"{size / 1e6:.3g} MB on {device}" for device, size in sizes.items())
        share = " per rank" if any(isinstance(parameter, DTensor) for parameter in self.weights) else ""
        rank_zero_info(f"reference weights of {listing(self._parts)}: {memory}{share}; saved in checkpoints")

    def save(self, trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
        """Adds the weights to a checkpoint, once: whole, or as shares if the strategy saves shares. All ranks ask."""
        if REFERENCE_KEY in checkpoint or not self.weights:
            return
        strategy = trainer.strategy
        shares = isinstance(strategy, FSDP2Strategy) and saves_shares(strategy)
        saved = checkpoint[REFERENCE_KEY] = dict[str, Tensor]()
        for parameter, share in self.weights.items():
            value = _as_parameter(share, parameter)
            value = value if shares else whole(value)  # one at a time, to spare memory
            if shares or trainer.is_global_zero:
                saved[self._names[parameter]] = value

    def leave_device(self) -> None:
        """Moves all copies to the CPU."""
        self.weights = {parameter: tensor.cpu() for parameter, tensor in self.weights.items()}

    def moved(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """W - w0 of each parameter that is held, on its device; of a sharded one, this rank's share."""
        held = [p for p in parameters if p in self.weights]
        start = [self.weights[p].to(p.device, non_blocking=True) for p in held]
        return list(torch._foreach_sub([own_share(p.detach()) for p in held], start)) if held else []

    def starts(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """w0 of each parameter that is held, where it is kept."""
        return [self.weights[p] for p in parameters if p in self.weights]


_references: WeakKeyDictionary[pl.Trainer, Reference] = WeakKeyDictionary()


def reference_of(trainer: pl.Trainer) -> Reference:
    """The one reference of a Trainer."""
    return _references.setdefault(trainer, Reference())


class ReferenceCallback(pl.Callback):
    """Base of the callbacks that compare parts with their reference weights.

    Args:
        parts: Names of the parts; None takes the pretrained ones.
        on_device: Whether w0 is needed on the parameters' device.
    """

    def __init__(self, parts: Collection[str] | None, on_device: bool) -> None:
        super().__init__()
        self.parts, self.on_device = parts, on_device
        self.watched: list[str] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A fit starts without the memory of an earlier one; a checkpoint is read after this."""
        if stage == "fit":
            _references.pop(trainer, None)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Takes the reference weights from a checkpoint that the fit continues."""
        if trainer.state.fn == "fit":
            reference_of(trainer).restore(checkpoint)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the reference weights."""
        reference_of(trainer).save(trainer, checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copies the weights, before the optimizer's state is restored, which replaces the groups' dicts."""
        groups = named_groups(trainer, type(self).__name__)
        self.watched = chosen_parts(groups, self.parts, type(self).__name__)
        wanted = [group for group in groups if group["part"] in self.watched]
        _refuse_other_shares([p for group in wanted for p in group["params"]])
        reference_of(trainer).take(pl_module, wanted, self.on_device)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says how much memory the copies of all these callbacks take."""
        reference_of(trainer).announce()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """After the fit the copy is needed for checkpoints only."""
        if stage == "fit":
            reference_of(trainer).leave_device()


def chosen_parts(groups: Sequence[Group], parts: Collection[str] | None, where: str) -> list[str]:
    """The parts that a callback is to watch.

    Args:
        groups: Named param groups.
        parts: Names, or None for those whose groups say ``origin: pretrained``.
        where: Name of the callback, for errors.

    Raises:
        ConfigError: If a part is unknown, or None is given and no part is known to be pretrained.
    """
    known = list(dict.fromkeys(group["part"] for group in groups))
    for part in parts or ():
        if part not in known:
            raise unknown(f"{where}.parts", "part", part, known)
    if parts is not None:
        return list(parts)
    found = list(dict.fromkeys(group["part"] for group in groups if group.get("origin") == "pretrained"))
    if not found:
        reason = "no part is pretrained" if any("origin" in g for g in groups) else "nothing says what is pretrained"
        raise ConfigError(f"{where}.parts: {reason}. Name the parts that you mean, among: {listing(known)}.")
    return found


def sum_of_squares(tensors: Sequence[Tensor]) -> Tensor:
    """The squared 2-norm of all tensors together, a scalar in float32, or float64 if one of them is."""
    if not tensors:
        return torch.zeros(())
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in real) else torch.float32
    return torch.stack([norm.to(real[0].device) for norm in torch._foreach_norm(real, 2, dtype=dtype)]).square().sum()


def over_ranks(squares: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Sums of squares of the ranks' shares as those of the whole parameters; every rank has to ask.

    Args:
        squares: One or more sums of squares.
        parameters: All parameters of the sums; sharded or not, but all alike.
    """
    mesh = next((p.device_mesh for p in parameters if isinstance(p, DTensor)), None)
    if mesh is not None:
        dist.all_reduce(squares, group=mesh.get_group())
    return squares


def _refuse_other_shares(parameters: Iterable[nn.Parameter]) -> None:
    sharded = [p for p in parameters if isinstance(p, DTensor)]
    placements = {placement for p in sharded for placement in p.placements}
    if len({p.device_mesh for p in sharded}) > 1 or len(placements) > 1 or not all(p.is_shard() for p in placements):
        raise ConfigError(
            "trainer.strategy: weights can be compared with their start if they are whole, or sharded as 'fsdp2' does, "
            "but not under tensor parallelism. Use 'ddp' or 'fsdp2'."
        )


def _has_norm(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _fits(saved: Tensor | None, parameter: nn.Parameter) -> bool:
    return saved is not None and saved.shape == parameter.shape


def _as_parameter(share: Tensor, parameter: nn.Parameter) -> Tensor:
    """A share as the sharded tensor that its parameter is; anything else as it is."""
    if not isinstance(parameter, DTensor):
        return share
    mesh, placements, local = parameter.device_mesh, parameter.placements, share.to(parameter.device)
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()
    )
