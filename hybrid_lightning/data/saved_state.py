"""The form of what a checkpoint keeps of a manifest's data, checked before anything of it is used."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.numpy_files import refuse_huge
from hybrid_lightning.data.target import KINDS, TRANSFORMS
from hybrid_lightning.errors import ConfigError, at

_SMALLEST = torch.finfo(torch.float32).tiny  # what is divided by less becomes infinite
_LARGEST = 2**40  # number of an option
_DTYPES = ("float32", "float64", "uint8", "int64", "bool")


def check_state(state: Mapping[str, Any]) -> None:
    """Raises `ConfigError` unless all values have the types that a run writes."""
    inputs, target = state.get("inputs"), state.get("target")
    _require(isinstance(inputs, dict), "inputs", "not a mapping")
    _require(_are_texts(state.get("incomplete")), "incomplete", "not a list of names")
    for key, known in state["inputs"].items():
        with at(f"inputs.{key}"):
            _require(isinstance(known, dict), "", "not a mapping")
            _require(_are_texts(known.get("columns")), "columns", "not a list of names")
            _require(isinstance(known.get("statistics"), dict), "statistics", "not a mapping")
            _check_shape(known.get("shape"))
            _check_options(known.get("options", {}))
    for name in ("id", "groups"):
        _require(isinstance(state.get(name), str | None), name, "not the name of a column")
    if target is not None:
        is_target = isinstance(target, dict) and target.get("kind") in KINDS and _are_texts(target.get("names"))
        _require(is_target, "target", "without a kind and names")
        _require(target.get("transform") in (None, *TRANSFORMS), "target.transform", "not a known one")


def check_statistics(entry: Input, statistics: Mapping[str, Any]) -> None:
    """Raises `ConfigError` unless statistics are what `Input.fit` gives: finite numbers, positive scales, names."""
    with at(f"{entry.where}: the checkpoint's statistics"):
        for name, value in statistics.items():
            if name in ("mean", "std"):
                numbers = list(value.values()) if isinstance(value, dict) else value
                _require(
                    _are_numbers(numbers, positive=name == "std"), name, "not a finite number per column or channel"
                )
            elif name == "categories":
                is_known = isinstance(value, dict) and all(map(_are_names, value.values()))
                _require(is_known, name, "not a list of different names per column")
            elif name == "length":
                _require(type(value) is int and value > 0, name, "not a number of words")
            elif name == "words":
                _require(_are_names(value), name, "not a list of different words")
                most = getattr(entry, "vocabulary", math.inf)
                _require(len(value) <= most, name, f"{len(value)}, more than the option vocabulary, {most}")


def _require(is_right: bool, place: str, what: str) -> None:
    if not is_right:
        raise ConfigError(f"damaged: {what}. Use another checkpoint of the run.", place)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _are_names(values: Any) -> bool:
    return _are_texts(values) and len(set(values)) == len(values) > 0


def _are_numbers(values: Any, positive: bool) -> bool:
    if not isinstance(values, list) or not values:
        return False
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
    return not positive or min(values) > _SMALLEST


def _check_options(options: Any) -> None:
    """Raises `ConfigError` unless they are plain, and none makes a sample that does not fit into memory."""
    _require(isinstance(options, dict) and _are_texts(list(options)), "options", "not names and values")
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        is_plain = all(isinstance(one, str | int | float | None) for one in values)
        is_nested = name == "eval" and isinstance(value, list)
        _require((is_nested or is_plain) and name != "train", f"options.{name}", "not plain data for new samples")
        numbers = [one for one in values if isinstance(one, int | float)]
        _require(all(abs(one) <= _LARGEST for one in numbers), f"options.{name}", "not a finite number")
        if name == "size" and isinstance(value, int):  # of each side
            numbers = [value] * (3 if "volume" in options else 2)
        if name == "seconds" and numbers:
            numbers = [value, options.get("sample_rate") or 1]
        try:
            refuse_huge(int(math.prod(numbers)) * torch.float32.itemsize)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"damaged: {error}.", f"options.{name}") from None


def _check_shape(shape: Any) -> None:
    """Raises `ConfigError` unless it is that of a tensor, or of several by name, that fit into memory."""
    if shape is None:
        return
    _require(isinstance(shape, dict), "shape", "not a mapping")
    for one in [shape] if isinstance(shape.get("shape"), list) else shape.values():
        is_tensor = isinstance(one, dict) and one.get("dtype") in _DTYPES and isinstance(one.get("shape"), list)
        sides = one["shape"] if is_tensor else [None]
        _require(all(type(side) is int and side >= 0 for side in sides), "shape", "not the shape of a tensor")
        try:
            refuse_huge(math.prod(sides) * getattr(torch, one["dtype"]).itemsize)
        except ValueError as error:
            raise ConfigError(f"damaged: {error}.", "shape") from None
