"""From a parsed config to the model, its data and the Trainer, with all checks that need none of them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO

from hybrid_lightning.callbacks import LastCheckpoint
from hybrid_lightning.cli.batch_size import divide_batch
from hybrid_lightning.cli.class_count import fill_num_classes
from hybrid_lightning.cli.commands import COMMANDS, OF_MEMBERS
from hybrid_lightning.cli.launcher import as_list, follow_launcher, has_environment
from hybrid_lightning.cli.log_interval import LogInterval
from hybrid_lightning.cli.loggers import LoggerVersions, continued_loggers, flat_settings, prepare_loggers
from hybrid_lightning.cli.members import checkpoint_in, member_paths, refuse_other_members
from hybrid_lightning.cli.metrics_table import RunLogger
from hybrid_lightning.cli.parser import Parsed, Parser
from hybrid_lightning.cli.parser_errors import cause_of, explained
from hybrid_lightning.cli.run_folder import Run, RunConfig, newest_checkpoint, run_to_continue
from hybrid_lightning.cli.same_on_ranks import SameOnRanks
from hybrid_lightning.cli.tables import check_output
from hybrid_lightning.direction import MAIN, checked_mode
from hybrid_lightning.distributed.launch import launched
from hybrid_lightning.distributed.strategies import refuse_strategy_name
from hybrid_lightning.errors import ConfigError, at, check_choice, check_number, has_controls
from hybrid_lightning.resume.atomic_checkpoint_io import AtomicCheckpointIO
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint
from hybrid_lightning.tasks.checkpoint import read_checkpoint
from hybrid_lightning.tasks.early_checks import check_before_data
from hybrid_lightning.tasks.monitored import directions_of

Select = Literal["best", "joint"]
_WITHOUT_CHECKPOINT = ("fit", "probe", "embed")
"""Commands that also work with the weights at which training starts."""
_BEFORE_A_FIT = ("fit", "plan", "check", "probe", "prefetch", "lr_find")
_WITH_RUN_FOLDER = ("fit", "validate", "test", "predict")


@dataclass
class Setup:
    """What a command works with."""

    model: HybridTask  # the task; its network is built when the data are there
    data: LightningDataModule  # the DataModule
    trainer: Trainer  # with the callbacks and loggers of the run
    options: Namespace = field(default_factory=Namespace)  # the config, with objects in the place of classes
    checkpoint: str | None = None  # the file that the command reads, also that of a continued run; None reads none
    continued: Run | None = None  # the run that ``--resume`` continues
    others: list["Setup"] = field(default_factory=list)  # the further members of an ensemble, with the same Trainer


def build(parsed: Parsed) -> Setup:
    """Makes what a command works with; what could be wrong without model and data is checked before."""
    command, config, _, _ = parsed
    _check_names(config)
    refuse_strategy_name(config.trainer.strategy)
    check_number(config.trainer.accumulate_grad_batches, "trainer.accumulate_grad_batches", low=1)
    _check_output(command, config)
    follow_launcher(config.trainer, as_list(config.trainer.plugins))
    prepare_loggers(command, config)
    _seed(config)
    continued = _continued_run(config) if command == "fit" and config.resume else None
    resumes = bool(config.resume)
    # the saved config repeats the whole run, so that it does not name the checkpoint of an interrupted one
    config.resume = None
    checkpoint = _given_checkpoint(command, config)
    if continued and continued.checkpoint:
        checkpoint = str(continued.checkpoint)
    saved = None if checkpoint is None else _read_facts(checkpoint, config.trainer.strategy)
    try:
        setup = _made(parsed, continued, checkpoint, saved, resumes)
        if saved is not None:
            _follow_checkpoint(command, setup, saved)
            setup.others = _other_members(parsed, setup, saved)
    except BaseException as error:
        if continued and continued.lock:
            continued.lock.release()
        if isinstance(error, ValueError | TypeError | OSError):
            raise cause_of(error) or ConfigError(explained(str(error))) from error
        raise
    return setup


def _made(
    parsed: Parsed, continued: Run | None, checkpoint: str | None, saved: Mapping[str, Any] | None, resumes: bool
) -> Setup:
    """The model, data and Trainer of a config; `saved` are the facts of the checkpoint, if there is one."""
    command, config, parser, _ = parsed
    fill_num_classes(config, saved)
    divide_batch(parsed, continued)
    given = continued_loggers(config, continued.folder, continued.step) if continued else config
    options = _instantiated(parser, given)
    if command in _BEFORE_A_FIT:
        _follow_metric(config, options)
    trainer = _make_trainer(parsed, options, continued, resumes)
    options.model.run_settings = flat_settings(config)
    if command in _BEFORE_A_FIT:
        check_before_data(options.model, trainer, reads_weights=saved is None)
    return Setup(options.model, options.data, trainer, options, checkpoint, continued)


def _check_names(config: Namespace) -> None:
    """Raises `ConfigError` for a name that is no folder's, and for paths that would steer a terminal."""
    if config.name in ("", ".", "..") or Path(config.name).name != config.name or not config.name.isprintable():
        problem = f"{config.name!r} is not the name of one folder below runs/. Choose one without slashes."
        raise ConfigError(problem, "name")
    for key in ("ckpt_path", "output", "resume", "trainer.default_root_dir"):
        given = config.get(key)
        for path in given if isinstance(given, list) else [given]:
            if isinstance(path, str) and has_controls(path):
                raise ConfigError(f"{path!r} holds characters that steer a terminal. Rename it.", key)


