"""The inputs of a manifest: which columns become which entries of a batch."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from hybrid_lightning.data.inputs.audio import AudioInput
from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.images import ImageInput
from hybrid_lightning.data.inputs.series import SeriesInput
from hybrid_lightning.data.inputs.tabular import CategoricalInput, NumericInput, TableInput
from hybrid_lightning.data.inputs.text import TextInput
from hybrid_lightning.data.inputs.volumes import ArrayInput, VolumeInput
from hybrid_lightning.errors import ConfigError, unknown
from hybrid_lightning.importing import parameters_of

KINDS: dict[str, Callable[..., Input]] = {
    "image": ImageInput,
    "volume": VolumeInput,
    "array": ArrayInput,
    "series": SeriesInput,
    "audio": AudioInput,
    "text": TextInput,
    "numeric": NumericInput,
    "categorical": CategoricalInput,
}
"""The word that says what an input is, which is also the name of the argument that takes its column."""

_RESERVED = ("target", "id", "present")
_EXAMPLE = "{image: path, size: 64}"


def parse_inputs(inputs: Any, where: str = "data.inputs") -> dict[str, Input]:
    """The entries of a batch from the config, in the order given.

    Args:
        inputs: Batch key → dict with one word of `KINDS` and the options of that kind; ``numeric`` and ``categorical``
            together make a table.
        where: Config path of `inputs`, for errors.

    Raises:
        ConfigError: If a key, kind, option or value is impossible.
    """
    if not isinstance(inputs, Mapping) or not inputs:
        raise ConfigError(f"{where}: {inputs!r} names no input. Write such as {{photo: {_EXAMPLE}}}.")
    return {key: _parse_input(key, given, f"{where}.{key}") for key, given in inputs.items()}


def _parse_input(key: Any, given: Any, where: str) -> Input:
    if not isinstance(key, str) or not re.fullmatch("[a-z][a-z0-9_]*", key) or key in _RESERVED:
        raise ConfigError(
            f"{where}: an input cannot be named {key!r}. Names are small letters, digits and _, begin with a letter, "
            f"and are none of {', '.join(_RESERVED)}."
        )
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where}: {given!r} is no input. Write such as {_EXAMPLE}.")
    kinds = [word for word in KINDS if word in given]
    if not kinds:
        strange = next(
            (str(word) for word in given if all(word not in parameters_of(kind) for kind in KINDS.values())), ""
        )
        raise unknown(where, "kind of input", strange, KINDS) if strange else _no_kind(where)
    factory = TableInput if kinds == ["numeric", "categorical"] else KINDS[kinds[0]]
    options = [name for name in parameters_of(factory) if name not in ("key", "where")]
    if len(kinds) > 1 and factory is not TableInput:
        raise ConfigError(f"{where}: {' and '.join(kinds)} are two kinds of input. Give each a key of its own.")
    for word in given:
        if word not in options:
            raise unknown(where, "option", str(word), options)
    return factory(key, where, **given)


def _no_kind(where: str) -> ConfigError:
    return ConfigError(f"{where}: the kind of input is missing; one of {', '.join(KINDS)}, with its column.")
