"""LightningCLI with merged configs, run folders and short errors."""

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO

from hybrid_lightning import data  # noqa: F401  bare names in configs resolve to imported classes
from hybrid_lightning.callbacks import LastCheckpoint
from hybrid_lightning.cli.config_files import merged_arguments
from hybrid_lightning.cli.export import ExportedProgram, is_program, require_trust
from hybrid_lightning.cli.hybrid_trainer import HybridTrainer
from hybrid_lightning.cli.metrics_table import RunLogger
from hybrid_lightning.cli.parser_errors import cause_of, explained, parser_error
from hybrid_lightning.cli.predictions import CollectPredictions, check_output, prediction_table, write_table
from hybrid_lightning.cli.run_folder import Run, RunConfig, mark_finished, newest_checkpoint, run_to_continue, say
from hybrid_lightning.demo import digits, elpv, plaid  # noqa: F401  for the same reason
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import SubcommandCLI
from hybrid_lightning.resume.atomic_checkpoint_io import AtomicCheckpointIO
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.checkpoint import read_checkpoint

_BEST = {
    "monitor": "val/loss",
    "filename": "best",
    "save_top_k": 1,
    "auto_insert_metric_name": False,
}
_WITHOUT_RUN = ("plan", "check", "prefetch", "export")
"""Our own subcommands, which write no run folder."""


