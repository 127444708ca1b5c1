"""Where training begins: parts that read training data are prepared, and heads may begin at a closed-form solution."""

import math
from collections.abc import Collection
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor, nn

from hybrid_lightning.cache.frozen_feature_cache import FrozenFeatureCache
from hybrid_lightning.data.first_samples import FirstSamples
from hybrid_lightning.data.loaders import shown_targets
from hybrid_lightning.data.preflight import first_rank_first
from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.distributed.sharding import any_sharded, reshard
from hybrid_lightning.drift.reference_batch import batches_on_device, evaluation_loaders, first_of
from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, at, listing
from hybrid_lightning.lightning_private import loaders_to_read, save_now, set_average
from hybrid_lightning.network.blend import BlendFusion, ScaledHead
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.modules.mlp import LinearHead, LinearVote
from hybrid_lightning.optim.lr_schedules import GroupLR
from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint
from hybrid_lightning.tasks.early_checks import check_trainer
from hybrid_lightning.tasks.features import (
    MOST_FOR_STATISTICS,
    MOST_SAMPLES,
    SplitFeatures,
    collect_features,
    reading,
    settle_statistics,
    training_samples,
    unsettled,
)
from hybrid_lightning.tasks.objective import Objective
from hybrid_lightning.tasks.probing import TOGETHER, Probe, probe_features
from hybrid_lightning.trainer import FitCallback, fit_length, log_values
from hybrid_lightning.unfreezing.freezing import dry_run
from hybrid_lightning.unfreezing.gradual_unfreezing import GradualUnfreezing


class StartOfTraining(FitCallback):
    """Prepares a task's network before the first step; a run that continues from a checkpoint has it from there.

    It comes before all other callbacks, of which some remember the weights at the start. Nothing is logged.
    """

    def forget(self) -> None:
        """Forgets the length of an earlier fit."""
        self._length: FitLength | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Builds the network, so that callbacks find its parameters; refuses callbacks that would break promises.

        These follow a metric that is never logged or in the wrong direction, or undo what a schedule says.
        """
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            check_trainer(pl_module, trainer)
        task: Any = pl_module
        task.build_if_needed()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares the weights, then freezes, so that callbacks find flags and modes in their own ``on_fit_start``."""
        self._prepare_weights(trainer, pl_module)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradualUnfreezing):
                callback.freeze(trainer, pl_module)

    def _prepare_weights(self, trainer: Trainer, task: Any) -> None:
        """Prepares what a checkpoint has not restored; with ``start: probe`` a new fit begins at its solution."""
        continues = trainer.ckpt_path is not None
        if continues and trainer.strategy.restore_checkpoint_after_setup:
            return  # it brings what the parts took
        prepare_parts(trainer, task)
        if not continues:
            is_probe = task.settings.start == "probe" and not task.is_started
            settle(trainer, task, ("untrained", "random") if is_probe else ("random",))
            if is_probe:
                start_at_probe(trainer, task)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    set_average(callback, task)  # it has copied the weights before
        task.is_started = True  # whatever comes next starts from trained weights

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks all labels that a dataset shows; prepares what a checkpoint of a sharded model did not bring."""
        task: Any = pl_module
        objective = task.objective
        # somebody's own hooks may make classes of what the dataset shows; then each batch is checked after them
        if objective.reads_target and not task.has_own_hooks():
            for split, targets in shown_targets(trainer):
                with at(f"data: {split} targets"):
                    objective.check_target(targets)
        prepare_parts(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises `ConfigError` if this epoch has another length, and a warm-up would end elsewhere than was said."""
        length = fit_length(trainer)
        if self._length not in (None, length):
            for config in trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, GroupLR):
                    config.scheduler.refuse_moved(length)
        self._length = length

    # it stands before callbacks that average weights, which use the averages in these hooks

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Averages hold what is frozen as it is."""
        keep_frozen_in_averages(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Averages hold what is frozen as it is."""
        keep_frozen_in_averages(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Averages hold what is frozen as it is."""
        keep_frozen_in_averages(trainer)


def keep_frozen_in_averages(trainer: Trainer) -> None:
    """See `FrozenValues.keep_in_averages`."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradualUnfreezing) and callback.promises.frozen is not None:
            callback.promises.frozen.keep_in_averages(trainer)


def prepare_parts(trainer: Trainer, task: Any) -> None:
    """Lets parts take from training samples what they need; does nothing for those that have it already."""
    network: HybridNetwork = task.built()
    names = network.unprepared()
    if not names:
        return
    with samples_of_fit(trainer, MOST_SAMPLES) as loader:
        network.prepare(lambda: batches_on_device(trainer, task, loader))
    reshard(network)
    for name in names:
        _share(trainer, network.parts[name])  # streams and random transforms may have given each rank other samples
    if trainer.is_global_zero:
        if isinstance(loader, FirstSamples):
            print(f"{listing(names)}: prepared with the first {loader.count:,} training samples")
        else:
            print(f"{listing(names)}: prepared with {len(loader.sampler):,} training samples")


def settle(trainer: Trainer, task: Any, origins: Collection[str]) -> None:
    """Estimates running statistics that have seen nothing yet, in parts of these origins."""
    network: HybridNetwork = task.built()
    if unsettled(network, origins):
        with samples_of_fit(trainer, MOST_FOR_STATISTICS) as loader:
            settle_statistics(network, lambda: batches_on_device(trainer, task, loader), origins)
        reshard(network)


def samples_of_fit(trainer: Trainer, most: int | None = None) -> AbstractContextManager[Any]:
    """See `training_samples`."""
    return training_samples(trainer, lambda: loaders_to_read(trainer), most)


def start_at_probe(trainer: Trainer, task: Any) -> None:
    """Sets heads and blend to their closed-form solution on all training samples."""
    network: HybridNetwork = task.built()
    data = trainer.datamodule  # type: ignore[attr-defined]
    with samples_of_fit(trainer) as loader:
        features = collect_features(network, batches_on_device(trainer, task, loader))
    reshard(network)
    solutions = []

    def solve() -> None:
        found = probe_features(task.objective, features, getattr(data, "train_groups", None))
        solutions.append(solution_of(task.objective, found))
        print(described(found))

    first_rank_first(trainer, solve)
    solution: Any = trainer.strategy.broadcast(solutions[0] if solutions else None)
    if isinstance(trainer.strategy, FSDP2Strategy):
        # each rank sets its local shards, and must not see other samples, as random transforms may give it
        features = trainer.strategy.broadcast(features)
    set_start(network, features, solution)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FrozenFeatureCache):
            callback.offer(network, features.parts)
    for name in ("fusion", "head"):
        if name in network.parts:
            _share(trainer, network.parts[name])


