"""Batches: dicts of tensors, or of dicts of tensors, with the samples first."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

Batch = Mapping[str, Any]
CACHED = "cached"
"""Key of a batch under which a cache gives what parts have made of its samples: part → `(B, ...)`."""
CACHED_INDEX = "cached_index"
"""Key under which it gives the places of the samples in their dataset, int64 `(B,)`."""
_CHANNEL_ARGUMENTS = ("in_channels", "in_chans")
_FEATURE_ARGUMENTS = ("in_features", "input_size")
_SIZED_ENTRIES = ("values", "numeric")


def tensors_in(entries: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors with a dimension of samples among entries of a batch."""
    for entry in entries:
        inner = entry.values() if isinstance(entry, Mapping) else [entry]
        for value in inner:
            if isinstance(value, Tensor) and value.ndim:
                yield value


def first_samples(batch: Batch, count: int = 2) -> dict[str, Any]:
    """The first samples of a batch, on the CPU; a single one is repeated."""
    return {key: _first_of(entry, count) for key, entry in batch.items()}


def _first_of(entry: Any, count: int) -> Any:
    if isinstance(entry, Mapping):
        return first_samples(entry, count)
    if isinstance(entry, Tensor) and entry.ndim:
        # a copy, because a module may work in place
        short = entry[:count].detach().cpu().clone()
        if len(short) == count:
            return short
        return short.repeat(count, *[1] * (entry.ndim - 1))
    if isinstance(entry, list | tuple):
        return entry[:count]
    return entry


def sizes_of(inputs: list[Any]) -> dict[str, Any]:
    """Sizes of a part's first input, by the names that arguments for them have: numbers, and ``in_shape``, a list."""
    first = inputs[0] if inputs else None
    # a table or a sequence comes with a mask or with codes, which have no size to infer
    if isinstance(first, Mapping):
        first = next((first[key] for key in _SIZED_ENTRIES if key in first), None)
    if not isinstance(first, Tensor) or first.ndim < 2:
        return {}
    channels = dict.fromkeys(_CHANNEL_ARGUMENTS, first.shape[1])
    features = dict.fromkeys(_FEATURE_ARGUMENTS, first.shape[-1])
    return channels | features | {"in_shape": list(first.shape[1:])}
