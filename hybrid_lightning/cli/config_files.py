"""Config files: several merge deeply, flags reach into them, and a path in one is looked up beside it."""

import contextlib
import copy
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import yaml

from hybrid_lightning.cli.parser_errors import refuse_missing_class, refuse_no_mapping
from hybrid_lightning.errors import ConfigError, at, check_keys, listing, reason, unknown
from hybrid_lightning.files import exists, is_folder, is_regular_file
from hybrid_lightning.gradients import clipping_rule
from hybrid_lightning.network.part import implied_origin
from hybrid_lightning.network.registry import registered_name
from hybrid_lightning.optim.factory import torch_classes
from hybrid_lightning.tasks.losses import LOSSES, TORCH_LOSSES
from hybrid_lightning.unfreezing import schedule

_MOST_NODES = 100_000  # values of a config with its aliases written out
_MOST_BITS = 256  # of a whole number
_LARGEST = 16 * 2**20  # bytes
_TABLES = (".csv", ".tsv", ".parquet", ".xlsx")
_RECIPES = Path(__file__).parents[1] / "recipes"


class _Loader(yaml.SafeLoader):
    """YAML without the two surprises of PyYAML: ``1e-3`` is a number, and a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    problem = f"the key {key_node.value!r} stands twice; remove one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if number.bit_length() > _MOST_BITS:  # more than a float can hold overflows wherever one is made of it
            raise yaml.constructor.ConstructorError(None, None, "a number is too large", node.start_mark)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """The content of a YAML text; whatever is wrong with it is a `YAMLError`."""
    try:
        _check_size(yaml.compose(text, _Loader))
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        # the text has no name here; who knows the file names it
        raise yaml.YAMLError(str(error).replace('in "<unicode string>", ', "in ")) from None
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except Exception as error:  # PyYAML raises any for a date, number or flag that is none
        raise yaml.YAMLError(f"it holds a value that cannot be read: {reason(error)}") from None


def _check_size(root: yaml.Node | None) -> None:
    """Raises `YAMLError` if aliases would make a text much larger than it is, or endless."""
    sizes: dict[int, int] = {}  # of a node with all below it, by its identity; 0 while it is counted

    def size_of(node: yaml.Node | None) -> int:
        if isinstance(node, yaml.ScalarNode) and "&" in node.value and "*" in node.value:
            # the parser reads a text in the place of another value as YAML once more
            with contextlib.suppress(yaml.MarkedYAMLError, yaml.reader.ReaderError):
                _check_size(yaml.compose(node.value, _Loader))
        if not isinstance(node, yaml.CollectionNode):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = 0
            children = node.value if isinstance(node, yaml.SequenceNode) else chain.from_iterable(node.value)
            sizes[id(node)] = 1 + sum(map(size_of, children))
        if not sizes[id(node)]:
            raise yaml.YAMLError("an alias stands within what it names")
        return sizes[id(node)]

    if size_of(root) > _MOST_NODES:
        raise yaml.YAMLError(f"with its aliases it holds more than {_MOST_NODES} values")


def read_yaml_file(path: Path, place: str) -> Any:
    """The content of a YAML file; whatever is wrong with it is a `ConfigError`."""
    if path.stat().st_size > _LARGEST:
        raise ConfigError(f"{str(path)!r} is larger than {_LARGEST >> 20} MiB; it is not a config.", place)
    try:
        return read_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{str(path)!r} is not valid YAML: {str(error)[:500]}", place) from None


def read_config(path: str | Path, flag: str = "--config") -> dict[str, Any]:
    """One YAML file as a dict; relative paths of weights and data that exist beside the file become absolute."""
    path = Path(path)
    if not is_regular_file(path):
        path = recipes().get(str(path), path)
    _refuse_data(path, flag)
    if not is_regular_file(path):
        known = "" if path.suffix else f" Recipes: {listing(recipes(), 20)}."
        raise ConfigError(f"there is no file {str(path)[:300]!r}.{known}", flag)
    config = read_yaml_file(path, flag)
    if not isinstance(config, dict):
        raise ConfigError(f"{str(path)!r} holds no keys and values at its top level.", flag)
    _anchor_paths(config, path.resolve().parent)
    return config


def _refuse_data(path: Path, flag: str) -> None:
    """Raises `ConfigError` for a folder, or for a table, in the place of a config."""
    if is_folder(path):
        kind, words = "folder", ""
    elif path.suffix.lower() in _TABLES and is_regular_file(path):
        kind, words = "table", " --target COLUMN"
    else:
        return
    raise ConfigError(
        f"{str(path)[:300]!r} is a {kind}, not a config. If it holds your data, write a first config with: "
        f"init {str(path)[:300]}{words} --output mine.yaml",
        flag,
    )


def recipes() -> dict[str, Path]:
    """Name → file of each recipe that comes with the package."""
    return {path.stem: path for path in sorted(_RECIPES.glob("*.yaml"))}


def _anchor_paths(config: Mapping[str, Any], folder: Path) -> None:
    """Makes paths absolute: ``weights`` of each part and ``init_from``, as text or under ``path``; those of the data.

    Data are looked for in the working directory first.
    """
    init_args = mapping_at(config, "model", "init_args")
    for part in mapping_at(init_args, "parts").values():
        _anchor(part, "weights", folder)
    _anchor(init_args, "init_from", folder)
    of_data = mapping_at(config, "data", "init_args")
    for key in ("path", "predict_path", "root", "statistics"):
        given = of_data.get(key)
        if not (isinstance(given, str) and exists(given)):
            _anchor(of_data, key, folder)


def _anchor(owner: Any, key: str, folder: Path) -> None:
    given = owner.get(key) if isinstance(owner, dict) else None
    if isinstance(given, dict):
        _anchor(given, "path", folder)
    elif isinstance(given, str) and given.startswith("~/"):
        owner[key] = str(Path(given).expanduser())
    elif isinstance(given, str) and given != "pretrained" and exists(folder / given):
        owner[key] = str(folder / given)


def mapping_at(config: Any, *keys: str) -> dict[str, Any]:
    """The mapping under nested keys; an empty one if something else stands there, which the parser refuses later."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config if isinstance(config, dict) else {}


