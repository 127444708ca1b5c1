"""The commands before a run: ``plan``, ``check`` and ``prefetch``. They train nothing and write no run folder."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer

from hybrid_lightning.cli.building import Setup
from hybrid_lightning.data.loaders import first_batch, number_of_batches
from hybrid_lightning.errors import ConfigError, reason
from hybrid_lightning.lightning_private import attach, is_restoring
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.building import in_given_precision
from hybrid_lightning.tasks.checkpoint import read_checkpoint, refuse_other_model, serve_selection
from hybrid_lightning.tasks.formats import CHECKPOINT_KEY
from hybrid_lightning.tasks.planning import refuse_without_validation
from hybrid_lightning.trainer import length_of
from hybrid_lightning.weights.loading import WeightSource


def plan(setup: Setup) -> None:
    """Prints what would train when and at which rate; the data decide sizes and moments."""
    print(_planned(setup))


def _planned(setup: Setup, load: bool = True) -> str:
    """The plan, for which all is built that a run builds; `load`: whether weights are read."""
    model, trainer = setup.model, setup.trainer
    loader = build_from_data(setup, load)
    limit = trainer.limit_train_batches
    batches = number_of_batches(loader) / trainer.world_size
    if isinstance(limit, int):  # a count of batches; a float is a share of them
        batches = min(batches, limit)
    elif not math.isinf(batches):
        batches = int(math.ceil(batches) * limit)
    _refuse_long_interval(trainer, batches)
    length = length_of(trainer, batches)
    optimization = model.optimization()
    scheduler = optimization["lr_scheduler"]["scheduler"]
    refuse_without_validation(trainer, scheduler)
    scheduler.bind(length)
    return model.plan(optimization["optimizer"].param_groups, trainer, length)


def _refuse_long_interval(trainer: Trainer, batches: float) -> None:
    """Raises `ConfigError` if validations come after more batches than an epoch has, which Lightning refuses."""
    interval = trainer.val_check_interval
    is_of_epoch = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches
    if is_of_epoch and isinstance(interval, int) and interval > batches:
        raise ConfigError(
            f"{interval} batches are more than an epoch has, {batches:g}. Write a smaller number, or "
            f"trainer.check_val_every_n_epoch: null, which counts over epochs.",
            "trainer.val_check_interval",
        )


def check(setup: Setup) -> None:
    """Checks the data, reading each file as a whole, and whether the model can be built for them and learn them."""
    check_data = getattr(setup.data, "check", None)
    if callable(check_data):
        setup.data.prepare_data()
        check_data(decode=True)
    else:
        print(f"check: {type(setup.data).__name__} cannot check its data; the model is tried with a batch of it")
    # those of a library may have to be fetched, which prefetch does
    are_here = [part.weights is None or isinstance(part.weights, WeightSource) for part in setup.model.parts.values()]
    _planned(setup, load=all(are_here))
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
    saved, state = read_checkpoint(path, "--ckpt_path")
    checkpoint = {CHECKPOINT_KEY: saved, "state_dict": state}
    serve_selection(model, checkpoint, model.serves_selection)
    state = checkpoint["state_dict"]
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


@contextmanager
def restoring(trainer: Trainer, path: str | None) -> Iterator[None]:
    """Turns whatever is raised while a checkpoint is restored into a `ConfigError`: it is the file that is wrong."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        if path is None or not is_restoring(trainer):
            raise
        raise ConfigError(
            f"{path!r} cannot be restored: {reason(error)} Use another checkpoint of the run.", "--ckpt_path"
        ) from error
