"""Paths in the states of callbacks: a checkpoint gives scores and file names, the folder is always the run's own."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import is_local
from hybrid_lightning.resume.loop_counters import first_damaged
from hybrid_lightning.trainer import FitCallback
from hybrid_lightning.weights.sharded_files import REST

_NAMES_A_PATH = re.compile(r"(.*_)?(path|dir|dirpath|dirname|folder|file|filename|filepath)s?")

_OF_EARLY_STOPPING = {
    "wait_count": int,
    "stopped_epoch": int,
    "patience": int,
    "best_score": torch.zeros(()),
    "stopping_reason": (type(None), int),  # older versions of Lightning have none
}
"""What the state of `EarlyStopping` has to hold, see `FitCallback.state_form`."""


class _OwnStates(dict[str, Any]):
    """States whose paths have been rebuilt; no file can hold this type, so a second call has nothing left to do."""


def rebuild_paths(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Replaces the paths in the states of callbacks by those in the run's own folder, before any state is restored."""
    # Lightning removes, recursively, what the state of a `ModelCheckpoint` names. Of such a state only scores and file
    # names are kept, and of these only those of files that are there. Collective: call it on every rank.
    states = checkpoint.get("callbacks")
    if states is None or isinstance(states, _OwnStates):
        return
    if not isinstance(states, Mapping):
        raise damaged(f"the states of callbacks should be a dict, not a {type(states).__name__}.")
    own = _OwnStates()
    for key, state in states.items():
        if isinstance(key, str):  # Lightning takes other keys for classes of callbacks
            own[key] = state
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        key = callback.state_key
        if key not in own:
            continue
        if not isinstance(own[key], Mapping):
            raise damaged(f"the state of the callback {key!r} should be a dict, not a {type(own[key]).__name__}.")
        path = first_damaged(own[key], _form_of(callback), f"callbacks.{key}")
        if path is not None:
            raise damaged(f"{path!r} is missing or of another type.")
        if isinstance(callback, EarlyStopping):
            own[key] = _of_early_stopping(callback, own[key])
        rebuild = _of_model_checkpoint if isinstance(callback, ModelCheckpoint) else _of_other
        try:
            own[key] = rebuild(trainer, callback, own[key])
        except RecursionError as error:
            raise damaged(f"the state of the callback {key!r} is nested without end.") from error
    checkpoint["callbacks"] = own


def damaged(problem: str) -> ConfigError:
    """The error for a checkpoint with a problem, a sentence."""
    return ConfigError(f"the checkpoint is damaged: {problem} Use another checkpoint of the run.", "--ckpt_path")


# States


def _form_of(callback: Callback) -> dict[Any, Any]:
    """What the state of a callback has to hold, see `FitCallback.state_form`; empty for those of others."""
    if isinstance(callback, EarlyStopping):
        return _OF_EARLY_STOPPING
    return callback.state_form if isinstance(callback, FitCallback) else {}


