"""The checkpoints of an ensemble, and what its members predict together."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hybrid_lightning.cli.run_folder import newest_checkpoint, versions
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import exists, is_regular_file
from hybrid_lightning.weights.sharded_files import REST

_OF_RUN = ("best.ckpt", "last.ckpt")


def member_paths(given: str | Sequence[str]) -> list[str]:
    """The checkpoints that ``--ckpt_path`` names: files, folders of runs (their best one, else the last), patterns."""
    found: list[str] = []
    for text in [given] if isinstance(given, str) else given:
        if not glob.has_magic(text) or exists(text):
            found.append(checkpoint_in(text) or text)
            continue
        matches = sorted(glob.glob(text))  # noqa: PTH207  of a pattern that may be absolute
        # the tables of a cross-validation lie beside its folds
        of_pattern = [path for path in map(checkpoint_in, matches) if path is not None]
        if not of_pattern:
            raise ConfigError(
                f"{text!r} matches no checkpoint and no folder of a run. Give one such as 'runs/x_fold*'.",
                "--ckpt_path",
            )
        found += of_pattern
    return list(dict.fromkeys(found))


def checkpoint_in(text: str) -> str | None:
    """The checkpoint that a path is or holds; None if there is none."""
    path = Path(text)
    if is_regular_file(path) or is_regular_file(path / REST):
        return text
    if not os.path.isdir(text):  # noqa: PTH112  Path raises for a name that is too long
        return None
    for name in _OF_RUN:
        if (path / "checkpoints" / name).exists():
            return str(path / "checkpoints" / name)
        if any((version / "checkpoints" / name).exists() for version in versions(path)):
            return str(newest_checkpoint(path, name))
    return None


def refuse_other_members(saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises `ConfigError` unless the checkpoints, path → what a task added to each, predict the same thing."""
    (first, wanted), *others = saved.items()
    for path, own in others:
        for key in ("task", "outputs"):
            if own.get(key) != wanted.get(key):
                raise _other(path, own.get(key), first, wanted.get(key), {"outputs": "number of outputs"}.get(key, key))


def refuse_other_names(path: str, names: Any, first: str, wanted: Any) -> None:
    """Raises `ConfigError` unless two checkpoints have the same classes, or names of targets, in one order."""
    if names != wanted:
        raise _other(path, names, first, wanted, "names of classes or targets")


def _other(path: str, own: Any, first: str, wanted: Any, what: str) -> ConfigError:
    return ConfigError(
        f"the {what} of {path!r}: {own}; of {first!r}: {wanted}. The mean of such predictions has no meaning. Give "
        f"checkpoints of one task and target.",
        "--ckpt_path",
    )


def mean_and_spread(predictions: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of the members' predictions, each `(N,)` or `(N, outputs)`, and their standard deviation."""
    stacked = torch.stack([one.double() for one in predictions])
    mean = stacked.mean(0)
    return mean.to(predictions[0].dtype), stacked.std(0).to(predictions[0].dtype)


def leave_out_decisions(objectives: Sequence[Any]) -> None:
    """Thresholds, sets and intervals are those of one checkpoint's outputs; for a mean of several none are known."""
    found = [objective.calibration for objective in objectives]
    if any(one is not None and (one.thresholds is not None or one.quantiles is not None) for one in found):
        print("Thresholds, sets and intervals of the checkpoints are left out: none of them is for their mean.")
    objectives[0].calibration = None