class _Parser(LightningArgumentParser):
    """Says what is wrong in a few lines, without the usage of all options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        parser = getattr(ex, "subcommand_parser", None) or self
        raise parser_error(message, [action.dest for action in parser._actions]) from ex


class HybridCLI(SubcommandCLI):
    """``fit``, ``validate``, ``test``, ``predict`` and ``plan`` for `HybridTask`."""

    continued: Run | None = None
    """The run that ``--resume`` continues."""
    saved: Mapping[str, Any] | None = None
    """What a task added to the checkpoint of ``--ckpt_path``."""

    def __init__(self, model_class: type, datamodule_class: type, args: list[str], **options: Any) -> None:
        self._words = args  # asked for while the base class makes its parsers
        super().__init__(model_class, datamodule_class, args=args, **options)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the keys of this program beside model, data and trainer."""
        parser.add_argument(
            "--name", type=str, default="run", help="Folder under runs/; the config's file name if left out."
        )
        parser.add_argument(
            "--test_after_fit",
            type=Literal["best", "last"] | None,
            default=None,
            help="Checkpoint that is tested once at the end of fit: best or last; null tests nothing.",
        )
        parser.add_argument(
            "--resume",
            type=str | None,
            default=None,
            help="Run that fit continues in its folder: auto (the newest of this name) or a path; null: a new one.",
        )
        parser.add_argument(
            "--save_every",
            type=str | None,
            default=None,
            help="How often last.ckpt is saved between the ends of epochs, such as '500 steps'; null: only there.",
        )
        parser.add_argument(
            "--on_group_change",
            type=Literal["error", "weights_only", "match"],
            default="error",
            help="If the groups or the optimizer differ from those of fit's --ckpt_path: error; weights_only starts a "
            "new fit with the weights that match; match also keeps the optimizer state that matches, and goes on.",
        )
        parser.add_argument(
            "--trust_program",
            type=str | None,
            default=None,
            help="The sha256 that export printed, for predict with an exported program (.pt2) as --ckpt_path; loading "
            "one runs code of whoever made it.",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.set_defaults({f"checkpoint.{key}": value for key, value in _BEST.items()})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's own, ``plan``, ``check``, ``prefetch`` and ``export``."""
        ours = {verb: {"model", "datamodule"} for verb in _WITHOUT_RUN}
        return {**LightningCLI.subcommands(), **ours}

    def prepare_subcommand_parser(self, trainer_class: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Adds the keys of a subcommand of its own; a subcommand that is not asked for needs no keys."""
        if self._words and self._words[0] in self.subcommands().keys() - {subcommand}:
            return self.init_parser(**kwargs)  # the keys of all would take two thirds of the start
        parser = super().prepare_subcommand_parser(trainer_class, subcommand, **kwargs)
        if subcommand not in _WITHOUT_RUN:
            parser.set_defaults({"weights_only": True})
        if subcommand == "predict":
            parser.add_argument(
                "--output",
                type=str | None,
                default=None,
                help="The table to write, .csv or .parquet (extra 'data'); null: predictions.csv in the run's folder.",
            )
            parser.add_argument(
                "--row_numbers",
                type=bool,
                default=False,
                help="Whether the table also has the samples' row numbers if the data name them by ids.",
            )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses without Lightning's warning that `args` and the process's own arguments may differ."""
        self.config = parser.parse_args(args)  # type: ignore[arg-type]

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """A Trainer that writes to ``runs/<name>/<version>/``, beside the loggers of the config."""
        given = self.setting(self.config_init, "trainer")
        wanted = given.get("logger") is not False and self.subcommand not in _WITHOUT_RUN
        kwargs["logger"] = self._loggers(given.get("logger"), given.get("default_root_dir")) if wanted else False
        return super().instantiate_trainer(**kwargs)

    def make_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """A Trainer that keeps ``last.ckpt`` and writes each checkpoint in one step."""
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, ModelCheckpoint)]
        else:
            # not ModelCheckpoint's save_last, which writes only when the best one is written too
            callbacks = [*callbacks, LastCheckpoint(self.setting(self.config_init, "save_every"))]
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            config["plugins"] = [*plugins, AtomicCheckpointIO()]
        return super().make_trainer(config, callbacks)

    def _loggers(self, given: Any, root: str | None) -> list[Logger]:
        folder, name = Path(root or ".") / "runs", self.setting(self.config_init, "name")
        version, step = None, 0
        if self.continued:
            path, step = self.continued.folder, self.continued.step
            folder, name, version = path.parent.parent, path.parent.name, path.name
        try:
            (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"trainer.default_root_dir: no folder can be made at {str(folder / name)!r}: {error.strerror}. "
                f"Choose another place with --trainer.default_root_dir."
            ) from error
        table = RunLogger(folder, name, version, first_step=step)
        if isinstance(given, Logger):
            return [table, given]
        if isinstance(given, list):
            return [table, *given]
        if not find_spec("tensorboard"):
            return [table]
        return [table, TensorBoardLogger(folder, name, table.version, purge_step=step if self.continued else None)]

    def config_from_checkpoint(self) -> None:
        """Takes no settings from a checkpoint: the config decides, and a file may not name classes."""

    def set_seed(self) -> None:
        """Seeds all; a number that is no seed is told in short."""
        try:
            super().set_seed()
        except ValueError as error:
            raise ConfigError(f"seed_everything: {error}.") from error

    def before_instantiate_classes(self) -> None:
        """Checks the run's name and the checkpoint, before time is spent on data and model."""
        options = self.config[self.subcommand]
        name, path = options["name"], options.get("ckpt_path")
        if name in ("", ".", "..") or Path(name).name != name:
            raise ConfigError(f"name: {name!r} is not the name of one folder below runs/. Choose one without slashes.")
        if options.trainer.get("accumulate_grad_batches", 1) < 1:
            raise ConfigError("trainer.accumulate_grad_batches: less than 1 batch makes no step; give 1 or more.")
        if path is None and self.subcommand not in ("fit", "plan", "check", "prefetch"):
            raise ConfigError(
                f"{self.subcommand}: without a checkpoint the weights would be random. "
                f"Add --ckpt_path best, --ckpt_path last (of the newest run of this name) or a path."
            )
        if options.get("output") and self.subcommand == "predict":
            check_output(options["output"])
        runs = Path(options.trainer.get("default_root_dir") or ".") / "runs" / name
        if self.subcommand == "fit" and options["resume"]:
            path = self._continue(options, runs)
        if path is not None:
            if path in ("best", "last"):
                path = newest_checkpoint(runs, f"{path}.ckpt")
            if is_program(path):
                if self.subcommand != "predict":
                    raise ConfigError(f"--ckpt_path: only predict reads an exported program such as {str(path)!r}.")
                require_trust(str(path), options["trust_program"])
                return
            self.saved, _ = read_checkpoint(path, "--ckpt_path", tensors=False)
            if Path(path).is_dir() and "fsdp2" not in str(options.trainer.get("strategy")).lower():
                raise ConfigError(
                    f"--ckpt_path: {str(path)!r} is a sharded checkpoint, which only the strategy fsdp2 reads. "
                    f"Add --trainer.strategy fsdp2; any number of devices will do."
                )
            options["ckpt_path"] = str(path)
            _give_statistics(options.get("data"), str(path))

    def _continue(self, options: Any, runs: Path) -> Path | None:
        """Finds the run to continue, and gives its checkpoint."""
        if options["ckpt_path"]:
            raise ConfigError("resume: it finds its checkpoint itself; leave out --ckpt_path, or --resume.")
        if options["on_group_change"] == "weights_only":
            raise ConfigError(
                "resume: --on_group_change weights_only starts a new fit, which does not belong into the old one's "
                "folder. Use --ckpt_path PATH instead of --resume, which makes a new folder."
            )
        if options.trainer.get("logger") is False:
            raise ConfigError("resume: trainer.logger false makes no folder that could be continued; leave it out.")
        self.continued = run_to_continue(options["resume"], runs, _limits(options.trainer))
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # it is meant to
        return self.continued.checkpoint if self.continued else None

    def instantiate_classes(self) -> None:
        """Makes model, data and Trainer; an impossible argument of one of them is told in short."""
        try:
            super().instantiate_classes()
            if self.setting(self.config_init, "ckpt_path"):
                self.model.on_group_change = self.setting(self.config_init, "on_group_change")
                self.model.reads_weights = self.model.on_group_change != "error"  # for parts that are new
            if self.saved and self.subcommand != "fit":
                warnings.filterwarnings("ignore", "The dirpath has changed from")  # an evaluation has its own folder
                self.model.rebuild_as(self.saved)
        except (ValueError, TypeError, OSError) as error:
            raise cause_of(error) or ConfigError(explained(str(error))) from error

    def fit(self, **kwargs: Any) -> None:
        """Trains, unless the run to continue has ended."""
        if self.continued and self.continued.finished:
            say(f"finished: {self.continued.folder} has ended; raise max_epochs, max_steps or max_time to train on")
        else:
            self.trainer.fit(**kwargs)

    def after_fit(self) -> None:
        """Tests one checkpoint, if the config asks for it, and says where the results are."""
        if self.continued and self.continued.finished:
            return
        which = self.setting(self.config_init, "test_after_fit")
        if which:
            callbacks = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
            path = {callback.filename: callback.best_model_path for callback in callbacks}.get(which, "")
            if not path:
                print(f"test: no {which} checkpoint was saved; the model is tested as it is now")
            self.trainer.test(self.model, self.datamodule, ckpt_path=path or None, weights_only=True)
        folder = self.trainer.log_dir  # every rank has to ask, because the answer is broadcast
        if self.trainer.is_global_zero and folder:
            if self.trainer.logger:
                mark_finished(Path(folder), _limits(self.setting(self.config, "trainer")))
            print(f"results: {folder}")

    def predict(self, **kwargs: Any) -> None:
        """Writes a table of predictions in the order of the data, by default ``predictions.csv`` of the run."""
        collected = CollectPredictions()
        self.trainer.callbacks.append(collected)  # type: ignore[attr-defined]
        self.model.explain = True
        if is_program(kwargs["ckpt_path"]):
            digest = self.setting(self.config_init, "trust_program")
            program = ExportedProgram(self.model, kwargs["ckpt_path"], digest)
            kwargs |= {"model": program, "ckpt_path": None}
        self.trainer.predict(**{**kwargs, "return_predictions": False})
        predicted = collected.gathered()
        folder = self.trainer.log_dir or "."  # every rank has to ask, because the answer is broadcast
        if predicted is not None:
            path = Path(self.setting(self.config_init, "output") or Path(folder) / "predictions.csv")
            numbered = self.setting(self.config_init, "row_numbers")
            write_table(prediction_table(predicted, self.model, self.datamodule, numbered), path)
            print(f"predictions: {path}")


def _give_statistics(facts: Any, path: str) -> None:
    """Lets a DataModule that has such an argument take its statistics from the checkpoint, unless it is told others."""
    arguments = facts.get("init_args") if facts else None
    if arguments is not None and arguments.get("statistics", "") is None:
        arguments["statistics"] = path


def _limits(trainer: Any) -> dict[str, Any]:
    return {key: trainer.get(key) for key in ("max_epochs", "max_steps", "max_time")}


def run_cli(
    words: Sequence[str], cli: type[HybridCLI] = HybridCLI, overlay: Mapping[str, Any] | None = None
) -> HybridCLI:
    """Parses a command and runs it.

    Args:
        words: The command, such as ``["fit", "--config", "x.yaml"]``.
        cli: What runs it.
        overlay: Sections of a config that are merged over those of the words.
    """
    return cli(
        HybridTask,
        pl.LightningDataModule,
        args=merged_arguments(words, overlay),
        trainer_class=HybridTrainer,
        trainer_defaults={"log_every_n_steps": 10, "enable_model_summary": False},
        seed_everything_default=0,
        parser_class=_Parser,
        subclass_mode_model=True,
        subclass_mode_data=True,
        save_config_callback=RunConfig,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
    )
