"""What jsonargparse finds wrong, as ``where: what was given, what is possible``."""

import ast
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger

from hybrid_lightning.cli.help_options import options_of
from hybrid_lightning.cli.word_parser import REQUIRED, TYPE_WORDS, of_words, unknown_flag
from hybrid_lightning.data import ManifestDataModule
from hybrid_lightning.errors import ConfigError, check_keys, listing, unknown
from hybrid_lightning.tasks import HybridClassifier, HybridRegressor, HybridTask
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
    "trust_program": "predict reads no exported programs any more. Leave it out, and give the .ckpt file of a run as "
    "--ckpt_path; in a program of your own, torch.export.load reads a .pt2 file.",
}
"""Former key → what to do without it."""
_UNKNOWN_KEY = re.compile(
    r"Group '(?P<section>.*)' does not accept option '(?P<key>.+)'|Option '(?P<option>.+)' is not accepted|"
    r"unrecognized arguments: --(?P<flag>[\w.]+).*",
    re.DOTALL,
)
_HIDDEN = ("help", "print_shtab", "config", "print_config")  # options that are not keys of a config
_KEY = re.compile(r'Parser key "([^"]+)":')
_TYPES = ("Expected a <", "Expected a typing", "Not a valid subclass")
_TYPE = re.compile(
    r"Expected a (<class '(?P<name>[^']+)'>|typing\.Literal(?P<choices>\[.*\]))(\. Got value: (?P<given>.*))?",
    re.DOTALL,
)
_A_CLASS = "a class, as {class_path: ..., init_args: {...}} with nothing else beside these two keys"
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_FRAME = re.compile(  # what surrounds the reasons in jsonargparse's messages
    r"Does not validate|Subtypes: |Errors:|Given value type: |Expected a <class 'NoneType'>|Subclass types expect|"
    r"Expected a path but |a class path \(str\)|a dict with"
)


def refuse_unknown_flag(command: str, words: Sequence[str], flags: Sequence[str]) -> None:
    """Raises `ConfigError` for a flag that begins with no option of a command; `flags` are all that its parser has."""
    wrong = unknown_flag(words, [*flags, *(f"--{name}" for name in _REMOVED)])
    if wrong is None:
        return
    first, dot, rest = wrong.partition(".")
    known = [flag for flag in flags if re.fullmatch(r"--\w+", flag) and flag[2:] not in _HIDDEN[:2]]
    # the name alone of what stands in a section, such as --max_epochs
    in_sections = [flag for flag in (*flags, *_flags_of_classes()) if flag.rpartition(".")[2] == first.lstrip("-")]
    if in_sections:
        meant = " or ".join(repr(f"{flag}{dot}{rest}") for flag in dict.fromkeys(in_sections))
        raise ConfigError(f"unknown option {wrong!r}. Did you mean {meant}? '{command} --help' lists more.", command)
    raise unknown(command, "option", first, known)


def _flags_of_classes() -> list[str]:
    """The flags of the models and of the data of a table, which a parser has once it knows the classes."""
    found = []
    for section, classes in (("model", (HybridClassifier, HybridRegressor)), ("data", (ManifestDataModule,))):
        for one in classes:
            found += [f"--{section}.{row[0]}" for row in options_of(one)]
    return found


def parser_error(message: str, known: Sequence[str]) -> ConfigError:
    """The error for a message of jsonargparse; `known` are the dotted names of all options."""
    found = _UNKNOWN_KEY.fullmatch(message.strip())
    if found is None:
        return of_words(message.strip()) or ConfigError(explained(message))
    path = found["option"] or found["flag"] or f"{found['section']}.{found['key']}"
    name = path.partition(".")[0]
    if name in _REMOVED:
        return ConfigError(_REMOVED[name], name)
    section, key, possible = _first_unknown(path, known)
    hidden = _HIDDEN if found["flag"] is None else _HIDDEN[:2]
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
    refuse_no_mapping(content.get("init_args"), f"{section}.init_args")


def refuse_no_mapping(content: Any, place: str) -> None:
    """Raises `ConfigError` if something else than keys and values stands in a section."""
    if content is not None and not isinstance(content, Mapping):
        raise ConfigError(f"write keys and values, not {content!r}.", place)


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
    if faults:
        text = " ".join([_in_words(place, reason) for reason in dict.fromkeys(faults)])
    else:
        text = _mismatch(list(dict.fromkeys(reasons)), given)
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
    if found := REQUIRED.match(reason):
        missing = [name.rpartition(".")[2] for name in found[1].split(", ")]
        if len(missing) > 1 and set(missing) <= _BASES.keys():
            return (
                "there is neither a model nor data. Give a config that has both: 'COMMAND FILE.yaml'; 'help config' "
                "shows what stands in one."
            )
        text = f"{listing(missing)} must be given."
        for name in missing:
            if name in _BASES:
                text += f" Add '{name}: {{class_path: ..., init_args: {{...}}}}' to the config."
        return text
    return re.sub(r"<class '([^']+)'>", r"\1", reason).replace("typing.Literal", "one of ")


def _mismatch(reasons: Sequence[str], given: str) -> str:
    """What to write in place of a value that is of none of the possible types."""
    wanted: list[str] = []
    choices: list[str] = []
    for reason in reasons:
        found = _TYPE.fullmatch(reason)
        if found is None:
            wanted.append(_A_CLASS if reason.startswith("Not a valid subclass of") else reason)
            continue
        given = given or found["given"] or ""
        if found["choices"]:
            choices += map(str, ast.literal_eval(found["choices"]))
        else:
            wanted.append(TYPE_WORDS.get(found["name"], found["name"]))
    if choices and (not wanted or get_close_matches(given, choices)):
        return str(unknown("", "value", given, dict.fromkeys(choices)))
    if "a number" in wanted and "a whole number" in wanted:
        wanted.remove("a whole number")
    if choices:
        wanted.append(listing(choices))
    return f"write {' or '.join(dict.fromkeys(wanted))}, not {given[:300]!r}."


def cause_of(error: BaseException) -> ConfigError | None:
    """The `ConfigError` that led to another error, which may hide it in a longer text."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ConfigError):
        seen = seen.__cause__ or seen.__context__
    return seen