def _check_output(command: str, config: Namespace) -> None:
    """Refuses a table that could not be written in the end, and names that of a command without ``--output``."""
    row = COMMANDS[command]
    if not row.formats:
        return
    if config.output is None and row.output is not None:
        config.output = str(runs_folder(config) / row.output)
    if config.output is not None:
        arguments = config.data.get("init_args") or {}
        read = [arguments[key] for key in ("path", "predict_path") if isinstance(arguments.get(key), str)]
        check_output(config.output, row.formats, read=read)


def _seed(config: Namespace) -> None:
    """Seeds all generators, and notes the seed."""
    seed = config.seed_everything
    if seed is False:
        return
    if seed is not True:
        check_number(seed, "seed_everything", low=0, high=2**32 - 1)
    config.seed_everything = seed_everything(None if seed is True else seed, workers=True)


# The checkpoint that is read


def runs_folder(config: Namespace) -> Path:
    """The folder of the runs of this name."""
    root = Path(config.trainer.default_root_dir or ".")
    return root / "runs" / str(config.name)


def limits(config: Namespace) -> dict[str, Any]:
    """Where a run ends."""
    return {key: config.trainer[key] for key in ("max_epochs", "max_steps", "max_time")}


def _continued_run(config: Namespace) -> Run | None:
    """The run that ``--resume`` means; None if there is none yet."""
    if config.ckpt_path:
        raise ConfigError("it finds its checkpoint itself; leave out --ckpt_path, or --resume.", "resume")
    if config.on_group_change == "weights_only":
        raise ConfigError(
            "--on_group_change weights_only starts a new fit, which does not belong into the old one's folder. Use "
            "--ckpt_path PATH instead of --resume, which makes a new folder.",
            "resume",
        )
    if config.trainer.logger is False:
        raise ConfigError("trainer.logger false makes no folder that could be continued; leave it out.", "resume")
    return run_to_continue(config.resume, runs_folder(config), limits(config))


def _given_checkpoint(command: str, config: Namespace) -> str | None:
    """The file of ``--ckpt_path``, which is written into the config in place of ``best`` and ``last``."""
    if "ckpt_path" not in config:
        return None
    path = config.ckpt_path
    if path is None and command in _WITHOUT_CHECKPOINT:
        return None
    if path is None:
        raise ConfigError(
            f"{command}: without a checkpoint the weights would be random. "
            f"Add --ckpt_path best, --ckpt_path last (of the newest run of this name) or a path."
        )
    if path in ("best", "last"):
        paths = [str(newest_checkpoint(runs_folder(config), f"{path}.ckpt"))]
    elif command in OF_MEMBERS:
        paths = member_paths(path)
    else:
        # of a run that goes on nobody but the user can say from where
        in_folder = None if command == "fit" else checkpoint_in(str(path))
        paths = [in_folder or str(path)]
    for path in paths:
        if path.endswith(".pt2"):
            raise ConfigError(
                f"{path!r} is an exported program, which is for other programs (torch.export.load). Give the .ckpt "
                f"file of a run, from which it was exported.",
                "--ckpt_path",
            )
    config.ckpt_path = paths if len(paths) > 1 else paths[0]
    return paths[0]


def _read_facts(checkpoint: str, strategy: Any) -> Mapping[str, Any]:
    """What the task has written into a checkpoint; refuses files that this command could not load."""
    saved, _ = read_checkpoint(checkpoint, "--ckpt_path", tensors=False)
    if Path(checkpoint).is_dir() and "fsdp2" not in str(strategy).lower():
        raise ConfigError(
            f"--ckpt_path: {checkpoint!r} is a sharded checkpoint, which only the strategy fsdp2 reads. "
            f"Add --trainer.strategy fsdp2; any number of devices will do."
        )
    return saved


def _follow_checkpoint(command: str, setup: Setup, saved: Mapping[str, Any]) -> None:
    """Prepares model and data for a checkpoint that will be loaded into them."""
    model = setup.model
    model.on_group_change = setup.options.on_group_change
    model.reads_weights = model.on_group_change != "error"  # for parts that are new
    if command != "fit":
        model.rebuild_as(saved)
    use_statistics = getattr(setup.data, "use_statistics", None)
    if callable(use_statistics):
        use_statistics(setup.checkpoint)


