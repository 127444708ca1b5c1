"""The inputs of a manifest: which columns become which entries of a batch."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from hybrid_lightning.data.inputs.audio import AudioInput
from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.file_sets import FileList, FileSet, check_columns
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.inputs.images import ImageInput
from hybrid_lightning.data.inputs.series import SeriesInput
from hybrid_lightning.data.inputs.tabular import CategoricalInput, NumericInput, TableInput
from hybrid_lightning.data.inputs.text import TextInput
from hybrid_lightning.data.inputs.volumes import ArrayInput, VolumeInput
from hybrid_lightning.errors import ConfigError, at, check_keys, unknown
from hybrid_lightning.importing import parameters_of

INPUTS: dict[str, Callable[..., Input]] = {
    "image": ImageInput,
    "volume": VolumeInput,
    "array": ArrayInput,
    "series": SeriesInput,
    "audio": AudioInput,
    "text": TextInput,
    "numeric": NumericInput,
    "categorical": CategoricalInput,
}
"""The word for a kind of input, which is also the name of the argument that takes its column."""

_FILES = ("image", "volume", "array", "series", "audio")
"""Kinds of which a sample may have several files: a list of columns, or several paths in a cell."""
_OF_FILES = ("pool", "separator", "most")
_RESERVED = ("target", "id", "present")
_EXAMPLE = "{image: path, size: 64}"


def parse_inputs(inputs: Any, targets: Collection[str] = ()) -> dict[str, Input]:
    """The inputs of ``data.inputs``, in the order given; none may read a column of `targets`."""
    parsed = {}
    with at("data.inputs"):
        if not isinstance(inputs, Mapping) or not inputs:
            raise ConfigError(f"{inputs!r} names no input. Write such as {{photo: {_EXAMPLE}}}.")
        for key, given in inputs.items():
            with at(str(key)):
                parsed[key] = _parse_input(key, given)
                answers = [column for column in parsed[key].columns if column in targets]
                if answers:
                    raise ConfigError(
                        f"column {answers[0]!r} is the target, so that the model would be given the answer. Leave it "
                        f"out of the inputs."
                    )
    return parsed


def members_of(inputs: Mapping[str, Input]) -> dict[str, Input]:
    """The inputs, with those of each column in place of one that has several files."""
    members: dict[str, Input] = {}
    for entry in inputs.values():
        members |= entry.members
    return members


def _parse_input(key: Any, given: Any) -> Input:
    if not isinstance(key, str) or not re.fullmatch("[a-z][a-z0-9_]*", key) or key in _RESERVED:
        raise ConfigError(
            f"an input cannot be named {key!r}. Names are small letters, digits and _, begin with a letter, and are "
            f"none of {', '.join(_RESERVED)}."
        )
    if isinstance(given, Input):
        return given
    if not isinstance(given, Mapping):
        raise ConfigError(f"{given!r} is not an input. Write such as {_EXAMPLE}.")
    kinds = [word for word in INPUTS if word in given]
    if not kinds:
        raise _unknown_kind(given)
    factory = TableInput if kinds == ["numeric", "categorical"] else INPUTS[kinds[0]]
    if len(kinds) > 1 and factory is not TableInput:
        raise ConfigError(f"{' and '.join(kinds)} are two kinds of input. Give each a key of its own.")
    options = [name for name in parameters_of(factory) if name != "key"]
    if kinds[0] in _FILES:
        options += _OF_FILES
    check_keys(given, options, kind="option")
    parsed = _parse_files(key, kinds[0], given) if kinds[0] in _FILES else factory(key, **given)
    parsed.options = _plain_options(given)
    return parsed


def _plain_options(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options by which samples are read after training; None if they are not plain data."""
    kept = {name: value for name, value in given.items() if name != "train"}
    try:
        return dict(json.loads(json.dumps(kept)))
    except (TypeError, ValueError):
        return None


def _parse_files(key: str, kind: str, given: Mapping[str, Any]) -> Input:
    """An input of a file per sample, or of several if there is a list of columns or a separator."""
    options = {name: value for name, value in given.items() if name not in (kind, *_OF_FILES)}
    of_files = {name: given[name] for name in _OF_FILES if name in given}
    columns = given[kind]
    if not isinstance(columns, list):
        file = INPUTS[kind](key, columns, **options)
        assert isinstance(file, FileInput)
        if "separator" in of_files:
            return FileList(key, file, **of_files)
        for name in of_files:
            raise ConfigError(
                f"it is about several files of a sample, and {columns!r} is one column. Write '{kind}: [front, "
                f"back]', or 'separator: \";\"' if a cell holds several paths; or leave it out. How a part pools its "
                f"maps is the part's own 'pool'.",
                name,
            )
        return file
    for name in of_files:
        if name != "pool":
            raise ConfigError(
                "it is about the cells of one column, and there is a list of columns. Leave it out.", name
            )
    with at(kind):
        check_columns(columns)
    files = {}
    for column in columns:
        file = INPUTS[kind](f"{key}.{column}", column, **options)
        assert isinstance(file, FileInput)
        files[column] = file
    return FileSet(key, files, given.get("pool", "mean"))


def _unknown_kind(given: Mapping[str, Any]) -> ConfigError:
    """An error that takes the first word which is an option of no kind for a misspelled kind."""
    known: set[str] = set()
    for factory in INPUTS.values():
        known.update(parameters_of(factory))
    for word in given:
        if word not in known:
            return unknown("", "kind of input", str(word), INPUTS)
    return ConfigError(f"the kind of input is missing; one of {', '.join(INPUTS)}, with its column.")