def validate_start(trainer: Trainer, task: Any) -> None:
    """Validates the model before the first step, logs that as step 0, and lets it be the best checkpoint.

    Lightning's own validation loop is not used: it would count as one of the run's validations, for which schedules and
    early stopping wait, and Lightning saves nothing at step 0.
    """
    values = validated(trainer, task)
    if not values:
        return
    log_values(trainer, values)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback.monitor is None:
            continue
        # the best one knows what to do without its metric
        if isinstance(callback, BestCheckpoint) or callback.monitor in trainer.callback_metrics:
            save_now(callback, trainer)


def validated(trainer: Trainer, task: Any) -> dict[str, Tensor]:
    """``val/<metric>`` → its value for the weights of now; empty without validation rows. Collective."""
    loader = first_of(evaluation_loaders(trainer)) if trainer.enable_validation else None
    if not loader:
        return {}
    with reading(trainer), dry_run(task):
        most = first_of(trainer.num_val_batches)
        count = None if math.isinf(most) else int(most)
        batches = islice(batches_on_device(trainer, task, loader), count)
        for index, batch in enumerate(batches):
            task.validation_step(batch, index)
        values, _ = task.evaluator.compute("val")
    reshard(task)
    return {f"val/{name}": value for name, value in values.items()}


def _share(trainer: Trainer, module: nn.Module) -> None:
    """Gives all ranks the first one's values; sharded ones stay as they are."""
    if trainer.world_size > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            if not any_sharded([tensor]):
                torch.distributed.broadcast(tensor.detach(), 0)


class Solution(NamedTuple):
    """Where a network begins."""

    votes: dict[str, LinearVote]  # voter → its vote, in the units of the network's outputs
    weights: dict[str, float]  # voter → its share of the blend


def solution_of(objective: Objective, found: Probe) -> Solution:
    """The votes of a probe, and their weights."""
    votes = {}
    for name, voter in found.voters.items():
        votes[name] = objective.in_outputs(LinearVote(voter.vote.weight, voter.vote.bias))
    return Solution(votes, found.weights)


def set_start(network: HybridNetwork, features: SplitFeatures, solution: Solution) -> None:
    """Sets the heads of a network, and its blend, to closed-form solutions; on all ranks if they are sharded."""
    votes = solution.votes
    on_device = {name: tensor.to(_device(network)) for name, tensor in features.parts.items()}
    present = {name: mask.to(_device(network)) for name, mask in features.present.items()}
    if "fusion" in network.parts:
        fusion = network.parts["fusion"]
        assert isinstance(fusion, BlendFusion)
        weights = [solution.weights[name] for name in [*features.parts, TOGETHER]]
        fusion.start_at(on_device, present, votes, votes[TOGETHER], weights)
        return
    [(name, own)] = on_device.items()
    head = network.parts["head"]
    if isinstance(head, ScaledHead):
        head.start_at(own, votes[name])
    elif isinstance(head, LinearHead):
        head.start_at(votes[name])
    else:
        raise ConfigError(
            f"a {type(head).__name__} cannot begin at a closed-form solution. Leave the head out.", "model.start"
        )


def _device(network: HybridNetwork) -> torch.device:
    return next(network.parameters()).device


def described(found: Probe) -> str:
    """The start as a line."""
    shares = [f"{name} {weight:.2f}" for name, weight in found.weights.items() if weight]
    score = found.blend
    rows = len(next(iter(found.voters.values())).held_out)
    return (
        f"start: closed-form solution on {rows:,} training rows, {score.name} of rows held out {score.value:.3f} ± "
        f"{score.error:.3f}; blend: {', '.join(shares)}"
    )
