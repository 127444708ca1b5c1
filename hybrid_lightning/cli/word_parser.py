"""What is wrong with words of the command line, and the parser of commands without a config; imports no Lightning."""

import argparse
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NoReturn

from hybrid_lightning.cli.commands import COMMANDS, SECTIONS
from hybrid_lightning.errors import ConfigError, unknown

TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "collections.abc.Iterable": "a list",
    "dict": "keys and values",
}
"""Type → what a user writes."""
REQUIRED = re.compile(r"the following arguments are required: (.+)")
_STRAY = re.compile(r"unrecognized arguments: (\S+).*", re.DOTALL)
_NO_SECTION = re.compile(r'Parser key "([^"]+)":\s*Unable to load config (\'[^\n]*)', re.MULTILINE)
_NO_VALUE = re.compile(r"argument (?:-\w/)?(--[\w.]+)\S*: expected .*argument")
_NOT_OF_TYPE = re.compile(r"argument (--[\w.]+): invalid (\w+) value: '(.*)'", re.DOTALL)
_NO_CHOICE = re.compile(r"argument (--[\w.]+): invalid choice: '(.*)' \(choose from (.*)\)", re.DOTALL)


def of_words(message: str) -> ConfigError | None:
    """The error for a word of the command line that no option takes as it is; None for any other message."""
    if found := _STRAY.fullmatch(message):
        return ConfigError(_stray(found[1]))
    if found := _NO_VALUE.fullmatch(message):
        return ConfigError("its value is missing.", found[1])
    if found := _NOT_OF_TYPE.fullmatch(message):
        return ConfigError(f"write {TYPE_WORDS.get(found[2], found[2])}, not {found[3]!r}.", found[1])
    if found := _NO_CHOICE.fullmatch(message):
        return unknown(found[1], "value", found[2], re.findall(r"'([^']*)'", found[3]))
    if found := _NO_SECTION.match(message):
        return ConfigError(f"write keys and values, not {found[2].strip()}.", found[1])
    return None


def _stray(word: str) -> str:
    """What to do about a word of the command line that belongs to no option."""
    if word in COMMANDS:
        return f"{word!r} is a second command. Give one at a time, and it first."
    if word.startswith("-"):
        return f"unknown option {word!r}. Write options with two dashes: --{word.lstrip('-')} VALUE."
    return f"{word!r} belongs to no option. Write options as --KEY VALUE, such as --trainer.max_epochs 5."


def unknown_flag(words: Iterable[str], known: Collection[str]) -> str | None:
    """The first flag whose name, up to a dot, is not among `known`, such as ``--modle.lr``; None if all are."""
    for word in words:
        flag = word.partition("=")[0]
        is_flag = flag.startswith("--") and " " not in flag
        if is_flag and flag.partition(".")[0] not in known:
            return flag
    return None


class WordParser(argparse.ArgumentParser):
    """The parser of a command without a config; what is wrong is a `ConfigError`."""

    def parse_args(self, words: Sequence[str]) -> Any:  # type: ignore[override]
        """The options; a flag that is none of them is told before what is missing."""
        self._refuse_unknown(words, self._flags())
        return super().parse_args(words)

    def parse_beside_fit(self, words: Sequence[str]) -> tuple[Any, list[str]]:
        """The options, and the words that are those of a run."""
        from hybrid_lightning.cli.help_table import OPTIONS  # written by a test, see there

        of_fit = [row[0] for row in OPTIONS["fit"]]
        sections = [f"--{section}" for section in SECTIONS]
        self._refuse_unknown(words, [*self._flags(), "--config", *of_fit, *sections])
        return self.parse_known_args(words)

    def _flags(self) -> list[str]:
        """The flags that the help lists."""
        found: list[str] = []
        for action in self._actions:
            if action.help is not argparse.SUPPRESS and action.dest != "help":
                found += action.option_strings
        return found

    def _refuse_unknown(self, words: Sequence[str], known: Collection[str]) -> None:
        flag = unknown_flag(words, [*known, *self._option_string_actions])
        if flag is not None:
            raise unknown(self.prog.split()[-1], "option", flag.partition(".")[0], dict.fromkeys(known))

    def error(self, message: str) -> NoReturn:
        """Replaces a method that prints and ends the process."""
        missing = REQUIRED.fullmatch(message)
        problem = of_words(message) or ConfigError(f"{missing[1]} must be given." if missing else f"{message}.")
        name = self.prog.split()[-1]
        raise ConfigError(f"{problem} '{name} --help' lists its options.", name)
