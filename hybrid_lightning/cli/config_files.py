"""Config files: several merge deeply, flags reach into them, and a path in one is looked up beside it."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from hybrid_lightning.errors import ConfigError, unknown
from hybrid_lightning.optim.factory import torch_classes
from hybrid_lightning.tasks.losses import LOSSES


class _Loader(yaml.SafeLoader):
    """YAML without the two surprises of PyYAML: ``1e-3`` is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} stands twice; remove one", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises:
        yaml.YAMLError: If it is not valid, or a key stands twice.
    """
    return yaml.load(text, _Loader)


def read_config(path: str | Path) -> dict[str, Any]:
    """One YAML file as a dict; relative paths of weights that exist beside the file become absolute.

    Raises:
        ConfigError: If the file is missing or is not a YAML mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"--config: there is no file {str(path)!r}.")
    try:
        config = read_yaml(path.read_text(encoding="utf-8"))
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
    owners = [(part, "weights") for part in parts.values()] if isinstance(parts, Mapping) else []
    for owner, key in [*owners, (init_args, "init_from")]:
        given = owner.get(key) if isinstance(owner, dict) else None
        owner, key = (given, "path") if isinstance(given, dict) else (owner, key)
        path = owner.get(key) if isinstance(owner, dict) else None
        if isinstance(path, str) and path != "pretrained" and (folder / path).exists():
            owner[key] = str(folder / path)


_FORMS = {"unfreeze": ("plateau", "start", "stages"), "clip": ("norm", "value", "agc", "zclip")}
"""Facts of a part that have several forms, each told by a key of its own."""


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` over `base`, key by key at every depth; lists and values replace.

    Where the overlay names another class or module, that one's old arguments are dropped with it; so is a schedule or a
    limit where the overlay gives one of another form.
    """
    merged = dict(base)
    for kind, arguments in (("class_path", "init_args"), ("module", "args")):
        if kind in overlay and base.get(kind, overlay[kind]) != overlay[kind]:
            merged.pop(arguments, None)
    for key, value in overlay.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            other_form = any(form in value and form not in old for form in _FORMS.get(key, ()))
            merged[key] = value if other_form else merge(old, value)
        else:
            merged[key] = value
    return merged


def _complete_names(config: Mapping[str, Any]) -> None:
    """Writes the names of torch's optimizers and schedulers, and of losses, in full, as the parser knows them."""
    arguments = (config.get("model") or {}).get("init_args") if isinstance(config.get("model"), Mapping) else None
    for key, namespace in (("optimizer", torch.optim), ("scheduler", torch.optim.lr_scheduler)):
        spec = arguments.get(key) if isinstance(arguments, Mapping) else None
        if isinstance(spec, dict) and isinstance(spec.get("class_path"), str):
            name = spec["class_path"].removeprefix(namespace.__name__ + ".")
            if "." not in name and name not in torch_classes(namespace):
                raise unknown(f"model.{key}.class_path", "class", name, torch_classes(namespace))
            spec["class_path"] = name if "." in name else f"{namespace.__name__}.{name}"
    loss = arguments.get("loss_function") if isinstance(arguments, Mapping) else None
    if isinstance(loss, dict) and isinstance(loss.get("class_path"), str) and "." not in loss["class_path"]:
        if loss["class_path"] not in LOSSES:
            raise unknown("model.loss_function.class_path", "loss", loss["class_path"], LOSSES)
        loss["class_path"] = f"hybrid_lightning.{loss['class_path']}"


def _overlay_of(flag: str, value: str) -> dict[str, Any] | None:
    """A flag that reaches into a dict, ``--model.parts.image.lr_scale 0.5``, as an overlay; None for any other."""
    section, *keys = flag.removeprefix("--").split(".")
    keys = keys[1:] if keys[:1] == ["init_args"] else keys
    if section not in ("model", "data") or not keys or keys[0] in ("class_path", "dict_kwargs", "help"):
        return None
    try:
        overlay = read_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag}: {value!r} is not valid YAML: {error}") from None
    if flag.endswith("+") or (len(keys) == 1 and not isinstance(overlay, dict)):
        return None
    for key in reversed(keys):
        overlay = {key: overlay}
    return {section: {"init_args": overlay}}


def merged_arguments(arguments: Sequence[str], overlay: Mapping[str, Any] | None = None) -> list[str]:
    """Command-line arguments with all ``--config`` files merged to one, in the place of the first.

    Flags that reach into a dict of the model or the data are merged over the files, wherever they stand, because
    jsonargparse would replace the whole dict.

    Args:
        arguments: The words of a command.
        overlay: Sections that are merged over all of them.

    Raises:
        ConfigError: If a file or a flag's value cannot be read.
    """
    rest: list[str] = []
    paths: list[str] = []
    overlays: list[Mapping[str, Any]] = []
    position: int | None = None
    waiting = iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c"):
            position = len(rest) if position is None else position
            paths.append(value if equals else next(waiting, ""))
        elif flag.startswith(("--model.", "--data.")):
            given = value if equals else next(waiting, None)
            overlay = None if given is None else _overlay_of(flag, given)
            if overlay is not None:
                overlays.append(overlay)
            else:
                rest += [argument] if equals or given is None else [argument, given]
        else:
            rest.append(argument)
    overlays += [overlay] if overlay else []
    if not paths and not overlays:
        return rest
    config: dict[str, Any] = {"name": Path(paths[0]).stem} if paths else {}
    for overlay in [*map(read_config, paths), *overlays]:
        config = merge(config, overlay)
    _complete_names(config)
    for section in ("trainer", "checkpoint"):
        if config.get(section, 0) is None:  # all of its keys are commented out
            del config[section]
    for section in ("model", "data"):
        for key in ("class_path", "init_args"):
            if isinstance(config.get(section), dict) and config[section].get(key, 0) is None:
                del config[section][key]
    for section in config:
        if config[section] == {} and section not in ("trainer", "checkpoint"):
            config[section] = None  # the parser would skip an unknown section that is empty
    position = len(rest) if position is None else position
    return [*rest[:position], "--config", yaml.safe_dump(config, sort_keys=False), *rest[position:]]