# Merging

_ARGUMENTS = {"class_path": "init_args", "module": "args"}
"""What names a class → the arguments that belong to this class alone."""
_FORMS = {"unfreeze": schedule.FORMS, "clip": clipping_rule.METHODS}
"""Option of a part → keys that only one of its forms has."""


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any], are_flags: bool = False) -> dict[str, Any]:
    """`overlay` over `base`, key by key at every depth; lists and values replace; of flags, stages add up."""
    # where the overlay names another class or module, that one's old arguments are dropped with it; so is a schedule or
    # a limit where the overlay gives one of another form
    merged = dict(base)
    for kind, arguments in _ARGUMENTS.items():
        if kind in overlay and kind in base and base[kind] != overlay[kind]:
            merged.pop(arguments, None)
    for key, value in overlay.items():
        old = merged.get(key)
        # lists replace, because their entries have no names by which they could be matched
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            new_keys = value.keys() - old.keys()
            is_of_another_form = not new_keys.isdisjoint(_FORMS.get(key, ()))
            # the first pattern that fits counts, so that one behind an old '*' would mean nothing
            are_other_stages = key == "stages" and not are_flags and bool(new_keys or "*" in value)
            merged[key] = value if is_of_another_form or are_other_stages else merge(old, value, are_flags)
        else:
            merged[key] = value
    return merged


