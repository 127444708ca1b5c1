"""Options of a class or function: name, type and default from its signature, meaning from its docstring."""

import argparse
import inspect
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hybrid_lightning.cli.help import Row

_WORDS: dict[Any, str] = {
    str: "TEXT",
    int: "INTEGER",
    float: "NUMBER",
    bool: "true|false",
    list: "LIST",
    dict: "MAPPING",
    type(None): "",
}
_CONSTANTS = {True: "true", False: "false", None: "null"}
_LIVE = ("self", "setup", "objective")  # arguments that no config can give
_NAMED = re.compile(r"(\*{0,2}\w+)(?: \([^)]*\))?: *(.*)")
_MARKUP = re.compile(r"``([^`]*)``|`([^`]*)`")


def options_of(target: Callable[..., Any]) -> list[Row]:
    """The arguments of a function or class, those behind ``**`` of the class above included."""
    owners = list(_owners(target))
    meanings: dict[str, str] = {}
    for owner in reversed(owners):
        meanings |= meanings_in(inspect.getdoc(owner) or "")
    rows: dict[str, Row] = {}
    for owner in owners:
        called = vars(owner)["__init__"] if isinstance(owner, type) else owner
        hints = get_type_hints(called)
        for name, parameter in inspect.signature(called).parameters.items():
            if name in _LIVE or name in rows or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            kind = type_words(hints.get(name, Any))
            rows[name] = (name, kind, default_words(parameter.default), meanings.get(name, ""))
    return list(rows.values())


def _owners(target: Callable[..., Any]) -> Iterator[Any]:
    """A function; or a class and those above it, as far as each passes on what it does not name."""
    if not isinstance(target, type):
        yield target
        return
    for owner in target.__mro__:
        if "__init__" not in vars(owner):
            continue
        yield owner
        kinds = [parameter.kind for parameter in inspect.signature(vars(owner)["__init__"]).parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return


def meanings_in(docstring: str) -> dict[str, str]:
    """Argument → its text in the section ``Args`` of a docstring, without marks."""
    found: dict[str, str] = {}
    name = ""
    lines = iter(inspect.cleandoc(docstring).splitlines())
    for line in lines:
        if line == "Args:":
            break
    for line in lines:
        if line and not line.startswith(" "):
            break
        is_first = re.match(r" {4}\S", line)
        named = _NAMED.match(line.strip())
        if is_first and named:
            name = named[1]
            found[name] = named[2]
        elif name:
            found[name] = f"{found[name]} {line.strip()}".strip()
    return {argument: plain(text) for argument, text in found.items()}


def plain(text: str) -> str:
    """A docstring's text as it is typed in a config: code without backticks, and null for None."""
    return re.sub(r"\bNone\b", "null", _MARKUP.sub(lambda found: found[1] or found[2] or "", text))


def type_words(hint: Any) -> str:
    """A type as capital words: ``TEXT|MAPPING``; what is typed as it stands in small letters. Empty if any."""
    origin = get_origin(hint)
    if origin is Literal:
        return "|".join(_CONSTANTS.get(value, str(value)) for value in get_args(hint))
    if origin in (Union, types.UnionType):
        words = [word for word in map(type_words, get_args(hint)) if word]
        return "|".join(dict.fromkeys("|".join(words).split("|")))
    kind = origin or hint
    if kind in _WORDS:
        return _WORDS[kind]
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "MAPPING"
    # one of ours, which is read from words
    return "TEXT|MAPPING" if hasattr(kind, "parse") else ""


def default_words(value: Any) -> str:
    """A default as YAML writes it; empty if there is none."""
    if value is inspect.Parameter.empty:
        return ""
    if isinstance(value, bool) or value is None:
        return _CONSTANTS[value]
    return str(value) if isinstance(value, str | int | float) else ""


def options_of_parser(parser: argparse.ArgumentParser) -> list[Row]:
    """The options of a parser of words."""
    rows = []
    for action in parser._actions:
        if action.help in (None, argparse.SUPPRESS) or action.dest == "help":
            continue
        kind = "|".join(action.choices) if action.choices else _WORDS.get(action.type, "TEXT")
        kind = "" if action.nargs == 0 else str(action.metavar or kind)
        if action.nargs == "+":
            kind += " ..."
        # a word without a flag has a name for the eye alone
        name, kind = (action.option_strings[-1], kind) if action.option_strings else (kind, "")
        rows.append((name, kind, "", plain(" ".join((action.help or "").split()))))
    return rows
