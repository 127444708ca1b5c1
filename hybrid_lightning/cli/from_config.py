"""What the command line builds from a config, for notebooks and programs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import yaml

from hybrid_lightning.cli.lightning_cli import HybridCLI, run_cli
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.tasks import HybridTask


class Built(NamedTuple):
    """A model, its data and a Trainer: ``built.trainer.fit(built.model, built.data)``."""

    model: HybridTask
    data: pl.LightningDataModule
    trainer: pl.Trainer


class _Builder(HybridCLI):
    """Stops where the command would run."""

    def run_subcommand(self, subcommand: str) -> None:
        pass


def from_config(path: str | Path | Sequence[str | Path], **overrides: Any) -> Built:
    """The model, data and Trainer that ``fit --config`` would run, with the same checks, seed and run folder.

    Args:
        path: A YAML file, or several, of which each is merged over those before it.
        **overrides: What changes, by the sections of a config: ``trainer={"max_epochs": 3}``, ``model={"lr": 1e-4}``,
            ``data={"batch_size": 8}``, ``seed_everything=1``. In ``model`` and ``data`` they are arguments.

    Raises:
        ConfigError: If the command line would refuse it.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    overlay = {section: _arguments(section, value) for section, value in overrides.items()}
    try:
        yaml.safe_dump(overlay)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"from_config: {error} Overrides are numbers, text, lists and dicts, as in a config; live objects go into "
            f"HybridClassifier(...) itself."
        ) from None
    words = [word for one in paths for word in ("--config", str(one))]
    cli = run_cli(["fit", *words], _Builder, overlay)
    return Built(cli.model, cli.datamodule, cli.trainer)


def _arguments(section: str, value: Any) -> Any:
    """An override as it stands in a config: the arguments of a class are under ``init_args`` there."""
    is_class = section in ("model", "data") and isinstance(value, Mapping)
    return {"init_args": dict(value)} if is_class and not {"class_path", "init_args"} & value.keys() else value
