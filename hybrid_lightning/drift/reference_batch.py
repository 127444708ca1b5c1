"""A fixed batch of samples, and what parts of a LightningModule make of it, without a trace in the run."""

import copy
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning.distributed.sharding import reshard
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import batch_as_given
from hybrid_lightning.resume.seeded_loaders import seed_cpu
from hybrid_lightning.trainer import as_validation
from hybrid_lightning.unfreezing.freezing import dry_run


def read_reference_batch(trainer: Trainer, samples: int) -> tuple[Any, int]:
    """The first samples of the validation data, else of the training data, as one batch, and how many there are."""
    # They are read by index, in the dataset's order, with random numbers of their own; the loaders that the run reads
    # are not touched. Of several loaders the first is taken.
    with own_random_state(trainer):
        loader = first_of(evaluation_loaders(trainer))
        batched = isinstance(loader, DataLoader) and loader.batch_sampler is not None
        if not batched or isinstance(loader.dataset, IterableDataset) or not len(loader.dataset):
            raise ConfigError(
                f"the samples of a {type(loader).__name__} cannot be read by index; give a DataLoader that makes "
                f"batches of a dataset with a length."
            )
        count = min(samples, len(loader.dataset))
        batches = DataLoader(loader.dataset, count, sampler=range(count), collate_fn=loader.collate_fn)
        return next(iter(batches)), count


def part_features(
    trainer: Trainer, pl_module: LightningModule, modules: Mapping[str, nn.Module], reference: Any
) -> dict[str, Tensor]:
    """Runs the module on the reference batch as a validation would: part → features `(samples, channels)`."""
    # The features are the output of the part's first call, averaged over positions, float32 on the CPU; parts that are
    # not called, or do not return one tensor `(samples, channels, ...)`, are left out. Modes, buffers and random states
    # are as before afterwards. Collective if the module is sharded.
    names = {module: part for part, module in modules.items()}
    found: dict[str, Tensor] = {}

    def keep(module: nn.Module, _inputs: Any, output: Any) -> None:
        part = names[module]
        if part not in found and isinstance(output, Tensor) and output.ndim > 1:
            channels = output.detach().float().unsqueeze(2).flatten(2)  # (B, C, positions), of (B, C) one
            found[part] = channels.mean(2).to("cpu", copy=True)

    hooks = [module.register_forward_hook(keep) for module in names]
    try:
        with as_validation(trainer), own_random_state(trainer), dry_run(pl_module):
            own = copy.deepcopy(reference)  # a module may work in place
            batch = next(batches_on_device(trainer, pl_module, [own]))
            # compiled code would not call hooks that were added after its compilation
            with torch.compiler.set_stance("force_eager"), trainer.precision_plugin.forward_context():
                pl_module(batch)
    finally:
        for hook in hooks:
            hook.remove()
        reshard(pl_module)
    return found


def evaluation_loaders(trainer: Trainer) -> Any:
    """The validation loaders of a run, else the training loaders."""
    if not trainer.enable_validation:
        return trainer.train_dataloader
    if trainer.val_dataloaders is None:  # not needed yet, as with check_val_every_n_epoch
        with as_validation(trainer):
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
    return trainer.val_dataloaders


def first_of(loaders: Any) -> Any:
    """The first of a collection of loaders, or of numbers of their batches; an empty one as it is."""
    while isinstance(loaders, Mapping | list | tuple) and loaders:
        loaders = next(iter(loaders.values() if isinstance(loaders, Mapping) else loaders))
    return loaders


def batches_on_device(
    trainer: Trainer,
    pl_module: LightningModule,
    loader: Iterable[Any],
    checked: bool = True,
    device: torch.device | None = None,
) -> Iterator[Any]:
    """Batches as the module gets them: after the hooks of batches, on the device; None is the Trainer's."""
    for batch in loader:
        yield batch_as_given(trainer, pl_module, batch, checked, device)


@contextmanager
def own_random_state(trainer: Trainer) -> Iterator[None]:
    """The same random numbers each time; those of the run go on afterwards as if nothing had been drawn."""
    device = trainer.strategy.root_device
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_cpu(0)
        if device.type == "cuda":
            torch.cuda.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
