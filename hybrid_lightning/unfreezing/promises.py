"""Whether what was promised comes true: what is frozen stays as it is, and what trains gets gradients."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BaseFinetuning, ModelPruning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.distributed.ranks import checksums
from hybrid_lightning.distributed.sharding import own_shares
from hybrid_lightning.duration import Duration, FitLength
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.lightning_private import accumulates, average_of
from hybrid_lightning.unfreezing.schedule import UnfreezingSchedule
from hybrid_lightning.unfreezing.timeline import group_spans, label, refuse_impossible
from hybrid_lightning.unfreezing.zero_gradients import ZeroGradients

Group = Mapping[str, Any]
_BREAKING: dict[type, str] = {
    StochasticWeightAveraging: (
        "exchanges the scheduler, changes the length of the run and resets the statistics of frozen normalizations. "
        "Use EMAWeightAveraging of lightning.pytorch.callbacks"
    ),
    BaseFinetuning: "decides itself what trains. Leave it out, and write 'unfreeze' for each part",
    ModelPruning: (
        "sets weights of frozen parts to 0 and renames parameters, so that checkpoints of the run go with no model. "
        "Prune after the run"
    ),
}
"""Callbacks of Lightning that undo what a schedule promises → why, and what to do."""
_PATIENCE = 10  # steps in which a gradient has to reach each part, see `FirstGradients`


def refuse_breaking_callbacks(trainer: Trainer) -> None:
    """Raises `ConfigError` for a callback in the Trainer that would undo what a schedule promises."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, reason in _BREAKING.items():
            if isinstance(callback, kind):
                raise ConfigError(f"{type(callback).__name__} {reason}.", "trainer.callbacks")


def refuse_restoring(trainer: Trainer) -> None:
    """Raises `ConfigError` where the weights of the best validation cannot be restored, or were others."""
    if isinstance(trainer.strategy, FSDP2Strategy):
        raise ConfigError("restore_best keeps whole weights, which fsdp2 does not have. Leave it out.", "unfreeze")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            raise ConfigError(
                f"restore_best would restore other weights than those that had the best value, because "
                f"{type(callback).__name__} puts averages in their place for each validation. Leave one of them out.",
                "unfreeze",
            )


def refuse_unwatched(trainer: Trainer, schedules: Mapping[str, UnfreezingSchedule]) -> None:
    """Raises `ConfigError` if parts wait for a metric, and nothing is validated."""
    watched = [part for part, schedule in schedules.items() if schedule.metrics]
    if watched and not trainer.enable_validation:
        raise ConfigError(
            f"{listing(watched)} would wait for a metric, but nothing is validated. Give validation data, or write a "
            f"duration.",
            "unfreeze",
        )


