"""The commands before a fit: ``plan``, ``check`` and ``prefetch``. They train nothing and write no run folder."""

import math
from typing import Any

from hybrid_lightning.cli.building import Setup
from hybrid_lightning.data.loaders import first_batch, number_of_batches
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import attach
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.building import in_given_precision
from hybrid_lightning.tasks.checkpoint import read_checkpoint, refuse_other_model
from hybrid_lightning.trainer import length_of


def plan(setup: Setup) -> None:
    """Prints what would train when and at which rate; the data decide sizes and moments."""
    model, trainer = setup.model, setup.trainer
    loader = build_from_data(setup)
    limit = trainer.limit_train_batches
    batches = number_of_batches(loader) / trainer.world_size
    if isinstance(limit, int):  # a count of batches; a float is a share of them
        batches = min(batches, limit)
    elif not math.isinf(batches):
        batches = int(math.ceil(batches) * limit)
    length = length_of(trainer, batches)
    optimization = model.optimization()
    optimization["lr_scheduler"]["scheduler"].bind(length)
    print(model.plan(optimization["optimizer"].param_groups, trainer, length))


def check(setup: Setup) -> None:
    """Checks the data, and whether the model can learn them; reads each file as a whole. The model is not built."""
    check_data = getattr(setup.data, "check", None)
    if not callable(check_data):
        raise ConfigError(f"check: {type(setup.data).__name__} has no checks; ManifestDataModule has.")
    setup.data.prepare_data()
    check_data(decode=True)
    setup.model.check_data(setup.data)
    print("check: nothing is wrong")


def prefetch(setup: Setup) -> None:
    """Reads all pretrained weights once, so that they are in the caches of a machine without a network."""
    # a DataModule may fetch what its inputs need, such as tokenizers
    fetch = getattr(setup.data, "prefetch", list)
    for line in fetch():
        print(line)
    build_from_data(setup)
    for name, part in setup.model.built().options.items():
        if part.weights is not None:
            print(f"{name}: the weights of {part.module!r} are here")


def load_checkpoint(model: HybridTask, path: str) -> None:
    """Loads the weights of a checkpoint into a task whose network has been built."""
    _, state = read_checkpoint(path, "--ckpt_path")
    model.follow_part_heads(state)
    refuse_other_model(model.state_dict(), state)
    model.load_state_dict(state)


def build_from_data(setup: Setup, load: bool = True) -> Any:
    """Builds a task's network from two training samples of its data; returns the loader of these data."""
    data = setup.data
    data.prepare_data()
    data.setup("fit")
    setup.model.check_data(data)
    loader = data.train_dataloader()
    # not before: under a Trainer a manifest checks its files
    attach(setup.trainer, setup.model, data)
    setup.model.build_for(setup.trainer, lambda: first_batch(loader), load)
    in_given_precision(setup.trainer, setup.model.built())
    return loader
