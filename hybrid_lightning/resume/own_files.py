"""Paths in the states of callbacks: a checkpoint gives scores and file names, the folder is always the run's own."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import is_local
from hybrid_lightning.weights.sharded_files import REST

_NAMES_A_PATH = re.compile(r"(.*_)?(path|dir|dirpath|dirname|folder|file|filename|filepath)s?")


def rebuild_paths(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Lets the paths in the states of a Trainer's callbacks stay in its own folder, before any of them is restored.

    Lightning removes, recursively, what the state of a `ModelCheckpoint` names. Of such a state only scores and file
    names are kept, and of these only those of files that are there. All ranks have to call it.

    Args:
        trainer: Its callbacks are set up, so that they know their folders.
        checkpoint: Changed in place.

    Raises:
        ConfigError: If the states are no dicts, or hold themselves.
    """
    states = checkpoint.get("callbacks")
    if states is None:
        return
    if not isinstance(states, Mapping):
        raise _damaged(f"the states of callbacks should be a dict, not a {type(states).__name__}.")
    checkpoint["callbacks"] = rebuilt = {key: state for key, state in states.items() if isinstance(key, str)}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        key = callback.state_key
        state = rebuilt.get(key, {})
        if not isinstance(state, Mapping):
            kind = type(state).__name__
            raise _damaged(f"the state of the callback {key!r} should be a dict, not a {kind}.")
        if key in rebuilt:
            rebuild = _of_model_checkpoint if isinstance(callback, ModelCheckpoint) else _of_other
            try:
                rebuilt[key] = rebuild(trainer, callback, state)
            except RecursionError as error:
                raise _damaged(f"the state of the callback {key!r} is nested without end.") from error


def _damaged(problem: str) -> ConfigError:
    return ConfigError(f"--ckpt_path: the checkpoint is damaged: {problem} Use another checkpoint of the run.")


# States


def _of_model_checkpoint(trainer: pl.Trainer, callback: ModelCheckpoint, state: Mapping[str, Any]) -> dict[str, Any]:
    """What `ModelCheckpoint` would hold, had it saved the files that are there; its ranking follows from the scores."""
    given = state.get("best_k_models")
    scores = {path: _score(value) for path, value in given.items()} if isinstance(given, Mapping) else {}
    single = {key: state.get(key) for key in ("best_model_path", "last_model_path")}
    own = _own_paths(trainer, callback, [*scores, *single.values()], state.get("dirpath"))
    best_path, last_path = (own.get(path, "") if isinstance(path, str) else "" for path in single.values())
    kept = {own[path]: score for path, score in scores.items() if score is not None and path in own}
    worst, best = (max, min) if callback.mode == "min" else (min, max)
    if callback.monitor is not None:
        best_path = best(kept, key=lambda path: float(kept[path]), default="")
    is_full = callback.save_top_k == -1 or len(kept) >= callback.save_top_k
    kth_path = worst(kept, key=lambda path: float(kept[path]), default="") if is_full else ""
    none_yet = torch.tensor(math.inf if callback.mode == "min" else -math.inf)
    ours = {
        "monitor": callback.monitor,
        "dirpath": callback.dirpath,
        "best_k_models": kept,
        "kth_best_model_path": kth_path,
        "kth_value": kept.get(kth_path, none_yet),
        "best_model_path": best_path,
        "best_model_score": kept.get(best_path),
        "last_model_path": last_path,
    }
    others = {key: value for key, value in state.items() if key not in ours}
    return {**_of_other(trainer, callback, others), **ours}


def _score(value: Any) -> Tensor | None:
    """A score as a tensor without dimensions; None if it is none."""
    if type(value) in (int, float):
        value = torch.tensor(float(value))
    is_plain = type(value) is Tensor and value.layout == torch.strided and not value.is_meta and not value.is_nested
    if not is_plain or value.numel() != 1 or value.is_complex() or value.is_quantized or math.isnan(float(value)):
        return None
    return value.reshape(())  # type: ignore[no-any-return]


def _of_other(trainer: pl.Trainer, callback: pl.Callback, state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of any callback; what stands under the name of a path is one of our files, or what it has itself."""
    texts: list[str | bytes] = []
    _with_paths(state, lambda _, text: texts.append(text))
    own = _own_paths(trainer, callback, texts, state.get("dirpath")) if texts else {}

    def rebuilt(key: Any, text: Any) -> str | Path:
        of_callback = vars(callback).get(key)
        return own.get(text, of_callback if isinstance(of_callback, str | Path) else "")

    return _with_paths(state, rebuilt)  # type: ignore[no-any-return]  # a dict, as it was


def _with_paths(value: Any, change: Callable[[Any, Any], Any], key: Any = None, is_path: bool = False) -> Any:
    """A state in which each text under the name of a path, at any depth, is what `change` makes of name and text."""
    if isinstance(value, Mapping):
        return {n: _with_paths(entry, change, n, is_path or _is_path_name(n)) for n, entry in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_with_paths(entry, change, key, is_path) for entry in value)
    return change(key, value) if is_path and isinstance(value, str | bytes) else value


def _is_path_name(key: Any) -> bool:
    return isinstance(key, str) and _NAMES_A_PATH.fullmatch(key) is not None


# Files


def _own_paths(trainer: pl.Trainer, callback: pl.Callback, texts: Iterable[Any], before: Any) -> dict[str, str]:
    """Path in a checkpoint → that of a file of the same name in the own folder, for those that are there.

    Args:
        trainer: Its first rank looks, because the others may not see the files, and must not differ.
        callback: Its ``dirpath`` is the own folder; without one it is that of the run's checkpoints.
        texts: What the checkpoint gives.
        before: What it gives as its folder; a name may be that of a file in a folder below.
    """
    folder = vars(callback).get("dirpath") or getattr(trainer.checkpoint_callback, "dirpath", None)
    found: dict[str, str] = {}
    if folder and trainer.is_global_zero:
        names = {text: _own_name(text, before) for text in texts if isinstance(text, str)}
        there = {text: name for text, name in names.items() if name and _is_there(str(folder), name)}
        found = {text: os.path.join(folder, name) for text, name in there.items()}  # noqa: PTH118  as Lightning does
    return trainer.strategy.broadcast(found)


def _own_name(path: str, before: Any) -> str | None:
    """The name of a checkpoint in its folder; None if it is no name of a file that this program would have written."""
    name = PurePath(path)
    is_below = isinstance(before, str) and name.is_relative_to(before)
    name = name.relative_to(before) if is_below else PurePath(name.name)
    is_plain = all(part != ".." and "\\" not in part for part in name.parts)
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
