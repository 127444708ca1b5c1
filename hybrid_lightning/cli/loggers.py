"""The loggers of a config: what they need, where they go on with a continued run, and what they end with."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from hybrid_lightning.cli.metrics_table import GO_ON, RunLogger
from hybrid_lightning.errors import ConfigError, at, reason, writing
from hybrid_lightning.files import is_regular_file, whole_file
from hybrid_lightning.importing import package_folder

_FILE = "loggers.json"
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LOGGING = ("fit", "validate", "test")
"""Commands that give loggers anything."""
_ENVIRONMENT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # Lightning's default is a folder, which MLflow refuses without it
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_QUIET": "true",  # the run itself ends with what matters
}
"""Set where the user has set nothing, before the libraries are imported, so that nothing is sent that nobody wants."""


class _Kind(NamedTuple):
    """What is known of a logger."""

    package: str  # that it needs; the extra that brings it has the same name
    version: str  # its argument that names an earlier run


_KINDS = {
    "TensorBoardLogger": _Kind("tensorboard", "version"),
    "WandbLogger": _Kind("wandb", "id"),
    "MLFlowLogger": _Kind("mlflow", "run_id"),
}


def _specs(given: Any) -> list[Any]:
    """The classes of loggers that a config names, with their arguments."""
    listed = given if isinstance(given, list) else [given]
    return [spec for spec in listed if isinstance(spec, Namespace)]


def _name(spec: Namespace) -> str:
    """``WandbLogger`` of ``lightning.pytorch.loggers.WandbLogger``."""
    return str(spec.class_path).rpartition(".")[2]


def prepare_loggers(command: str, config: Namespace) -> None:
    """Refuses loggers whose package is missing, and sets what their libraries read when they are imported.

    Commands that log nothing do without them, so that a machine that only predicts does not need their packages.
    """
    specs = _specs(config.trainer.logger)
    if specs and command not in _LOGGING:
        config.trainer.logger = None
        return
    for spec in specs:
        kind = _KINDS.get(_name(spec))
        has_other = kind is not None and kind.package == "tensorboard" and find_spec("tensorboardX")
        if kind is not None and not has_other:
            with at("trainer.logger"):
                package_folder(kind.package, kind.package, _name(spec))
    if specs:
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)


def continued_loggers(config: Namespace, folder: Path, step: int) -> Namespace:
    """The config with loggers that go on where those of an earlier process in this run's folder were.

    The config of the run itself stays as it is, so that another run of it has loggers of its own.
    """
    versions = _noted(folder / _FILE)
    config = config.clone()
    for spec in _specs(config.trainer.logger):
        name = _name(spec)
        of_kind = versions.get(name)
        version = of_kind.pop(0) if isinstance(of_kind, list) and of_kind else None
        is_version = isinstance(version, int | str) and _VERSION.fullmatch(str(version))
        if name not in _KINDS or not is_version:
            continue
        arguments = spec.init_args
        key = _KINDS[name].version
        if arguments.get(key) is None and arguments.get("version") is None:
            arguments[key] = version
            if name == "TensorBoardLogger":  # leaves out what was logged after the checkpoint
                arguments["purge_step"] = step
    return config


def _noted(path: Path) -> dict[str, Any]:
    """What `LoggerVersions` has written: name of a class → versions; empty if that cannot be read."""
    # JSON, because in YAML some ids, such as 26241e91, are numbers
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if is_regular_file(path) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def flat_settings(config: Namespace) -> dict[str, Any]:
    """The settings of data and Trainer, and the seed, for `HybridTask.run_settings`."""
    trainer = config.trainer.as_dict()
    del trainer["logger"]  # an address in it may hold a password
    return {"data": config.data.as_dict(), "trainer": trainer, "seed_everything": config.seed_everything}


class LoggerVersions(Callback):
    """Notes in the run's folder which runs the loggers of the config have made, for a process that continues it."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file, on the first rank."""
        folder = trainer.log_dir  # a collective call: the answer is broadcast
        if not folder or not trainer.is_global_zero:
            return
        versions: dict[str, list[int | str]] = {}
        for logger in trainer.loggers:
            name = type(logger).__name__
            if name in _KINDS:  # one class may come several times, in the order of the config
                version = logger.version
                versions.setdefault(name, []).append(version if isinstance(version, int) else str(version))
        path = Path(folder) / _FILE
        with writing(path, GO_ON), whole_file(path) as temporary:
            temporary.write_text(json.dumps(versions), encoding="utf-8")


@contextmanager
def failing_loggers() -> Iterator[None]:
    """Turns whatever a logger of the config raises into a `ConfigError`."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        logger = _raising(error)
        if logger is None:
            raise
        advice = " Without a login or a network, write offline: true." if isinstance(logger, WandbLogger) else ""
        raise ConfigError(
            f"{type(logger).__name__} has failed: {reason(error)}{advice} What was saved is whole: go on with --resume "
            f"auto, or leave the logger out.",
            "trainer.logger",
        ) from error


def _raising(error: Exception) -> Logger | None:
    """The logger in whose method an error was raised, our own table apart."""
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if isinstance(owner, Logger) and not isinstance(owner, RunLogger):
            return owner
        trace = trace.tb_next
    return None


def log_best(trainer: Trainer, value: float) -> None:
    """Gives TensorBoard the number by which its table of hyperparameters compares runs, in place of -1."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_metrics({"hp_metric": value}, trainer.global_step)
            logger.save()


def end_loggers(trainer: Trainer) -> None:
    """Ends the run that Weights & Biases would add to as long as the process lives."""
    if any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
        import wandb

        wandb.finish()
