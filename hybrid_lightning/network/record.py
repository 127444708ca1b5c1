"""What a dry run finds out about a network: with the options of its parts, all that a rebuild needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from hybrid_lightning.data.tensors import FILES_POOLS
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.outputs import POOLS
from hybrid_lightning.network.stages import Stages

_OF_PARTS = {
    "sizes": "sizes",
    "stages": "stages",
    "outputs": "output",
    "pools": "pool",
    "scales": "scale",
    "shapes": "shapes",
    "files": "files",
}
"""Name in a file, where each is a dict part → value → field of `PartRecord`."""
_MOST_DIMENSIONS = 8
_MOST_VALUES = 2**31


@dataclass(frozen=True)
class PartRecord:
    """What the dry run finds out about one part."""

    sizes: dict[str, Any] = field(default_factory=dict)  # arguments that its options leave out
    stages: Stages = field(default_factory=lambda: {"all": ["*"]})
    output: str | int | None = None  # key or position in what the module returns; None if that is the output
    pool: str | None = None  # how the output becomes features; None if the part feeds no fusion and no head
    scale: dict[str, list[float]] | None = None  # arguments of `Normalize`; None if images pass as they are
    shapes: dict[str, list[int]] | None = None  # of tensors that get theirs from the first batch; None without any
    files: str | None = None  # how the features of several files per sample are pooled; None if it reads no such


@dataclass(frozen=True)
class NetworkRecord:
    """What the dry run finds out about a network."""

    parts: dict[str, PartRecord]  # also of the fusion and the heads
    fixed: list[str] = field(default_factory=list)  # names of the parameters that never train, sorted
    absent: list[str] = field(default_factory=list)  # parts that feed the fusion and that samples may lack
    selection: dict[str, int] = field(default_factory=dict)  # part that votes in what is served → its features

    def plain(self) -> dict[str, Any]:
        """As plain data, for checkpoints: a dict part → value per field, without those that are None."""
        plain: dict[str, Any] = {}
        for name, field_name in _OF_PARTS.items():
            values = {part: getattr(record, field_name) for part, record in self.parts.items()}
            plain[name] = {part: value for part, value in values.items() if value is not None}
        plain |= {"fixed": self.fixed, "absent": self.absent}
        return {**plain, "selection": self.selection} if self.selection else plain

    @classmethod
    def parse(cls, given: Any) -> Self:
        """Reads what `plain` has written, which may come from a stranger's file."""
        of_parts: dict[str, dict[str, Any]] = {}
        for name, field_name in _OF_PARTS.items():
            for part, value in _dict(_dict(given, "").get(name, {}), name).items():
                if not _fits(field_name, value):
                    raise _damaged(f"{name}.{part}", value)
                of_parts.setdefault(part, {})[field_name] = value
        # absent in a file means that there are none
        lists = {}
        for name in ("fixed", "absent"):
            lists[name] = given.get(name, [])
            if not _are_texts(lists[name]):
                raise _damaged(name, lists[name])
        selection = dict(_dict(given.get("selection", {}), "selection"))
        if not all(_is_shape([size]) for size in selection.values()):
            raise _damaged("selection", selection)
        return cls({part: PartRecord(**fields) for part, fields in of_parts.items()}, **lists, selection=selection)


def _fits(field_name: str, value: Any) -> bool:
    """Whether a value from a file has the type of its field."""
    # the numbers in the rest are checked by the factory, or by torch
    if field_name == "output":
        return isinstance(value, str | int | None)
    if field_name == "pool":
        return value in POOLS
    if field_name == "files":
        return value in FILES_POOLS
    if not isinstance(value, Mapping) or not _are_texts(list(value)):
        return False
    if field_name == "stages":
        return bool(value) and all(map(_are_texts, value.values()))
    if field_name == "shapes":
        return all(map(_is_shape, value.values()))
    return field_name != "scale" or _is_scale(value)


def _is_shape(value: Any) -> bool:
    """Whether it is a shape of at most 2³¹ values."""
    are_sizes = isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)
    return are_sizes and len(value) <= _MOST_DIMENSIONS and math.prod(value) <= _MOST_VALUES


def _is_scale(value: Mapping[str, Any]) -> bool:
    """Whether there are as many deviations above 0 as means, all finite."""
    mean, std = value.get("mean"), value.get("std")
    if set(value) != {"mean", "std"} or not isinstance(mean, list) or not isinstance(std, list):
        return False
    are_numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in [*mean, *std])
    return are_numbers and len(mean) == len(std) > 0 and min(std) > 0


def _dict(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not _are_texts(list(value)):
        raise _damaged(place, value)
    return value


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _damaged(place: str, value: Any) -> ConfigError:
    return ConfigError(f"the record of the network is damaged: {value!r:.100}. Use another checkpoint.", place)
