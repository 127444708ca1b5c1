"""What jsonargparse finds wrong, as ``where: what was given, what is possible``."""

import re
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.loggers import Logger

from hybrid_lightning.errors import ConfigError, listing, unknown
from hybrid_lightning.tasks import HybridTask
from hybrid_lightning.tasks.checkpoint import concrete_subclasses

_BASES: dict[str, type] = {
    "model": HybridTask,
    "data": LightningDataModule,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
_REMOVED = {
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
        return ConfigError(explained(message))
    path = found["option"] or found["flag"] or f"{found['section']}.{found['key']}"
    section, dot, key = path.rpartition(".")
    if path in _REMOVED:
        return ConfigError(_REMOVED[path], path)
    beside = [name.removeprefix(section + dot) for name in known if name.startswith(section + dot)]
    possible = [name for name in beside if "." not in name and name not in _HIDDEN]
    return unknown(section or "config", "key", key, possible)


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
        classes: list[type] = [] if base is None else concrete_subclasses(base)
        known = [cls.__name__ for cls in classes if cls is not base and not cls.__name__.startswith("_")]
        return f"{unknown('class_path', 'class', found[1], known)} Any other class needs its full dotted path."
    if found := _REQUIRED.match(reason):
        missing = [name.rpartition(".")[2] for name in found[1].split(", ")]
        text = f"{listing(missing)} must be given."
        for name in missing:
            if name in _BASES:
                text += f" Add '{name}: {{class_path: ..., init_args: {{...}}}}' to the config."
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
