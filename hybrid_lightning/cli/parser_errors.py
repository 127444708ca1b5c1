"""What jsonargparse finds wrong, as ``where: what was given, what is possible``."""

import re
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.checkpoint import concrete_subclasses

_BASES: dict[str, type] = {
    "model": HybridTask,
    "data": pl.LightningDataModule,
    "trainer.callbacks": pl.Callback,
    "trainer.logger": Logger,
}
_UNKNOWN_KEY = re.compile(
    r"(?:Subcommand|Group) '.*' does not accept option '(.+)'|Option '(.+)' is not accepted|"
    r"unrecognized arguments: --([\w.]+).*",
    re.DOTALL,
)
_UNKNOWN_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_REQUIRED = re.compile(r"the following arguments are required: (.+)")
_FRAME = re.compile(  # what surrounds the reasons in jsonargparse's messages
    r"Does not validate|Subtypes: |Errors:|Given value type: |Expected a <class 'NoneType'>|Subclass types expect|"
    r"a class path \(str\)|a dict with"
)


def parser_error(message: str, known: Sequence[str]) -> ConfigError:
    """The error for a message of the parser.

    Args:
        message: What jsonargparse says.
        known: The dotted names of all options.
    """
    found = _UNKNOWN_KEY.fullmatch(message.strip())
    return _unknown_key(next(filter(None, found.groups())), known) if found else ConfigError(explained(message))


def _unknown_key(given: str, known: Sequence[str]) -> ConfigError:
    """Names the keys beside the one that does not exist."""
    section, dot, key = given.rpartition(".")
    beside = [name.removeprefix(section + dot) for name in known if name.startswith(section + dot)]
    hidden = ("help", "config", "print_config", "print_shtab", "subcommand")
    return unknown(section or "config", "key", key, [n for n in beside if "." not in n and n not in hidden])


def explained(message: str) -> str:
    """A message of jsonargparse as ``where: what was given, what is possible``."""
    path: list[str] = []
    reasons: list[str] = []
    given = ""
    for line in message.splitlines():
        path += [key for key in re.findall(r'Parser key "([^"]+)":', line) if key != "config"]
        text = re.sub(r'Parser key "[^"]+":', "", line).strip().removeprefix("- ").strip()
        if text.startswith("Given value: "):
            given = given or text.removeprefix("Given value: ")
        elif text and not _FRAME.match(text):
            reasons.append(text)
    where = ".".join(path)
    telling = [r for r in reasons if not r.startswith(("Expected a <", "Expected a typing", "Not a valid subclass"))]
    words = [_in_words(where, reason) for reason in dict.fromkeys(telling or reasons)]
    text = " ".join(words)
    if not telling:
        text = " or ".join(words).replace(" or Expected a ", " or ") + (f". Given: {given}" if given else "")
    nested = re.match(r"[\w.]+: ", text)  # from the arguments of a class
    return f"{where}{'.' if nested else ': '}{text}".replace(".config: ", ": ") if where else text


def _in_words(where: str, reason: str) -> str:
    """One reason of jsonargparse, with what is possible and what to do."""
    if found := _UNKNOWN_CLASS.match(reason):
        found_classes: list[type] = concrete_subclasses(_BASES[where]) if where in _BASES else []
        known = [c.__name__ for c in found_classes if c is not _BASES[where] and c.__name__[0] != "_"]
        return str(unknown("class_path", "class", found[1], known)) + " Any other class needs its full dotted path."
    if found := _REQUIRED.match(reason):
        missing = [name.rpartition(".")[2] for name in found[1].split(", ")]
        example = "{class_path: ..., init_args: {...}}"
        hints = [f" Add '{name}: {example}' to the config." for name in missing if name in _BASES]
        return f"{listing(missing)} must be given.{''.join(hints)}"
    if reason.startswith("Not a valid subclass of"):
        return "Expected a class: write {class_path: ..., init_args: {...}}, with nothing else beside these two keys"
    return re.sub(r"<class '([^']+)'>", r"\1", reason).replace("typing.Literal", "one of ")


def cause_of(error: BaseException) -> ConfigError | None:
    """The `ConfigError` that led to another error, which may hide it in a longer text."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ConfigError):
        seen = seen.__cause__ or seen.__context__
    return seen