def _of_early_stopping(callback: EarlyStopping, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of `EarlyStopping` with the patience of today's config."""
    best = float(state["best_score"])
    beats_all = -math.inf if callback.mode == "min" else math.inf
    if math.isnan(best) or best == beats_all:
        raise damaged(f"the best score of {callback.state_key!r} is {best}, which nothing is better than.")
    return {**state, "patience": callback.patience}


def _of_model_checkpoint(trainer: Trainer, callback: ModelCheckpoint, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state that `ModelCheckpoint` would have, had it saved the files that are there."""
    scores = _scores(state.get("best_k_models"))
    best, last = state.get("best_model_path"), state.get("last_model_path")
    texts = [*scores, best, last]
    own = _own_paths(trainer, callback, texts, state.get("dirpath"))
    kept = {own[path]: score for path, score in scores.items() if path in own}

    # the ranking follows from the scores, as in Lightning
    is_max = callback.mode == "max"
    values = {path: float(score) for path, score in kept.items()}
    highest = max(values, key=values.__getitem__, default="")
    lowest = min(values, key=values.__getitem__, default="")
    best_path = own.get(best, "") if isinstance(best, str) else ""
    if callback.monitor is not None:
        best_path = highest if is_max else lowest
    is_full = callback.save_top_k == -1 or len(kept) >= callback.save_top_k
    kth_path = lowest if is_max else highest
    if not is_full:
        kth_path = ""
    none_yet = torch.tensor(-math.inf if is_max else math.inf)
    ours = {
        "monitor": callback.monitor,
        "dirpath": callback.dirpath,
        "best_k_models": kept,
        "kth_best_model_path": kth_path,
        "kth_value": kept.get(kth_path, none_yet),
        "best_model_path": best_path,
        "best_model_score": kept.get(best_path),
        "last_model_path": own.get(last, "") if isinstance(last, str) else "",
    }
    others = {key: value for key, value in state.items() if key not in ours}
    return {**_of_other(trainer, callback, others), **ours}


def _scores(given: Any) -> dict[str, Tensor]:
    """Path → score, `()`, of those that are numbers."""
    scores = {}
    if isinstance(given, Mapping):
        for path, value in given.items():
            if not isinstance(path, str) or type(value) not in (int, float, Tensor):
                continue
            dtype = value.dtype if isinstance(value, Tensor) else torch.float32
            try:
                score = torch.tensor(float(value), dtype=dtype)  # in memory of its own
            except (RuntimeError, TypeError, ValueError, OverflowError):  # many values, or none: nested, meta, ...
                continue
            if not math.isnan(float(value)):
                scores[path] = score
    return scores


def _of_other(trainer: Trainer, callback: Callback, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of any callback; what stands under the name of a path is one of our files, or what it has itself."""
    texts: list[str | bytes] = []
    _with_paths(state, lambda _, text: texts.append(text))
    own = _own_paths(trainer, callback, texts, state.get("dirpath")) if texts else {}

    def rebuilt(key: Any, text: Any) -> str | Path:
        if text in own:
            return own[text]
        of_callback = vars(callback).get(key)
        return of_callback if isinstance(of_callback, str | Path) else ""

    return _with_paths(state, rebuilt)  # type: ignore[no-any-return]  # a dict, as it was


def _with_paths(value: Any, change: Callable[[Any, Any], Any], key: Any = None, is_path: bool = False) -> Any:
    """A state in which each text under the name of a path, at any depth, is what `change` makes of name and text."""
    if isinstance(value, Mapping):
        changed = {}
        for name, entry in value.items():
            names_path = isinstance(name, str) and _NAMES_A_PATH.fullmatch(name) is not None
            changed[name] = _with_paths(entry, change, name, is_path or names_path)
        return changed
    if type(value) in (list, tuple, set):
        return type(value)(_with_paths(entry, change, key, is_path) for entry in value)
    return change(key, value) if is_path and isinstance(value, str | bytes) else value


# Files


def _own_paths(trainer: Trainer, callback: Callback, texts: Iterable[Any], before: Any) -> dict[str, str]:
    """Path in a checkpoint → that of a file of the same name in the own folder, for those that are there."""
    # the own folder is the callback's ``dirpath``, or that of the run's checkpoints; `before` is the folder that the
    # checkpoint gives, below which a name may have folders of its own
    folder = vars(callback).get("dirpath") or getattr(trainer.checkpoint_callback, "dirpath", None)
    found: dict[str, str] = {}
    if folder and trainer.is_global_zero:  # the other ranks may not see the files, and must not differ
        for text in texts:
            name = _own_name(text, before)
            if name and _is_there(str(folder), name):
                found[text] = os.path.join(folder, name)  # noqa: PTH118  as Lightning does
    return trainer.strategy.broadcast(found)


def _own_name(path: Any, before: Any) -> str | None:
    """The name of a checkpoint in its folder; None unless this program would have written a file of this name."""
    if not isinstance(path, str):
        return None
    name = PurePath(path)
    is_below = isinstance(before, str) and name.is_relative_to(before)
    name = name.relative_to(before) if is_below else PurePath(name.name)
    is_plain = ".." not in name.parts and "\\" not in name.as_posix()
    return str(name) if is_plain and name.suffix == ModelCheckpoint.FILE_EXTENSION else None


def _is_there(folder: str, name: str) -> bool:
    """Whether a checkpoint, a file or a folder of shards, lies in the own folder, and not only a link to elsewhere."""
    if not is_local(folder):
        return bool(get_filesystem(folder).exists(f"{folder}/{name}"))
    path = Path(folder) / name
    try:
        is_inside = Path(folder).resolve() in path.resolve().parents
        is_sharded = (path / REST).is_file() and not path.is_symlink()
        return is_inside and (path.is_file() or is_sharded)
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links in a circle
        return False
