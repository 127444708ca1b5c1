"""The weights that parts had when the run began: one copy, which the callbacks that need it share."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.distributed.sharding import any_sharded, own_share, own_shares, reshard, sharded_like, whole
from hybrid_lightning.errors import ConfigError, check_keys, listing
from hybrid_lightning.gradients.norms import mesh_of
from hybrid_lightning.lightning_private import saves_shares
from hybrid_lightning.trainer import FitCallback

STARTING_WEIGHTS_KEY = "hybrid_lightning_reference"
"""Where a checkpoint holds the starting weights: parameter name → tensor. The word is that of the first release."""
Group = Mapping[str, Any]


class StartingWeights:
    """The starting weights w0: parameter → its value when the run began; of a sharded one, this rank's shard.

    A run that continues from a checkpoint takes them from it, so they stay those of the first start.
    """

    def __init__(self) -> None:
        self.weights: dict[nn.Parameter, Tensor] = {}
        self._names: dict[nn.Parameter, str] = {}
        self._parts: dict[str, None] = {}
        self._saved: Mapping[str, Tensor] | None = None
        self._announced = False

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Remembers the starting weights of a checkpoint, until the parameters exist."""
        self._saved = checkpoint.get(STARTING_WEIGHTS_KEY, {})

    def take(self, pl_module: LightningModule, groups: Iterable[Group], on_device: bool) -> None:
        """Copies the weights of named groups, unless they are held already, to their device or to the CPU."""
        reshard(pl_module)
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        incomplete: dict[str, None] = {}
        for group in groups:
            self._parts[group["part"]] = None
            for parameter in group["params"]:
                if not parameter.is_floating_point():
                    continue  # integers, such as quantized weights, do not train
                if parameter not in self.weights:
                    saved = self._saved_value(names[parameter], parameter)
                    if saved is None and self._saved is not None:
                        incomplete[group["part"]] = None
                    value = parameter.detach() if saved is None else saved
                    self.weights[parameter] = own_share(value).to("cpu", copy=True)
                    self._names[parameter] = names[parameter]
                if on_device:
                    self.weights[parameter] = self.weights[parameter].to(parameter.device)
        if incomplete:
            rank_zero_warn(
                f"The checkpoint holds no starting weights of {listing(incomplete)}, or not all. What it lacks is "
                f"compared with the weights at this restart, not with those of the first start."
            )

    def _saved_value(self, name: str, parameter: nn.Parameter) -> Tensor | None:
        """The checkpoint's value of a parameter, sharded as it is; None if there is none of its shape."""
        saved = (self._saved or {}).get(name)
        if saved is None or saved.shape != parameter.shape:
            return None
        return sharded_like(saved.to(parameter.dtype), parameter, name)

    def announce(self) -> None:
        """Reports once how much memory the copy takes; what was read from a checkpoint is not needed any more."""
        self._saved = None
        if self._announced or not self.weights:
            return
        self._announced = True
        sizes: Counter[torch.device] = Counter()
        for tensor in self.weights.values():
            sizes[tensor.device] += tensor.nbytes
        memory = " and ".join(f"{size / 1e6:.3g} MB on {device}" for device, size in sizes.items())
        per_rank = " per rank" if any_sharded(list(self.weights)) else ""
        rank_zero_info(f"starting weights of {listing(self._parts)}: {memory}{per_rank}; saved in checkpoints")

    def save(self, trainer: Trainer, checkpoint: dict[str, Any]) -> None:
        """Adds full tensors, or shards if the strategy saves shards, to a checkpoint once. Collective if sharded."""
        if STARTING_WEIGHTS_KEY in checkpoint or not self.weights:
            return
        strategy = trainer.strategy
        as_shards = isinstance(strategy, FSDP2Strategy) and saves_shares(strategy)
        saved: dict[str, Tensor] = {}
        for parameter, shard in self.weights.items():
            value = _sharded_as(shard, parameter)
            if not as_shards:
                value = whole(value)  # one at a time, to spare memory
            if as_shards or trainer.is_global_zero:  # only the first rank writes full tensors
                saved[self._names[parameter]] = value
        checkpoint[STARTING_WEIGHTS_KEY] = saved

    def moved(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """This rank's shard of w - w0 of each parameter, on its device; all of them are held."""
        if not parameters:
            return []
        start = [self.weights[parameter].to(parameter.device, non_blocking=True) for parameter in parameters]
        now = own_shares([parameter.detach() for parameter in parameters])
        return list(torch._foreach_sub(now, start))


class StartingWeightsCallback(FitCallback):
    """Base of the callbacks that compare parts, None for the pretrained ones, with their starting weights."""

    on_device: ClassVar[bool] = False  # whether w0 is needed on the parameters' device, and not only on the CPU

    def __init__(self, parts: Collection[str] | None) -> None:
        super().__init__()
        self.parts = parts
        self.watched: list[str] = []
        self.start = StartingWeights()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A run starts with a new copy: the first of these callbacks makes it, the others share it."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            first = next(callback for callback in callbacks if isinstance(callback, StartingWeightsCallback))
            self.start = StartingWeights() if first is self else first.start

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes the starting weights from a checkpoint that the run continues."""
        if trainer.state.fn == "fit":
            self.start.restore(checkpoint)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds the starting weights."""
        self.start.save(trainer, checkpoint)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the weights, before the optimizer's state is restored, which replaces the groups' dicts."""
        groups = self.groups(trainer)
        self.watched = self._chosen_parts(groups)
        wanted = self.watched_groups(trainer)
        mesh_of([parameter for group in wanted for parameter in group["params"]])  # refuses tensor parallelism
        self.start.take(pl_module, wanted, self.on_device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports how much memory the copies of all these callbacks take."""
        self.start.announce()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """After the run the copy is needed for checkpoints only."""
        if stage == "fit":
            self.start.weights = {parameter: tensor.cpu() for parameter, tensor in self.start.weights.items()}

    def watched_groups(self, trainer: Trainer) -> list[dict[str, Any]]:
        """The groups of the parts that are compared."""
        return [group for group in self.groups(trainer) if group["part"] in self.watched]

    def _chosen_parts(self, groups: Sequence[Group]) -> list[str]:
        """The parts that are named, or else those whose groups have ``origin: pretrained``."""
        place = f"{type(self).__name__}.parts"
        known = dict.fromkeys(group["part"] for group in groups)
        if self.parts is not None:
            check_keys(self.parts, known, place, kind="part")
            return list(self.parts)
        pretrained = dict.fromkeys(group["part"] for group in groups if group.get("origin") == "pretrained")
        if not pretrained:
            # groups of a foreign module have no origin
            reason = "no part is pretrained" if "origin" in groups[0] else "the groups do not say what is pretrained"
            raise ConfigError(f"{reason}. Name the parts that you mean, among: {listing(known)}.", place)
        return list(pretrained)


def _sharded_as(shard: Tensor, parameter: nn.Parameter) -> Tensor:
    """A shard as the sharded tensor that its parameter is; anything else as it is."""
    if not isinstance(parameter, DTensor):
        return shard
    return DTensor.from_local(
        shard.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
