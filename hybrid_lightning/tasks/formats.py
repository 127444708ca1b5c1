"""Formats of checkpoints: today's, and how those of former releases become it."""

from collections.abc import Mapping
from typing import Any

from hybrid_lightning.errors import RENAMED, ConfigError
from hybrid_lightning.network.registry import registered_name
from hybrid_lightning.tasks.init_from import OBJECTIVE

CHECKPOINT_KEY = "hybrid_lightning"
CHECKPOINT_VERSION = 5
READABLE = (3, 4, 5)
"""Older formats among these are translated, see `translated`; 1 and 2 were never released."""
_PACKAGE = __name__.partition(".")[0]
_PLAIN = (bool, int, float, str, type(None))
_PART_HEADS = "part_heads"
"""In formats 3 and 4 the heads of single parts, as if they were one more part."""
_NAMING_PARTS = (CHECKPOINT_KEY, "state_dict", "current_model_state", "callbacks", "exact_resume")
"""Entries of a checkpoint in which the heads of parts are named."""
Saved = dict[str, Any]


def is_ours(checkpoint: Saved) -> bool:
    """Whether a task of this program has added something to a checkpoint."""
    saved = checkpoint.get(CHECKPOINT_KEY)
    return isinstance(saved, dict) and "version" in saved


def translated(checkpoint: Saved) -> Saved:
    """A checkpoint of a former format as one of today's; any other as it is.

    What is damaged is left to whoever reads it.
    """
    if not is_ours(checkpoint):
        return checkpoint
    other = _first_not_plain(checkpoint[CHECKPOINT_KEY], CHECKPOINT_KEY)
    if other is not None:
        raise ConfigError(f"the checkpoint is damaged: {other!r} is not plain. Use another checkpoint of the run.")
    if checkpoint[CHECKPOINT_KEY]["version"] == 3:
        checkpoint = _from_3(checkpoint)
    if checkpoint[CHECKPOINT_KEY]["version"] == 4:
        checkpoint = _from_4(checkpoint)
    return checkpoint


def _first_not_plain(value: Any, path: str) -> str | None:
    """Path of the first value, or name, that is neither a number, a text nor nothing; a list or dict may hold such."""
    if isinstance(value, Mapping):
        if not all(isinstance(name, _PLAIN) for name in value):
            return path
        entries = list(value.items())
    elif isinstance(value, list | tuple):
        entries = list(enumerate(value))
    else:
        return None if isinstance(value, _PLAIN) else path
    for name, entry in entries:
        found = _first_not_plain(entry, f"{path}.{name}")
        if found is not None:
            return found
    return None


def _from_3(checkpoint: Saved) -> Saved:
    """Format 3 as format 4.

    It had other names of options (`RENAMED`), module paths where there are registered names now, ``facts`` for
    ``settings``, and the scale of a regression beside its objective.
    """
    saved = dict(checkpoint[CHECKPOINT_KEY])
    saved["version"] = 4
    task, parts = saved.get("task"), saved.get("parts")
    if isinstance(task, str) and task.startswith(f"{_PACKAGE}."):
        saved["task"] = task.rpartition(".")[2]
    if "facts" in saved:
        saved["settings"] = _with_new_keys(saved.pop("facts"))
    if isinstance(parts, Mapping):
        saved["parts"] = {name: _part(options) for name, options in parts.items()}
    saved["fusion"] = _part(saved.get("fusion"))
    network = saved.get("network")
    if isinstance(network, Mapping) and isinstance(network.get("sizes"), Mapping):
        sizes = {name: _with_new_keys(of_part) for name, of_part in network["sizes"].items()}
        saved["network"] = {**network, "sizes": sizes}
    tensors = {}
    for key in ("state_dict", "current_model_state"):
        if isinstance(checkpoint.get(key), Mapping):
            tensors[key] = {_with_objective(name): tensor for name, tensor in checkpoint[key].items()}
    return {**checkpoint, CHECKPOINT_KEY: saved, **tensors}


def _with_objective(name: Any) -> Any:
    return f"{OBJECTIVE}{name}" if isinstance(name, str) and name.startswith("scale.") else name


def _part(options: Any) -> Any:
    """The options of a part by their names of today; anything that is damaged as it is."""
    if not isinstance(options, Mapping):
        return options
    part = dict(_with_new_keys(options))
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


def _from_4(checkpoint: Saved) -> Saved:
    """Format 4 as format 5, without the heads of single parts: nothing else depended on them."""
    found = dict(checkpoint)
    for key in _NAMING_PARTS:
        if key in found:
            found[key] = _without_part_heads(found[key])
    found[CHECKPOINT_KEY]["version"] = 5
    states = found.get("optimizer_states")
    if isinstance(states, list):
        found["optimizer_states"] = [_without_their_group(state) for state in states]
    return found


def _without_part_heads(value: Any) -> Any:
    """Nested dicts without what is called by the heads of parts: settings, records, groups and tensors."""
    if not isinstance(value, Mapping):
        return value
    left = {}
    for name, entry in value.items():
        path = str(name).removeprefix("network.parts.")
        part = path.replace("/", ".").partition(".")[0]  # of a tensor or of a group
        if part != _PART_HEADS:
            left[name] = _without_part_heads(entry)
    return left


def _without_their_group(state: Any) -> Any:
    """An optimizer's state without the groups of the heads of parts."""
    if not isinstance(state, Mapping) or not isinstance(state.get("param_groups"), list):
        return state
    groups, dropped = [], set()
    for group in state["param_groups"]:
        if isinstance(group, Mapping) and group.get("part") == _PART_HEADS:
            dropped.update(group.get("params", ()))
        else:
            groups.append(group)
    # they stood last, so that the numbers of all other parameters stay
    own = {index: entry for index, entry in state.get("state", {}).items() if index not in dropped}
    return {**state, "state": own, "param_groups": groups}