def overlaid(config: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` over a config; what it says of all parts of an origin beats what the config says of one of them."""
    config = copy.deepcopy(dict(config))
    stated = mapping_at(overlay, "model", "init_args")
    arguments = mapping_at(config, "model", "init_args")
    merged = mapping_at(merge(config, overlay), "model", "init_args")
    earlier = {**mapping_at(arguments, "parts"), "fusion": arguments.get("fusion")}
    later = {**mapping_at(merged, "parts"), "fusion": merged.get("fusion")}
    for name, part in earlier.items():
        if isinstance(part, dict) and isinstance(later.get(name), dict):
            for option in mapping_at(stated, origin_in(later[name])):
                part.pop(option, None)
    return merge(config, overlay)


def origin_in(part: Mapping[str, Any]) -> str:
    """The origin of a part by its options in a config."""
    module = part.get("module")
    named = registered_name(module) if isinstance(module, str) else None
    return str(part.get("origin") or implied_origin(named, part.get("weights")))


def merged_arguments(arguments: Sequence[str], overlay: Mapping[str, Any] | None = None) -> list[str]:
    """Command-line arguments with all ``--config`` files merged to one, before the flags, which therefore beat it."""
    config, overlays, rest = _sorted_words(arguments)
    flags: dict[str, Any] = {}
    for one in overlays:
        flags = merge(flags, one, are_flags=True)
    _refuse_unknown_part(config, flags)
    config = overlaid(overlaid(config, flags), overlay or {})
    if not config:
        return rest
    for section in ("model", "data"):
        content = config.get(section)
        is_flag = any(re.match(rf"--{section}(=|\.class_path|$)", word) for word in rest)
        if isinstance(content, dict) and content and not is_flag:
            refuse_missing_class(section, content)
    _complete_names(config)
    _fit_to_parser(config)
    text = yaml.safe_dump(config, sort_keys=False)
    # without a file the flags name the classes, whose arguments have to follow
    return ["--config", text, *rest] if "name" in config else [*rest, "--config", text]


def _sorted_words(arguments: Sequence[str]) -> tuple[dict[str, Any], list[Mapping[str, Any]], list[str]]:
    """The files of ``--config``, merged; what flags put over them; and the other words."""
    # flags that reach into a dict of the model or the data are merged over the files, because jsonargparse would
    # replace the whole dict
    config: dict[str, Any] = {}
    overlays: list[Mapping[str, Any]] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for word in waiting:
        flag, equals, value = word.partition("=")
        is_config = flag in ("--config", "-c")
        reaches_in = flag.startswith(("--model.", "--data."))
        own_words = [word]
        # the flag and its value may be one word or two
        if (is_config or reaches_in) and not equals:
            own_words += islice(waiting, 1)
            if len(own_words) == 1:
                raise ConfigError("its value is missing, at the end of the command.", flag)
            value = own_words[-1]
        if is_config:
            config = overlaid(config or {"name": Path(value).stem}, read_config(value))
        elif reaches_in and (from_flag := _overlay_of(flag, value)):
            overlays.append(from_flag)
        else:
            rest += own_words
    return config, overlays, rest


def _overlay_of(flag: str, value: str) -> dict[str, Any] | None:
    """A flag that reaches into a dict, ``--model.parts.image.lr_scale 0.5``, as an overlay; None for any other."""
    section, *keys = flag.removeprefix("--").split(".")
    if keys[:1] == ["init_args"]:
        keys = keys[1:]
    if not keys or keys[0] in ("class_path", "dict_kwargs", "help"):
        return None
    try:
        overlay = read_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{value!r} is not valid YAML: {error}", flag) from None
    if flag.endswith("+") or (len(keys) == 1 and not isinstance(overlay, dict)):
        return None
    for key in reversed(keys):
        overlay = {key: overlay}
    return {section: {"init_args": overlay}}


def _refuse_unknown_part(config: Mapping[str, Any], overlay: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if a flag sets options of a part that the files do not have, as a misspelled name does."""
    known = mapping_at(config, "model", "init_args", "parts")
    for name, part in mapping_at(overlay, "model", "init_args", "parts").items():
        may_be_meant = name in (*known, "head") or not known
        if not may_be_meant and isinstance(part, dict) and part.keys().isdisjoint(("module", "args", "share")):
            raise unknown("model.parts", "part", name, known)


def _complete_names(config: Mapping[str, Any]) -> None:
    """Writes the names of torch's optimizers and schedulers, and of losses, in full, as the parser needs them."""
    arguments = mapping_at(config, "model", "init_args")
    for key, namespace in (("optimizer", torch.optim), ("scheduler", torch.optim.lr_scheduler)):
        prefix = f"{namespace.__name__}."
        with at(f"model.{key}"):
            _complete(arguments.get(key), "class", prefix, torch_classes(namespace))
    with at("model.loss_function"):
        spec = arguments.get("loss_function")
        path = spec.get("class_path") if isinstance(spec, dict) else None
        package = "torch.nn." if path in TORCH_LOSSES else "hybrid_lightning."
        _complete(spec, "loss", package, [*LOSSES, *TORCH_LOSSES])


def _complete(spec: Any, kind: str, prefix: str, known: Collection[str]) -> None:
    """Puts `prefix` before the name of a known class; a dotted path stays as it is."""
    path = spec.get("class_path") if isinstance(spec, dict) else None
    if not isinstance(path, str):
        return
    name = path.removeprefix(prefix)
    if "." not in name:
        check_keys([name], known, "class_path", kind)
        spec["class_path"] = prefix + name


def _fit_to_parser(config: dict[str, Any]) -> None:
    """Changes what jsonargparse would misread."""
    for section in ("trainer", "checkpoint"):
        refuse_no_mapping(config.get(section), section)
        if config.get(section, "absent") is None:  # all of its keys are commented out
            del config[section]
    for section in ("model", "data"):
        content = mapping_at(config, section)
        for key in ("class_path", "init_args"):
            # null would be read as a value of this key, without the hint at what has to stand there
            if content.get(key, "absent") is None:
                del content[key]
    for section, content in config.items():
        if content == {} and section not in ("trainer", "checkpoint"):
            config[section] = None  # an unknown section that is empty would be skipped