class FrozenValues:
    """What is frozen when this is made, with checksums; groups come from `optimizer.param_groups`."""

    def __init__(self, trainer: Trainer, groups: Sequence[Group], modes: Mapping[nn.Module, bool]) -> None:
        self.tensors: dict[str, Tensor] = {}
        """Name in the LightningModule → parameter or buffer that has been frozen all the time."""
        self._homes: dict[str, nn.Module] = {}
        grouped = {parameter for group in groups for parameter in group["params"]}
        for prefix, child in trainer.lightning_module.named_modules():
            own: list[tuple[str, Tensor]] = list(child.named_parameters(prefix, recurse=False))
            own = [(name, tensor) for name, tensor in own if tensor in grouped]
            own += child.named_buffers(prefix, recurse=False)
            for name, tensor in own:
                if tensor.layout is torch.strided and tensor.element_size() <= 8:  # of which there are checksums
                    self.tensors[name], self._homes[name] = tensor, child
        self.leave_out(groups, modes)
        self._sums = self._measure()
        self._arrived = {parameter for group in groups if group["fixed"] for parameter in group["params"]}

    def leave_out(self, groups: Sequence[Group], modes: Mapping[nn.Module, bool]) -> None:
        """Forgets what trains from now on: parameters of groups that have begun, buffers of modules in train mode."""
        trained: set[Tensor] = set()
        for group in groups:
            if group["unfrozen_at"] is not None:
                trained.update(group["params"])
        for name, tensor in list(self.tensors.items()):
            is_buffer = not isinstance(tensor, nn.Parameter)
            if tensor in trained or (is_buffer and modes.get(self._homes[name], True)):
                del self.tensors[name]

    def _measure(self) -> dict[str, int]:
        sums: list[int] = checksums(own_shares(list(self.tensors.values()))).tolist()
        return dict(zip(self.tensors, sums, strict=True))

    def refuse_changed(self) -> None:
        """Raises `ConfigError` if what a schedule has frozen all the time has changed; tells what arrived frozen."""
        changed = [name for name, number in self._measure().items() if number != self._sums[name]]
        arrived = [name for name in changed if self._has_arrived(name)]
        frozen = [name for name in changed if name not in arrived]
        if frozen:
            raise ConfigError(
                f"frozen for the whole run, and changed nevertheless: {listing(frozen, 4)}. Another callback, or the "
                f"module itself, writes to them, and the checkpoints of this run hold what was written. Remove what "
                f"writes, or let the part train.",
                "unfreeze",
            )
        if arrived:  # such as a teacher, an average that its module keeps
            rank_zero_info(f"{listing(arrived, 4)} arrived frozen, and something else than training changes them.")
        for name in arrived:
            del self.tensors[name]

    def _has_arrived(self, name: str) -> bool:
        """Whether a user froze it by its flag, and no schedule."""
        own = list(self._homes[name].parameters(recurse=False))
        return bool(own) and self._arrived.issuperset(own)

    def keep_in_averages(self, trainer: Trainer) -> None:
        """Puts the frozen values into averages of the weights, which differ from them by rounding."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            average = average_of(callback) if isinstance(callback, WeightAveraging) else None
            if average is not None:
                averaged = {**dict(average.named_parameters()), **dict(average.named_buffers())}
                for name, tensor in self.tensors.items():
                    averaged[name].detach().copy_(tensor.detach())


class FirstGradients:
    """What trains from now on, as long as no gradient has reached it; `training` are names of groups.

    What gets a gradient is added to `reached`.
    """

    def __init__(self, groups: Sequence[Group], training: Collection[str], reached: set[nn.Parameter]) -> None:
        self._all: dict[str, set[nn.Parameter]] = {}
        for group in groups:
            if group["name"] in training:
                wanted = [parameter for parameter in group["params"] if parameter.requires_grad]
                self._all.setdefault(group["part"], set()).update(wanted)
        self._reached = reached
        self._missing = {part: parameters - reached for part, parameters in self._all.items() if parameters - reached}
        self._since: int | None = None  # the first step that was seen

    def observe(self, trainer: Trainer) -> None:
        """Takes the gradients of a backward pass, and concludes after enough steps."""
        if not self._missing:
            return
        if self._since is None:
            self._since = trainer.global_step
        for part, missing in list(self._missing.items()):
            self._reached.update([parameter for parameter in missing if parameter.grad is not None])
            missing -= self._reached
            if not missing:
                del self._missing[part]
        # a module may leave out a part of its input at random; several ranks need gradients of the same parameters
        is_enough = trainer.global_step - self._since + 1 >= _PATIENCE or trainer.world_size > 1
        if is_enough and not accumulates(trainer):
            self.conclude(trainer)

    def conclude(self, trainer: Trainer) -> None:
        """Raises `ConfigError` if a whole part has had no gradient; names single parameters in a line."""
        if self._since is None:
            return
        names = {parameter: name for name, parameter in trainer.lightning_module.named_parameters()}
        for part, missing in self._missing.items():
            if len(missing) == len(self._all[part]):
                raise ConfigError(
                    f"no gradient reaches this part, which is to train, from step {self._since} on. Its forward may "
                    f"run under torch.no_grad or torch.inference_mode, or detach what it returns; nothing may use its "
                    f"output; or something else has frozen it. Mend that, or write 'never'.",
                    f"unfreeze.{part}",
                )
            unused = listing([name for parameter, name in names.items() if parameter in missing], 4)
            rank_zero_info(f"{part}: no gradient reaches {unused}; what is not used does not train.")
            self._reached.update(missing)  # so that they are named once
        self._missing = {}


class Promises:
    """What a run has promised: `frozen` stays as it is, and gradients reach what trains."""

    def __init__(self) -> None:
        self.frozen: FrozenValues | None = None  # what has been frozen since the first batch
        self._reached: set[nn.Parameter] = set()  # by a gradient, in any phase
        self._gradients: FirstGradients | None = None  # of the newest phase
        self._zeros: ZeroGradients | None = None
        self._told: set[str] = set()  # parts whose gradients were 0
        self._is_compared = False

    def begin_phase(self, groups: Sequence[Group], training: Collection[str]) -> None:
        """Waits for the gradients of the groups that train now; `training` are their names."""
        self._gradients = FirstGradients(groups, training, self._reached)
        self._zeros = ZeroGradients(groups, training, self._told)

    def after_backward(self, trainer: Trainer) -> None:
        """See `FirstGradients` and `ZeroGradients`."""
        if self._gradients is None or self._zeros is None:
            return
        self._gradients.observe(trainer)
        self._tell(self._zeros.observe(partial(_over_ranks, trainer)))

    def end_epoch(self) -> None:
        """Compares what is frozen after the first epoch, so that a long fit does not learn of a change in the end."""
        if self.frozen is not None and not self._is_compared:
            self.frozen.refuse_changed()
        self._is_compared = True

    def end_fit(self, trainer: Trainer) -> None:
        """Raises `ConfigError` for what was not kept."""
        if self._gradients is not None and self._zeros is not None:
            self._gradients.conclude(trainer)
            self._tell(self._zeros.conclude(partial(_over_ranks, trainer)))
        if self.frozen is not None:
            self.frozen.refuse_changed()

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            rank_zero_info(line)


def _over_ranks(trainer: Trainer, values: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, which all have to ask for."""
    total: Tensor = trainer.strategy.reduce(values.to(trainer.strategy.root_device), reduce_op="sum")
    return total.cpu()


def never_trained(groups: Sequence[Group], starts: Mapping[str, int | None], step: int) -> list[str]:
    """A line for each part or stage that was to train at a known step, before which the run ended, at `step`.

    `starts`: group → that step.
    """
    lines = {}
    for group in groups:
        start = starts[group["name"]]
        if start is not None and group["unfrozen_at"] is None and not group["fixed"]:
            due = f"it was due at step {start}, and the run ended after {Duration(step, 'steps')}."
            lines[label(group)] = f"{label(group)} has not been unfrozen: {due}"
    return list(lines.values())


def check_moments(
    trainer: Trainer, groups: Sequence[Group], schedules: Mapping[str, UnfreezingSchedule], length: FitLength
) -> None:
    """Raises `ConfigError` if the moments do not fit into the run; a fast development run is too short for any."""
    if not getattr(trainer, "fast_dev_run", False):
        refuse_impossible(group_spans(groups, schedules, length), length)