def _other_members(parsed: Parsed, setup: Setup, saved: Mapping[str, Any]) -> list[Setup]:
    """The members of an ensemble after the first one, each with data as they were for its own fit."""
    paths = parsed.config.get("ckpt_path")
    if not isinstance(paths, list):
        return []
    facts = {str(setup.checkpoint): saved}
    for path in paths[1:]:
        facts[path] = _read_facts(path, parsed.config.trainer.strategy)
    refuse_other_members(facts)
    members = []
    for path in paths[1:]:
        options = _instantiated(parsed.parser, parsed.config)
        member = Setup(options.model, options.data, setup.trainer, options, path)
        _follow_checkpoint(parsed.command, member, facts[path])
        members.append(member)
    return members


# The Trainer


def _instantiated(parser: Parser, config: Namespace) -> Namespace:
    """The config with objects in the place of classes."""
    mode = config.checkpoint.mode
    # that of the metric is known once there is a model
    config.checkpoint.mode = check_choice(mode or "min", "checkpoint.mode", ("min", "max"), "mode")
    options: Namespace = parser.instantiate_classes(config)
    config.checkpoint.mode = mode
    return options


def _follow_metric(config: Namespace, options: Namespace) -> None:
    """Gives ``best.ckpt`` the direction of its metric, unless the config states it."""
    monitor, mode = config.checkpoint.monitor, config.checkpoint.mode
    if monitor is None or options.trainer.enable_checkpointing is False:
        return
    with at("checkpoint"):
        if monitor == MAIN and mode is not None:
            raise ConfigError(f"the main metric has a direction of its own. Leave 'mode: {mode}' out.", "mode")
        if monitor != MAIN:
            config.checkpoint.mode = checked_mode(monitor, mode, directions_of(options.model))
            options.checkpoint = BestCheckpoint(**config.checkpoint.as_dict())


def _make_trainer(parsed: Parsed, options: Namespace, continued: Run | None, resumes: bool) -> Trainer:
    """A Trainer that keeps ``best.ckpt`` and ``last.ckpt``, and writes each checkpoint in one step."""
    settings = dict(options.trainer)
    callbacks = as_list(settings["callbacks"])
    plugins = as_list(settings["plugins"])
    if settings["enable_checkpointing"] is not False:
        # not ModelCheckpoint's save_last, which writes only when the best one is written too
        callbacks += [options.checkpoint, LastCheckpoint(options.save_every, requeue=resumes)]
    has_checkpoint_io = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
    if not has_checkpoint_io:
        plugins.append(AtomicCheckpointIO())
    launch = None if has_environment(plugins) else launched(os.environ)
    if launch and launch.launcher == "srun":
        # Lightning would save within a step, under another name; `LastCheckpoint` saves after it, and requeues
        plugins.append(SLURMEnvironment(auto_requeue=False))
    if parsed.command == "fit":
        # the first of all, because others wait for the other ranks
        callbacks.insert(0, SameOnRanks(vars(parsed.config.clone().as_flat())))
    if settings["log_every_n_steps"] is None:
        settings["log_every_n_steps"] = 1  # until the length of the run is known; a larger one may bring a warning
        if parsed.command == "fit":
            callbacks.append(LogInterval())
    # without a logger it would be the working directory, where a config of the user's may lie
    has_folder = parsed.command in _WITH_RUN_FOLDER and settings["logger"] is not False
    if has_folder and not settings["fast_dev_run"]:
        callbacks.append(RunConfig(parsed.parser.dump(parsed.config, skip_none=False)))
    if has_folder:
        # predictions are not metrics, and TensorBoard would make an empty file
        given = [] if parsed.command == "predict" else settings["logger"]
        settings["logger"] = _make_loggers(parsed.config, given, continued)
        if parsed.command == "fit" and settings["logger"][1:]:
            callbacks.append(LoggerVersions())
    else:
        settings["logger"] = False
    return Trainer(**{**settings, "callbacks": callbacks, "plugins": plugins})


def _make_loggers(config: Namespace, given: Any, continued: Run | None) -> list[Logger]:
    """The table ``runs/<name>/<version>/metrics.csv``, and beside it the loggers of the config."""
    runs, version, step, rows = runs_folder(config), None, 0, 0
    if continued:
        runs, version, step, rows = continued.folder.parent, continued.folder.name, continued.step, continued.rows
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"no folder can be made at {str(runs)!r}: {error.strerror}. Choose another place with "
            f"--trainer.default_root_dir.",
            "trainer.default_root_dir",
        ) from error
    # the first logger: Lightning puts checkpoints into its folder
    table = RunLogger(runs.parent, runs.name, version, first_step=step, kept=rows)
    if isinstance(given, Logger | list):
        return [table, *as_list(given)]
    if not find_spec("tensorboard"):
        return [table]
    return [table, TensorBoardLogger(runs.parent, runs.name, table.version, purge_step=step if continued else None)]
