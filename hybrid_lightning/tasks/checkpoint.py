"""What a task adds to a checkpoint, and how it is read back without running anything from the file."""

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import RENAMED, ConfigError, listing, unknown
from hybrid_lightning.network.registry import registered_name
from hybrid_lightning.weights.safe_files import peek, read_file

CHECKPOINT_KEY = "hybrid_lightning"
CHECKPOINT_VERSION = 4
"""Format 3 is translated, see `translated`; 1 and 2 were never released."""
_PACKAGE = __name__.partition(".")[0]
Task = TypeVar("Task")


def read_checkpoint(
    path: Any, where: str = "checkpoint_path", tensors: bool = True
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a task added to a checkpoint, and the weights.

    Args:
        path: The file; of a sharded checkpoint, the folder.
        where: Name of the setting, for errors.
        tensors: Whether the weights are read; if not, what is returned of them is not to be used.

    Raises:
        ConfigError: If the file is broken, holds code, or was not written by a task of this version.
    """
    checkpoint = read_file(path, where, without=("optimizer_states",)) if tensors else peek(path, where)
    saved = checkpoint.get(CHECKPOINT_KEY)
    wanted = {"version", "task", "facts", "parts", "fusion", "network"}
    if not isinstance(saved, dict) or not wanted <= saved.keys() or "state_dict" not in checkpoint:
        raise ConfigError(f"{where}: {str(path)!r} was not written by a task of this program.")
    if saved["version"] not in (3, CHECKPOINT_VERSION):
        is_old = saved["version"] in (1, 2)
        remedy = "It is of before the first release; train anew." if is_old else "Install a newer hybrid_lightning."
        raise ConfigError(
            f"{where}: {str(path)!r} has format {saved['version']}; this program reads {CHECKPOINT_VERSION}. {remedy}"
        )
    return translated(saved), checkpoint["state_dict"]


def task_name(task: type) -> str:
    """How a checkpoint names a task: a class of this package by its name, any other by its dotted path."""
    if task.__module__.partition(".")[0] == _PACKAGE:
        return task.__name__
    return f"{task.__module__}.{task.__qualname__}"


def translated(saved: dict[str, Any]) -> dict[str, Any]:
    """What a task added to a checkpoint, in the words of this version.

    Format 3 had other names of options (`RENAMED`), and module paths where there are registered names now.

    Args:
        saved: Not changed in place; what is damaged is left to whoever reads it.
    """
    task, parts = saved.get("task"), saved.get("parts")
    named = dict(saved)
    if isinstance(task, str) and task.startswith(f"{_PACKAGE}."):
        named["task"] = task.rpartition(".")[2]
    if isinstance(parts, Mapping):
        named["parts"] = {name: _part(facts) for name, facts in parts.items()}
    named["fusion"] = _part(saved.get("fusion"))
    named["facts"] = _with_new_keys(saved.get("facts"))
    network = saved.get("network")
    if isinstance(network, Mapping) and isinstance(network.get("sizes"), Mapping):
        sizes = {name: _with_new_keys(of_part) for name, of_part in network["sizes"].items()}
        named["network"] = {**network, "sizes": sizes}
    return named


def _part(facts: Any) -> Any:
    """The options of a part by their names of today; anything that is damaged as it is."""
    if not isinstance(facts, Mapping):
        return facts
    part = dict(_with_new_keys(facts))
    if isinstance(part.get("module"), str):
        part["module"] = registered_name(part["module"])
    if "norm" in part:
        mode = part.pop("norm")
        part["batch_norm"] = RENAMED.get(mode, mode) if isinstance(mode, str) else mode
    part["args"] = _with_new_keys(part.get("args"))
    return part


def _with_new_keys(options: Any) -> Any:
    """A dict whose keys are spelled as today; anything else as it is. ``norm`` is also an argument of modules."""
    if not isinstance(options, Mapping):
        return options
    return {key if key == "norm" else RENAMED.get(key, key): value for key, value in options.items()}


def refuse_other_model(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], where: str = "--ckpt_path") -> None:
    """Compares the names and shapes of a model's tensors with those of a checkpoint.

    Raises:
        ConfigError: If they differ.
    """
    sentences = other_tensors(own, saved)
    if sentences:
        raise ConfigError(
            f"{where}: the checkpoint is of another model. {' '.join(sentences)} Use the config of its run "
            f"(config.yaml in its folder), or modules of the same architecture."
        )


def other_tensors(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> list[str]:
    """Sentences that say how the names and shapes of two models' tensors differ; none if they are equal."""
    other = [f"{name} {tuple(t.shape)}" for name, t in own.items() if name in saved and saved[name].shape != t.shape]
    missing, surplus = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    kinds = {"Missing in it": missing, "Only in it": surplus, "Of another shape here": other}
    return [f"{kind}: {listing(names, 4)}." for kind, names in kinds.items() if names]


def require_plain(value: Any, where: str) -> None:
    """Raises `ConfigError` if a fact is not plain data, so that a checkpoint could not hold it."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            require_plain(entry, f"{where}.{key}")
    elif isinstance(value, list | tuple | set):
        for entry in value:
            require_plain(entry, where)
    elif type(value) not in (type(None), bool, int, float, str, torch.dtype):
        raise ConfigError(
            f"{where}: {str(value)[:80]!r} is a {type(value).__name__}, which a checkpoint cannot hold. Give numbers, "
            f"text, lists or dicts of them; or pass the whole part as a live module: {{module: MyNet(...)}}."
        )


def require_all_facts(task: type, base: type, facts: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if an argument of a task's constructors is missing in its facts and would be lost."""
    constructors = [cls.__init__ for cls in task.__mro__ if issubclass(cls, base)]
    signatures = [inspect.signature(constructor).parameters for constructor in constructors]
    names = {
        n for parameters in signatures for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    missing = sorted(names - {"self", "parts", "fusion", "pretrained", "untrained"} - facts.keys())
    if missing:
        raise ConfigError(
            f"{task.__name__}: a checkpoint would lose {listing(missing)}. After super().__init__, write for each: "
            f"self.facts[{missing[0]!r}] = {missing[0]}."
        )


def group_names(module: nn.Module, groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Group name → names of its parameters in `module`."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]] for group in groups}


def concrete_subclasses(cls: type[Task]) -> list[type[Task]]:
    """The class and its subclasses that exist already, without abstract ones: nothing is imported for a file."""
    found = [] if inspect.isabstract(cls) else [cls]
    for child in cls.__subclasses__():
        found += concrete_subclasses(child)
    return found


def with_live_modules(parts: Mapping[str, Any], live: Mapping[str, nn.Module]) -> dict[str, Any]:
    """The saved facts, completed by the modules that could not be saved as facts."""
    for name in live:
        if name not in parts:
            raise unknown("parts", "part", name, parts)
    missing = [name for name, facts in parts.items() if "module" not in facts and name not in live]
    if missing:
        example = ", ".join(f"{name!r}: module" for name in missing)
        raise ConfigError(
            f"checkpoint_path: {listing(missing)} were live modules when the model was made, so it cannot rebuild "
            f"them. Pass modules of the same architecture: load_from_checkpoint(path, parts={{{example}}})."
        )
    return {name: {**facts, **({"module": live[name]} if name in live else {})} for name, facts in parts.items()}
