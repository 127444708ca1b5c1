"""What the command line builds from a config, for notebooks and programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lightning.pytorch import LightningDataModule, Trainer

from hybrid_lightning.cli.building import build
from hybrid_lightning.cli.parser import parse
from hybrid_lightning.cli.warning_filters import without_known_warnings
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.tasks import HybridTask


class Built(NamedTuple):
    """A model, its data and a Trainer: ``built.trainer.fit(built.model, built.data)``."""

    model: HybridTask
    data: LightningDataModule
    trainer: Trainer


def from_config(path: str | Path | Sequence[str | Path], **overrides: Any) -> Built:
    """The model, data and Trainer that ``fit --config`` would run, with the same checks, seed and run folder.

    Args:
        path: A YAML file, or several, of which each is merged over those before it.
        **overrides: What changes, by the sections of a config: ``trainer={"max_epochs": 3}``, ``model={"lr": 1e-4}``,
            ``data={"batch_size": 8}``, ``seed_everything=1``. In ``model`` and ``data`` they are arguments.

    Raises:
        ConfigError: If the command line would refuse it.
    """
    overlay = {}
    for section, value in overrides.items():
        # in a config the arguments of a class stand under init_args
        is_arguments = isinstance(value, Mapping) and not {"class_path", "init_args"} & value.keys()
        overlay[section] = {"init_args": dict(value)} if section in ("model", "data") and is_arguments else value
    try:
        yaml.safe_dump(overlay)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"from_config: {error} Overrides are numbers, text, lists and dicts, as in a config; live objects go into "
            f"HybridClassifier(...) itself."
        ) from None
    paths = [path] if isinstance(path, str | Path) else path
    words = ["fit"]
    for one in paths:
        words += ["--config", str(one)]
    with without_known_warnings():
        setup = build(parse(words, overlay))
    return Built(setup.model, setup.data, setup.trainer)
