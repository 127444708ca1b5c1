"""Where training begins: parts that read training data are prepared, and heads may begin at a closed-form solution."""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from hybrid_lightning.data.loaders import plain_samples
from hybrid_lightning.data.preflight import first_rank_first
from hybrid_lightning.distributed.fsdp2 import FSDP2Strategy
from hybrid_lightning.drift.reference_batch import (
    as_validation,
    batches_on_device,
    evaluation_loaders,
    first_of,
    own_random_state,
)
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.lightning_private import loaders_to_read, save_now, set_average
from hybrid_lightning.network.blend import BlendFusion, ScaledHead
from hybrid_lightning.network.fusion import PartHeads
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.modules.mlp import LinearHead, LinearVote
from hybrid_lightning.tasks.features import (
    MOST_FOR_STATISTICS,
    MOST_SAMPLES,
    SplitFeatures,
    collect_features,
    settle_statistics,
    unsettled,
)
from hybrid_lightning.tasks.objective import Objective
from hybrid_lightning.tasks.probing import TOGETHER, Probe, probe_features
from hybrid_lightning.trainer import FitCallback, log_values
from hybrid_lightning.unfreezing.freezing import dry_run


class StartOfTraining(FitCallback):
    """Prepares a task's network before the first step; a fit that continues from a checkpoint has it from there.

    It comes before all other callbacks, of which some remember the weights at the start. Nothing is logged.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares what a checkpoint has not restored; with ``start: probe`` a new fit begins at its solution."""
        task: Any = pl_module
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
        """Prepares the parts that a checkpoint of a sharded model did not bring."""
        prepare_parts(trainer, pl_module)


def prepare_parts(trainer: Trainer, task: Any) -> None:
    """Lets parts take from training samples what they need; does nothing for those that have it already."""
    network: HybridNetwork = task.built()
    names = network.unprepared()
    if not names:
        return
    with samples_of_fit(trainer, MOST_SAMPLES) as loader:
        network.prepare(lambda: batches_on_device(trainer, task, loader))
    for name in names:
        _share(trainer, network.parts[name])  # random transforms may have given each rank other samples
    if trainer.is_global_zero:
        count = len(loader.sampler)  # type: ignore[arg-type]
        print(f"{listing(names)}: prepared with {count:,} training samples")


def settle(trainer: Trainer, task: Any, origins: Collection[str]) -> None:
    """Estimates running statistics that have seen nothing yet, in parts of these origins."""
    network: HybridNetwork = task.built()
    if unsettled(network, origins):
        with samples_of_fit(trainer, MOST_FOR_STATISTICS) as loader:
            settle_statistics(network, lambda: batches_on_device(trainer, task, loader), origins)


@contextmanager
def samples_of_fit(trainer: Trainer, most: int | None = None) -> Iterator[DataLoader[Any]]:
    """A loader of training samples, see `plain_samples`, and what is to hold while they are read by the network."""
    with own_random_state(trainer):
        loader: DataLoader[Any] = plain_samples(trainer.datamodule, loaders_to_read(trainer), most)  # type: ignore[attr-defined]
        with as_validation(trainer), trainer.precision_plugin.forward_context():
            yield loader


def start_at_probe(trainer: Trainer, task: Any) -> None:
    """Sets heads and blend to their closed-form solution on all training samples."""
    if isinstance(trainer.strategy, FSDP2Strategy):
        raise ConfigError("'probe' cannot set the heads of a sharded model. Use the strategy ddp.", "model.start")
    network: HybridNetwork = task.built()
    data = trainer.datamodule  # type: ignore[attr-defined]
    with samples_of_fit(trainer) as loader:
        features = collect_features(network, batches_on_device(trainer, task, loader))

    def solve() -> None:
        found = probe_features(task.objective, features, getattr(data, "train_groups", None))
        set_start(network, task.objective, features, found)
        print(described(found))

    first_rank_first(trainer, solve)
    for name in ("fusion", "head", "part_heads"):
        if name in network.parts:
            _share(trainer, network.parts[name])


def validate_start(trainer: Trainer, task: Any) -> None:
    """Validates the model before the first step, logs that as step 0, and lets it be the best checkpoint.

    Lightning's own validation loop is not used: it would count as one of the fit's validations, for which schedules and
    early stopping wait, and Lightning saves nothing at step 0.
    """
    if not trainer.enable_validation:
        return
    loader = first_of(evaluation_loaders(trainer))
    if not loader:
        return  # there are no validation rows
    with own_random_state(trainer), as_validation(trainer), dry_run(task), trainer.precision_plugin.forward_context():
        most = first_of(trainer.num_val_batches)
        count = None if math.isinf(most) else int(most)
        batches = islice(batches_on_device(trainer, task, loader), count)
        for index, batch in enumerate(batches):
            task.validation_step(batch, index)
        values, _ = task.evaluator.compute("val")
    log_values(trainer, {f"val/{name}": value for name, value in values.items()})
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor in trainer.callback_metrics:
            save_now(callback, trainer)


def _share(trainer: Trainer, module: nn.Module) -> None:
    """Gives all ranks the first one's values."""
    if trainer.world_size > 1:
        for tensor in [*module.parameters(), *module.buffers()]:
            torch.distributed.broadcast(tensor.detach(), 0)


def set_start(
    network: HybridNetwork,
    objective: Objective,
    features: SplitFeatures,
    found: Probe,
) -> None:
    """Sets the heads of a network, and its blend, to closed-form solutions."""
    votes = {}
    for name, voter in found.voters.items():
        votes[name] = objective.in_outputs(LinearVote(voter.vote.weight, voter.vote.bias))
    on_device = {name: tensor.to(_device(network)) for name, tensor in features.parts.items()}
    present = {name: mask.to(_device(network)) for name, mask in features.present.items()}
    if "fusion" in network.parts:
        fusion = network.parts["fusion"]
        assert isinstance(fusion, BlendFusion)
        weights = [found.weights[name] for name in [*features.parts, TOGETHER]]
        fusion.start_at(on_device, present, votes, votes[TOGETHER], weights)
        if "part_heads" in network.parts:
            heads = network.parts["part_heads"]
            assert isinstance(heads, PartHeads)
            heads.start_at(on_device, present, votes)
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
