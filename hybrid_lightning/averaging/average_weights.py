"""A moving average of the weights of a run, which is validated, saved and served; training goes on without it."""

from collections.abc import Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hybrid_lightning.averaging.moving_average import MovingAverage
from hybrid_lightning.duration import Duration
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.resume.own_files import damaged
from hybrid_lightning.trainer import FitCallback, fit_length
from hybrid_lightning.unfreezing.freezing import has_statistics
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing
from hybrid_lightning.unfreezing.reestimate_statistics import ReestimateStatistics

TRAINED = "current_model_state"
"""Where a checkpoint whose ``state_dict`` is an average has the weights that train; as with `WeightAveraging`."""


class AverageWeights(FitCallback):
    """Averages the weights exponentially over the optimizer steps, and lets validations and checkpoints have that.

    In a checkpoint ``state_dict`` is the average, for all that reads weights, and ``current_model_state`` has the
    weights that train, from which a run continues, bit by bit. After the run the module holds the average.

    Averaged is what trains now: each group of parameters from its unfreezing on, with the running statistics of its
    normalizations. What is frozen, also again, is as it is. A skipped step does not count. Works in any LightningModule
    whose one optimizer has groups from `named_param_groups`; parts with ``batch_norm: recalibrate`` have statistics
    estimated anew for the average, which short fits need, as averaged ones lag behind. `PretrainedDrift` measures the
    average in a validation. Nothing is logged.

    It is not Lightning's `WeightAveraging`, which copies the whole module, frozen parts and all, and gives the weights
    before the first step their share for a long time.

    Args:
        half_life: The duration in which the weight of a step halves, such as ``1 epochs`` or ``200 steps``.

    Raises:
        ConfigError: If `half_life` is not a duration, or less than a step. At the start of a run, beside
            `WeightAveraging` or ``restore_best``, and if parameters are sharded.
    """

    state_form: ClassVar[dict[Any, Any]] = {"updates": {str: range(1, 2**63)}}

    def __init__(self, half_life: str = "1 epochs") -> None:
        super().__init__()
        self.half_life = Duration.parse(half_life, "average.ema")
        if not self.half_life.value:
            raise ConfigError(f"'{self.half_life}' averages nothing; give at least '1 steps'.", "average.ema")
        self.forget()

    def forget(self) -> None:
        """Forgets the average of an earlier fit."""
        self._average: MovingAverage | None = None
        self._saved: Mapping[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._held: dict[str, Tensor] = {}  # name → weight that trains, while the average is in its place
        self._step_before = 0
        self._flags: tuple[bool, ...] = ()
        self._tensors: dict[str, Tensor] = {}  # what is averaged now
        self._has_told = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses what an average does not go with."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        refuse_sharded(trainer)
        if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ConfigError(
                "a callback in trainer.callbacks averages weights, too. Leave one of them out.", "average"
            )

    # State

    def state_dict(self) -> dict[str, Any]:
        """How many updates each tensor has had; the averages are the weights of the checkpoint."""
        return {"updates": {} if self._average is None else dict(self._average.counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the counts."""
        self._counts = dict(state_dict["updates"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the average in the place of the weights, and these beside it."""
        if self._average is None or not self._average.values:
            return
        if trainer.state.fn == "fit" and trainer.validating:
            self._leave(pl_module)  # other callbacks save what lies in the module
        trained = dict(checkpoint["state_dict"])
        averages = _by_every_name(pl_module, self._average.values)
        checkpoint["state_dict"] = {name: averages.get(name, tensor) for name, tensor in trained.items()}
        checkpoint[TRAINED] = {**trained, **_by_every_name(pl_module, self._held)}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A run goes on from the weights that were in training."""
        self._saved, self._counts = {}, {}
        if trainer.state.fn != "fit" or TRAINED not in checkpoint:
            return
        counts = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("updates", {})
        if any(count > checkpoint["global_step"] for count in counts.values()):
            raise damaged(f"'callbacks.{self.state_key}.updates' has more updates than there were steps.")
        self._saved = checkpoint["state_dict"]
        pl_module.load_state_dict(checkpoint[TRAINED])

    def _take_saved(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins with the averages of a checkpoint, as far as they fit the module."""
        steps = max(self.half_life.steps(fit_length(trainer), "average.ema"), 1)
        rank_zero_info(f"average: exponential, half-life {Duration(steps, 'steps')}; it is validated, saved and served")
        self._average = MovingAverage(steps)
        own = _named(pl_module)
        for name, count in self._counts.items():
            saved, tensor = self._saved.get(name), own.get(name)
            if saved is not None and tensor is not None and saved.shape == tensor.shape:
                self._average.values[name] = saved.detach().to(tensor.device, copy=True)
                self._average.counts[name] = count
        self._saved, self._counts = {}, {}

    # Averaging

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turns the half-life into steps; takes what a checkpoint has."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        for unfreezing in [callback for callback in callbacks if isinstance(callback, GradualUnfreezing)]:
            if any(schedule.restores for schedule in unfreezing.schedules.values()):
                raise ConfigError(
                    "restore_best would restore other weights than those that had the best value, because averages "
                    "are validated in their place. Leave it or 'average' out.",
                    "unfreeze",
                )
        self._take_saved(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Notes the step, to see whether this batch completes one."""
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Takes the weights after an optimizer step."""
        if trainer.global_step == self._step_before or self._average is None:
            return
        groups = self.groups(trainer)
        flags = tuple([parameter.requires_grad for group in groups for parameter in group["params"][:1]])
        if flags != self._flags:
            self._flags = flags
            self._tensors = trained_tensors(pl_module, groups)
            self._tell_of_statistics(trainer)
        is_made = any(tensor.grad is not None for tensor in self._tensors.values() if isinstance(tensor, nn.Parameter))
        if is_made or not pl_module.automatic_optimization:  # there, a user may have removed the gradients
            self._average.update(self._tensors)

    def _tell_of_statistics(self, trainer: Trainer) -> None:
        """Says once how to have better statistics than averaged ones; to estimate them reads training data anew."""
        has_statistics = not all(isinstance(tensor, nn.Parameter) for tensor in self._tensors.values())
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        is_chosen = any(isinstance(callback, ReestimateStatistics) for callback in callbacks)
        if has_statistics and not is_chosen and not self._has_told:
            self._has_told = True
            rank_zero_info(
                "average: running statistics of normalizations are averaged, too, and lag behind in a short "
                "run; 'batch_norm: recalibrate' of a part estimates them anew before each validation"
            )

    # Serving

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the average into the module."""
        if trainer.state.fn == "fit":
            self._enter(trainer, pl_module)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Puts it there again, if a checkpoint was saved within the validation."""
        if trainer.state.fn == "fit":
            self._enter(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the weights that train back."""
        if trainer.state.fn == "fit":
            self._leave(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted validation ends like any other."""
        self._leave(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the module."""
        if self._saved:  # the run had ended before
            pl_module.load_state_dict(self._saved)
        self._enter(trainer, pl_module)

    @torch.no_grad()
    def _enter(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._held or self._average is None:
            return
        own = _named(pl_module)
        for name, value in self._average.values.items():
            tensor = own[name]
            self._held[name] = tensor.detach().clone()
            if trainer.world_size > 1 and not isinstance(tensor, nn.Parameter):
                # each rank has statistics of its own samples, and a checkpoint those of the first
                torch.distributed.broadcast(value, 0)
            tensor.copy_(value)

    @torch.no_grad()
    def _leave(self, pl_module: LightningModule) -> None:
        own = _named(pl_module)
        for name, trained in self._held.items():
            if not isinstance(own[name], nn.Parameter) and self._average is not None:
                self._average.values[name].copy_(own[name])  # they may have been estimated anew
            own[name].copy_(trained)
        self._held = {}


def refuse_sharded(trainer: Trainer) -> None:
    """Raises `ConfigError` under a strategy that shards weights."""
    if isinstance(trainer.strategy, ModelParallelStrategy | FSDPStrategy):
        raise ConfigError("an average is of whole weights, which this strategy shards. Leave it out.", "average")


def trained_tensors(module: nn.Module, groups: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Name → parameter of the groups that trains, or running statistics of a normalization in train mode."""
    grouped = {parameter for group in groups for parameter in group["params"]}
    every = list(module.named_parameters())
    found: dict[str, Tensor] = {name: own for name, own in every if own.requires_grad and own in grouped}
    for prefix, child in module.named_modules():
        if child.training and has_statistics(child):
            buffers = child.named_buffers(prefix, recurse=False)
            found |= {name: buffer for name, buffer in buffers if buffer.is_floating_point()}
    return found


def _named(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _by_every_name(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values by all names that a state has for a tensor, which may stand in several places."""
    own = _named(module)
    by_tensor = {id(own[name]): value for name, value in values.items()}
    found = {}
    every = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    for name, tensor in every:
        if id(tensor) in by_tensor:
            found[name] = by_tensor[id(tensor)]
    return found
