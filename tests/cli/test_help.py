"""The help of commands comes from a table, `help_table.py`, which ``python -m tests.cli.test_help`` writes."""

import argparse
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import pytest

from hybrid_lightning import HybridClassifier, HybridRegressor, ManifestDataModule, Part, UnfreezingSchedule
from hybrid_lightning.cli import help as texts
from hybrid_lightning.cli import help_table, main
from hybrid_lightning.cli.commands import COMMANDS
from hybrid_lightning.cli.help_options import meanings_in, options_of, options_of_parser, type_words
from hybrid_lightning.cli.parser import parse
from tests.processes import succeed

UPDATE = "python -m tests.cli.test_help"
HEADER = f'''"""Options of each command: name, type, default, meaning. Written by ``{UPDATE}``, never by hand."""

# ruff: noqa: E501, RUF100  an option is a line
# fmt: off

'''


class FoundError(Exception):
    """Brings a parser to the one who wants to read it."""


def rows_of(name: str) -> list[texts.Row]:
    """The options of a command, read from its function."""
    from hybrid_lightning.cli.parser import RunOptions

    function = COMMANDS[name].function()
    if COMMANDS[name].has_setup:
        of_run = options_of(RunOptions)
        rows = options_of(function) + [row for row in of_run if name == "fit" or row[0] in texts.OF_EVERY_RUN]
        return [(f"--{option}", *others) for option, *others in rows]

    def stop(parser, *words):
        raise FoundError(parser)

    with mock.patch.object(argparse.ArgumentParser, "parse_known_args", stop), pytest.raises(FoundError) as found:
        function([])
    return options_of_parser(found.value.args[0])


def written() -> str:
    """The text of the table as it should be."""
    lines = ["OPTIONS: dict[str, tuple[tuple[str, str, str, str], ...]] = {"]
    for name in COMMANDS:
        lines.append(f'    "{name}": (')
        lines += [f"        {row}," for row in rows_of(name)]
        lines.append("    ),")
    return HEADER + "\n".join([*lines, "}", ""])


def test_the_table_is_what_signatures_and_docstrings_say():
    assert {name: list(rows) for name, rows in help_table.OPTIONS.items()} == {
        name: rows_of(name) for name in COMMANDS
    }, f"write the table anew: {UPDATE}"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_its_line_an_example_and_its_options(name, capsys):
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{name}: {COMMANDS[name].description}"
    assert len(lines) < 40
    assert max(map(len, lines)) <= 120
    assert f"  python -m hybrid_lightning {name} {COMMANDS[name].examples[0]}" in lines
    for option, *_ in help_table.OPTIONS[name]:
        assert [line for line in lines if line.strip().startswith(option)]


def test_the_overview_names_every_command_in_its_group():
    lines = texts.overview().splitlines()
    for name, row in COMMANDS.items():
        [place] = [index for index, line in enumerate(lines) if line.split()[:1] == [name]]
        assert lines[place].endswith(row.description)
        before = [line for line in lines[:place] if line.endswith(":")]
        assert before[-1] == f"{row.group}:"
    assert max(map(len, lines)) <= 120
    assert len(lines) <= 40


def test_help_and_version_import_neither_torch_nor_lightning():
    code = (
        "import sys\n"
        "from hybrid_lightning.cli import main\n"
        "from hybrid_lightning.cli.commands import COMMANDS\n"
        "for words in ([], ['--help'], ['-h'], ['--version'], *([name, '--help'] for name in COMMANDS)):\n"
        "    main(words)\n"
        "assert not {'torch', 'numpy', 'lightning', 'yaml'} & sys.modules.keys()\n"
    )
    succeed("-c", code, fresh=True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("help fit", "fit: Trains a model"),
        ("help config", "A config is a YAML file of four sections"),
        ("help part", "unfreeze: TEXT|MAPPING"),
        ("fit --help part", "unfreeze: TEXT|MAPPING"),
        ("help part lr_scale", "Default: 0.1 (pretrained), 1.0 (untrained), 1.0 (random)."),
        ("help part MLP", "  out_features: INTEGER"),
        ("help MLP", "  out_features: INTEGER"),
        ("help model", "  num_classes: INTEGER"),
        ("help model", "  start: TEXT"),
        ("help model", "{views: 4}"),
        ("help data", "  batch_size: INTEGER"),
        ("help trainer", "  max_epochs: INTEGER"),
        ("help checkpoint", "  monitor: TEXT"),
        ("help recipes", "head_first:"),
        ("help modules", "  RandomConvolutions2d"),
        ("help L2SP", "  strength: NUMBER|MAPPING"),
    ],
)
def test_a_topic_is_explained_from_docstrings(words, says, capsys):
    assert main(words.split()) == 0
    assert says in capsys.readouterr().out


def test_the_example_of_a_config_can_be_read(folder, capsys):
    assert main(["help", "config"]) == 0
    said = capsys.readouterr().out
    example = said[said.index("  model:") : said.index("Files that are given later")]
    Path("mine.yaml").write_text(textwrap.dedent(example))
    config = parse(["check", "mine.yaml"]).config
    data = ManifestDataModule(**config.data.init_args.as_dict())
    parts = config.model.init_args.parts
    assert list(data.inputs) == list(parts)
    for part in parts.values():
        assert part.keys() <= {row[0] for row in options_of(Part)}


def test_every_option_of_a_model_and_of_a_part_has_a_meaning():
    for target in (Part, HybridClassifier, HybridRegressor, ManifestDataModule):
        assert [row[0] for row in options_of(target) if not row[3]] == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("help partt", "error: help: unknown topic 'partt'. Did you mean 'part'?"),
        ("help part unfreze", "error: help part: unknown option or module 'unfreze'. Did you mean 'unfreeze'?"),
        ("help fit epochs", "error: help fit: 'epochs' is a word too many"),
        ("help config model", "error: help config: 'model' is a word too many"),
        ("hlp", "error: unknown command 'hlp'. Did you mean 'help'?"),
    ],
)
def test_an_unknown_topic_suggests_the_closest(words, says, capsys):
    assert main(words.split()) == 2
    assert capsys.readouterr().err.startswith(says)


def test_all_keys_of_a_command_are_listed_on_demand(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--help", "all"])
    assert ended.value.code == 0
    assert "--trainer.max_epochs MAX_EPOCHS" in capsys.readouterr().out


def test_the_arguments_of_a_docstring_are_read_without_their_marks():
    text = """A thing.

    Args:
        first: One of ``a`` and `b`,
            over two lines; None is no Nonesuch.
        second (int): Another: with a colon.
        **rest: More.

    Raises:
        ValueError: Never.
    """
    assert meanings_in(text) == {
        "first": "One of a and b, over two lines; null is no Nonesuch.",
        "second": "Another: with a colon.",
        "**rest": "More.",
    }


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int | None, "INTEGER"),
        (float | str | None, "NUMBER|TEXT"),
        (list[int] | bool, "LIST|true|false"),
        (Literal["best", "last", None], "best|last|null"),
        (Mapping[str, Any] | Any, "MAPPING"),
        (UnfreezingSchedule | Any, "TEXT|MAPPING"),
        (Any, ""),
    ],
)
def test_types_are_named_by_what_is_typed(hint, words):
    assert type_words(hint) == words


if __name__ == "__main__":
    Path(help_table.__file__).write_text(written(), encoding="utf-8")
