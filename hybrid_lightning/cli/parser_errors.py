"""What jsonargparse finds wrong, as ``where: what was given, what is possible``."""

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger

from hybrid_lightning.cli.commands import COMMANDS
from hybrid_lightning.errors import ConfigError, check_keys, listing, unknown
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.checkpoint import concrete_subclasses
from hybrid_lightning.tasks.settings import REMOVED

_BASES: dict[str, type] = {
    "model": HybridTask,
    "data": LightningDataModule,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
_REMOVED = {
    **REMOVED,
    "weights_only": "checkpoints are always read as plain data. Leave it out.",
    "verbose": "results are always printed. Leave it out.",
    "return_predictions": "predict writes them to a table. Leave it out.",
    "trust_program": "predict reads no exported programs any more. Leave it out, and give the .ckpt file of a fit as "
    "--ckpt_path; in a program of your own, torch.export.load reads a .pt2 file.",
}
"""Former key → what to do without it."""
_UNKNOWN_KEY = re.compile(
    r"Group '(?P<section>.*)' does not accept option '(?P<key>.+)'|Option '(?P<option>.+)' is not accepted|"
    r"unrecognized arguments: --(?P<flag>[\w.]+).*",
    re.DOTALL,
)
_STRAY = re.compile(r"unrecognized arguments: (\S+).*", re.DOTALL)
_HIDDEN = ("help", "config", "print_config", "print_shtab")  # options that are not keys of a config
_KEY = re.compile(r'Parser key "([^"]+)":')
_TYPES = ("Expected a <", "Expected a typing", "Not a valid subclass")
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_FRAME = re.compile(  # what surrounds the reasons in jsonargparse's messages
    r"Does not validate|Subtypes: |Errors:|Given value type: |Expected a <class 'NoneType'>|Subclass types expect|"
    r"a class path \(str\)|a dict with"
)


def parser_error(message: str, known: Sequence[str]) -> ConfigError:
    """The error for a message of jsonargparse; `known` are the dotted names of all options."""
    found = _UNKNOWN_KEY.fullmatch(message.strip())
    if found is None:
        stray = _STRAY.fullmatch(message.strip())
        return ConfigError(_stray(stray[1]) if stray else explained(message))
    path = found["option"] or found["flag"] or f"{found['section']}.{found['key']}"
    name = path.partition(".")[0]
    if name in _REMOVED:
        return ConfigError(_REMOVED[name], name)
    section, key, possible = _first_unknown(path, known)
    hidden = _HIDDEN if found["flag"] is None else _HIDDEN[:1]
    return unknown(section or "config", "key", key, [name for name in possible if name not in hidden])


def _first_unknown(path: str, known: Sequence[str]) -> tuple[str, str, list[str]]:
    """The section that a dotted name is right up to, its first wrong word, and the words that could stand there."""
    section = ""
    for word in path.split("."):
        possible = list(
            dict.fromkeys(name.removeprefix(section).split(".")[0] for name in known if name.startswith(section))
        )
        if word not in possible:
            break
        section += f"{word}."
    return section.rstrip("."), word, possible


def _stray(word: str) -> str:
    """What to do about a word of the command line that belongs to no option."""
    if word.endswith((".yaml", ".yml")):
        return f"{word!r} stands alone. Write --config {word}."
    if word in COMMANDS:
        return f"{word!r} is a second command. Give one at a time, and it first."
    if word.startswith("-"):
        return f"unknown option {word!r}. Write options with two dashes: --{word.lstrip('-')} VALUE."
    return f"{word!r} belongs to no option. Write options as --KEY VALUE, such as --trainer.max_epochs 5."


class WordParser(argparse.ArgumentParser):
    """The parser of a command without a config; what is wrong is a `ConfigError`."""

    def error(self, message: str) -> NoReturn:
        """Replaces a method that prints and ends the process."""
        raise ConfigError(f"{self.prog.split()[-1]}: {message}. '{self.prog} --help' lists its options.")


def refuse_missing_class(section: str, content: Mapping[str, Any]) -> None:
    """Raises `ConfigError` unless a section, ``model`` or ``data``, names a class that can be made."""
    base = _BASES[section]
    possible = [cls.__name__ for cls in _classes(base)]
    path = content.get("class_path")
    if path is None:
        raise ConfigError(
            f"'class_path' is missing. Write 'class_path: ...', of {listing(possible)} or a dotted path, and the "
            f"arguments of the class below 'init_args:'.",
            section,
        )
    if isinstance(path, str) and path.rpartition(".")[2] == base.__name__:
        raise ConfigError(f"{path!r} is abstract. Write one of these: {listing(possible)}.", section)
    check_keys(content, ("class_path", "init_args", "dict_kwargs"), section)


def _classes(base: type) -> list[type]:
    """The classes that can be named without a dotted path."""
    classes: list[type] = concrete_subclasses(base)
    return [cls for cls in classes if cls is not base and not cls.__name__.startswith("_")]


def explained(message: str) -> str:
    """A message of jsonargparse as ``where: what was given, what is possible``."""
    path: list[str] = []
    reasons: list[str] = []
    given = ""
    for line in message.splitlines():
        path += [key for key in _KEY.findall(line) if key != "config"]
        text = _KEY.sub("", line).strip().removeprefix("- ").strip()
        if text.startswith("Given value: "):
            given = given or text.removeprefix("Given value: ")
        elif text and not _FRAME.match(text):
            reasons.append(text)
    place = ".".join(path)
    # where a reason names a fault, those that list the types of a union say nothing more
    faults = [reason for reason in reasons if not reason.startswith(_TYPES)]
    words = [_in_words(place, reason) for reason in dict.fromkeys(faults or reasons)]
    text = " ".join(words)
    if not faults:
        text = " or ".join(words).replace(" or Expected a ", " or ")
        text += f". Given: {given}" if given else ""
    if not place:
        return text
    is_nested = re.match(r"[\w.]+: ", text)  # a path within the arguments of a class
    return f"{place}{'.' if is_nested else ': '}{text}".replace(".config: ", ": ")


def _in_words(place: str, reason: str) -> str:
    """One reason of jsonargparse, with what is possible and what to do."""
    if found := _UNKNOWN_CLASS.match(reason):
        base = _BASES.get(place)
        known = [] if base is None else [cls.__name__ for cls in _classes(base)]
        return f"{unknown('class_path', 'class', found[1], known)} Any other class needs its full dotted path."
    if found := _REQUIRED.match(reason):
        missing = [name.rpartition(".")[2] for name in found[1].split(", ")]
        text = f"{listing(missing)} must be given."
        for name in missing:
            if name in _BASES:
                text += f" Add '{name}: {{class_path: ..., init_args: {{...}}}}' to the config (--config FILE.yaml)."
        return text
    if reason.startswith("Not a valid subclass of"):
        return "Expected a class: write {class_path: ..., init_args: {...}}, with nothing else beside these two keys"
    return re.sub(r"<class '([^']+)'>", r"\1", reason).replace("typing.Literal", "one of ")


def cause_of(error: BaseException) -> ConfigError | None:
    """The `ConfigError` that led to another error, which may hide it in a longer text."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ConfigError):
        seen = seen.__cause__ or seen.__context__
    return seen
