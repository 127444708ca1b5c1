"""From the words of a command to a config: the parser of each command, and `parse`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, NamedTuple, NoReturn

from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser

from hybrid_lightning.cli.commands import COMMANDS, OF_MEMBERS
from hybrid_lightning.cli.config_files import merged_arguments
from hybrid_lightning.cli.parser_errors import parser_error, refuse_unknown_flag
from hybrid_lightning.data import in_memory, manifest  # noqa: F401  bare names in configs resolve to imported classes
from hybrid_lightning.demo import digits, elpv, mnist, plaid, series  # noqa: F401  for the same reason
from hybrid_lightning.direction import MAIN
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint

_DEFAULTS = {
    "trainer.enable_model_summary": False,
    "checkpoint.monitor": MAIN,
    "checkpoint.mode": None,  # that of the metric
    "checkpoint.filename": "best",
    "checkpoint.save_top_k": 1,
    "checkpoint.auto_insert_metric_name": False,
}
"""Ours in place of Lightning's."""
_WITHOUT_VALUE = ("-h", "--help", "--print_config", "--print_shtab")


@dataclass
class RunOptions:
    """Options of a run.

    Args:
        name: Folder under runs/; the config's file name if left out.
        seed_everything: Seed of all that is drawn; true draws one, false sets none.
        test_after_fit: Checkpoint tested at the end of fit: best or last; null tests nothing.
        resume: Run that fit continues in its folder: auto (the newest of this name) or a path; null: a new one.
        batch_size_total: Samples of an optimizer step, over all devices and accumulated batches; null: as data and
            trainer say.
        save_every: How often last.ckpt is saved between the ends of epochs, such as '500 steps'; null: only there.
        report: Whether fit and test write report.html into the run's folder where plotly is installed (extra 'report').
        on_group_change: If groups or optimizer differ from those of --ckpt_path: error; weights_only: a new fit with
            the weights that match; match: goes on, also with the optimizer state that matches.
    """

    name: str = "run"
    seed_everything: bool | int = 0
    test_after_fit: Literal["best", "last"] | None = None
    resume: str | None = None
    batch_size_total: int | None = None
    save_every: str | None = None
    report: bool = True
    on_group_change: Literal["error", "weights_only", "match"] = "error"


class Parser(LightningArgumentParser):
    """Raises what is wrong as a `ConfigError`, without the usage of all options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Replaces a method that prints and ends the process."""
        raise parser_error(message, [action.dest for action in self._actions]) from ex


class Parsed(NamedTuple):
    """A command and its config, checked by the parser that made it; nothing is instantiated yet."""

    command: str
    config: Namespace
    parser: Parser
    words: Sequence[str] = ()  # as the parser reads them

    def stated(self) -> Namespace:
        """What files and flags say, without the defaults."""
        said: Namespace = self.parser.parse_args(list(self.words), defaults=False)
        return said


def make_parser(name: str) -> Parser:
    """The parser of a command: model, data, trainer, checkpoint, `RunOptions`, and the arguments of its function."""
    command = COMMANDS[name]
    parser = Parser(prog=f"hybrid_lightning {name}", description=command.description, allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config", help="A YAML file; several are merged key by key.")
    parser.add_class_arguments(RunOptions, instantiate=False)
    parser.add_function_arguments(command.function(), skip={"setup"})
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(HybridTask, "model", subclass_mode=True)
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
    parser.set_defaults(_DEFAULTS)
    return parser


def several_values(words: Sequence[str], flag: str) -> list[str]:
    """Words in which several values after a flag, as a shell makes them of a pattern, are one list."""
    if flag not in words:
        return list(words)
    start = list(words).index(flag) + 1
    values = list(takewhile(lambda word: not word.startswith("-"), words[start:]))
    if len(values) < 2:
        return list(words)
    return [*words[:start], json.dumps(values), *words[start + len(values) :]]


def with_flags(words: Sequence[str]) -> list[str]:
    """Words in which a config that stands alone, such as ``mine.yaml`` or ``mine.yaml head_first``, has its flag."""
    found: list[str] = []
    waits, is_first = False, True  # whether a flag's value is due; whether no flag has come yet
    for word in words:
        is_flag = word.startswith("-") and not waits
        is_config = word.endswith((".yaml", ".yml")) or (is_first and word not in COMMANDS)
        if not is_flag and not waits and is_config:
            found.append("--config")
        found.append(word)
        is_first = is_first and not is_flag
        waits = is_flag and "=" not in word and word not in _WITHOUT_VALUE
    return found


def parse(words: Sequence[str], overlay: Mapping[str, Any] | None = None) -> Parsed:
    """Reads a command and its config, and builds nothing."""
    name, *flags = words
    flags = with_flags(flags)
    if name in OF_MEMBERS:
        flags = several_values(flags, "--ckpt_path")
    parser = make_parser(name)
    refuse_unknown_flag(name, flags, list(parser._option_string_actions))
    merged = merged_arguments(flags, overlay)
    return Parsed(name, parser.parse_args(merged), parser, merged)
