"""Checks of a part's plain options; errors have places within them."""

from collections.abc import Mapping
from typing import Any

from hybrid_lightning.errors import ConfigError, check_choice, check_number
from hybrid_lightning.network.outputs import POOLS
from hybrid_lightning.unfreezing.freezing import BATCH_NORM_MODES


def check_numbers(part: Any) -> None:
    """Raises `ConfigError` for a number of a `Part` that is out of range, or a word that is no choice."""
    for rate in ("lr_scale", "weight_decay", "l2sp"):
        if getattr(part, rate) is not None:
            check_number(getattr(part, rate), rate, low=0)
    if part.layer_decay is not None:
        check_number(part.layer_decay, "layer_decay", low=0, high=1, above_low=True)
    if part.pool is not None:
        check_choice(part.pool, "pool", POOLS, "pooling")
    if part.batch_norm is not None:
        check_choice(part.batch_norm, "batch_norm", BATCH_NORM_MODES, "mode")
    if part.channels is not None and (type(part.channels) is not int or part.channels < 1):
        raise ConfigError(f"{part.channels!r} is not a number of channels, 1 or more.", "channels")


def check_kinds(part: Any) -> None:
    """Raises `ConfigError` for an option of a `Part` that is of another type, or does not go with another one."""
    if not (part.input is None or isinstance(part.input, str) or _is_list_of_names(part.input)):
        raise ConfigError(f"{part.input!r} is neither a key, nor a part, nor a list of keys.", "input")
    if not isinstance(part.output, str | int | None) or isinstance(part.output, bool):
        raise ConfigError(f"{part.output!r} is neither a key nor a position.", "output")
    if not isinstance(part.normalize, bool | Mapping | None):
        raise ConfigError(f"{part.normalize!r} is neither true, nor false, nor {{mean: ..., std: ...}}.", "normalize")
    if not (part.stages is None or _is_list_of_names(part.stages)):
        raise ConfigError(f"{part.stages!r} is not a list of patterns such as [stem, layer1, layer2].", "stages")
    if not isinstance(part.compile, bool | Mapping):
        raise ConfigError(f"{part.compile!r} is neither true, nor false, nor options as a dict.", "compile")
    if not isinstance(part.checkpoint_activations, bool | None):
        raise ConfigError(f"{part.checkpoint_activations!r} is neither true nor false.", "checkpoint_activations")
    if part.compile and part.checkpoint_activations:
        raise ConfigError(
            "a compiled part decides by itself what its backward pass computes again. Write false here, or leave "
            "'compile' out.",
            "checkpoint_activations",
        )


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)
