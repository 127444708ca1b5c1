"""The rows of a comparison, each a config of its own: the config as it is, recipes over it, and baselines from it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_lightning.cli.config_files import mapping_at, origin_in, overlaid, read_config
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.part import parse_parts
from hybrid_lightning.network.wiring import Wiring

AS_IS = "as_is"
"""In place of a recipe: the config without one."""
RIDGE = "ridge"
_OF_PRETRAINED = ("weights", "origin", "unfreeze", "lr_scale", "layer_decay", "l2sp", "adapter", "batch_norm", "clip")
"""Options of a part that protect pretrained weights, or name them."""
Config = dict[str, Any]


class Row(NamedTuple):
    """What is fitted once per seed."""

    name: str  # of its folders
    title: str  # in tables
    config: Config
    is_baseline: bool = False


def rows_of(config: Config, recipes: Sequence[str], baselines: bool) -> list[Row]:
    """The rows of recipes, in their order, then the baselines."""
    rows = [_recipe_row(config, recipe) for recipe in recipes]
    if baselines:
        rows += _baselines(config)
    seen: set[str] = set()
    for row in rows:
        if row.name in seen:
            raise ConfigError(f"two rows would have the name {row.name!r}. Rename one of the files.", "--recipes")
        seen.add(row.name)
    return [row._replace(config=_with_drift(row.config)) for row in rows]


def _recipe_row(config: Config, recipe: str) -> Row:
    if recipe == AS_IS:
        return Row(AS_IS, AS_IS, config)
    name = Path(recipe).stem
    return Row(name, name, overlaid(config, read_config(recipe, "--recipes")))


def _baselines(config: Config) -> list[Row]:
    """Each part alone, pretrained parts at random weights, and ridge regression on all features."""
    rows = []
    parts = _parts_of(config)
    wiring = Wiring(parse_parts(parts))
    if len(wiring.feeding) > 1:
        for name in wiring.feeding:
            row = Row(f"part_{name}", f"{name} alone", _alone(config, name, wiring.needed((), [name])), True)
            rows.append(row)
    if _pretrained(parts):
        rows.append(Row("random_weights", "pretrained parts from random weights", _redrawn(config), True))
    rows.append(Row(RIDGE, "ridge on all features", _without_head(config), True))
    return rows


def _parts_of(config: Config) -> dict[str, dict[str, Any]]:
    """Part → its options; a bare name of a module is one of them."""
    parts = {}
    for name, part in mapping_at(config, "model", "init_args", "parts").items():
        parts[name] = part if isinstance(part, dict) else {"module": part}
    return parts


def _pretrained(parts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [name for name, part in parts.items() if origin_in(part) == "pretrained"]


def _with_parts(config: Config, parts: Mapping[str, dict[str, Any]]) -> Config:
    """A copy of a config with other parts; what would be said of parts that are gone goes, too."""
    changed = copy.deepcopy(config)
    arguments = changed["model"]["init_args"]
    arguments["parts"] = copy.deepcopy(dict(parts))
    if not _pretrained(parts):
        arguments["pretrained"] = None
    renamed = mapping_at(arguments, "init_from", "parts")
    if renamed:
        arguments["init_from"]["parts"] = {new: old for new, old in renamed.items() if new in arguments["parts"]}
    return changed


def _alone(config: Config, name: str, needed: Iterable[str]) -> Config:
    """A part with those that it reads, and the head; without a fusion, because there is nothing to fuse."""
    parts = _parts_of(config)
    kept = {part for part in needed if part in parts} | {name}
    own = {}
    for part, options in parts.items():
        owner = options.get("share")
        if part in kept and owner is not None and owner not in kept:
            own[part] = {**parts[owner], "input": options.get("input") or part}
        elif part in kept or part == "head":
            own[part] = options
    changed = _with_parts(config, own)
    changed["model"]["init_args"]["fusion"] = None
    return changed


def _redrawn(config: Config) -> Config:
    """Pretrained parts begin at random weights, and train like new ones."""
    parts = _parts_of(config)
    for name in _pretrained(parts):
        parts[name] = {key: value for key, value in parts[name].items() if key not in _OF_PRETRAINED}
    changed = _with_parts(config, parts)
    changed["model"]["init_args"]["init_from"] = None
    return changed


def _without_head(config: Config) -> Config:
    """What a closed-form solution on all features is set into."""
    parts = _parts_of(config)
    parts.pop("head", None)
    changed = _with_parts(config, parts)
    changed["model"]["init_args"] |= {"fusion": None, "start": "probe"}
    return changed


def _with_drift(config: Config) -> Config:
    """The same with a callback that logs how far pretrained parts have moved, if there are some."""
    callbacks = config["trainer"].get("callbacks") or []
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    is_there = any("PretrainedDrift" in str(callback) for callback in listed)
    if is_there or not _pretrained(_parts_of(config)):
        return config
    drift = {"class_path": "hybrid_lightning.PretrainedDrift", "init_args": {"reference_samples": 0}}
    return {**config, "trainer": {**config["trainer"], "callbacks": [*listed, drift]}}
