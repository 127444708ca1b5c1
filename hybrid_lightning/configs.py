"""Config files: several merge deeply, and a path in one is looked up beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hybrid_lightning.errors import ConfigError


def read_config(path: str | Path) -> dict[str, Any]:
    """One YAML file as a dict; relative paths of weights that exist beside the file become absolute.

    Raises:
        ConfigError: If the file is missing or is not a YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"--config: there is no file {str(path)!r}.")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {str(path)!r} is not valid YAML: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"--config: {str(path)!r} holds no keys and values at its top level.")
    _anchor_weights(config, path.resolve().parent)
    return config


def _anchor_weights(config: Mapping[str, Any], folder: Path) -> None:
    model = config.get("model")
    init_args = model.get("init_args") if isinstance(model, Mapping) else None
    parts = init_args.get("parts") if isinstance(init_args, Mapping) else None
    for part in parts.values() if isinstance(parts, Mapping) else ():
        weights = part.get("weights") if isinstance(part, dict) else None
        if isinstance(weights, str) and weights != "pretrained" and (folder / weights).is_file():
            part["weights"] = str(folder / weights)


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`, key by key at every depth; lists and values replace.

    Where the overlay names another class or module, that one's old arguments are dropped with it.
    """
    merged = dict(base)
    for kind, arguments in (("class_path", "init_args"), ("module", "args")):
        if kind in overlay and base.get(kind, overlay[kind]) != overlay[kind]:
            merged.pop(arguments, None)
    for key, value in overlay.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def merged_arguments(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with all ``--config`` files merged to one, in the place of the first.

    Raises:
        ConfigError: If a file cannot be read.
    """
    rest: list[str] = []
    paths: list[str] = []
    position = 0
    waiting = iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c"):
            position = len(rest) if not paths else position
            path = value if equals else next(waiting, "")
            paths.append(path)
        else:
            rest.append(argument)
    if not paths:
        return rest
    config: dict[str, Any] = {"name": Path(paths[0]).stem}
    for path in paths:
        config = merge(config, read_config(path))
    return [*rest[:position], "--config", yaml.safe_dump(config, sort_keys=False), *rest[position:]]
