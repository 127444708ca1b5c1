"""Where in a run a checkpoint was saved: Lightning's counters, checked and put in order.

Lightning (2.6) tells several moments apart by which of its counters have moved on, and loses something at most of them:
the end of an epoch, a validation that was due, a step of a metric scheduler, the logger's step. Here a saved fit is
brought to one of two plain points: between two epochs, or after a whole number of batches of one.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

COUNTERS = ("ready", "started", "processed", "completed")


@dataclass(frozen=True)
class SavedPoint:
    """What the moment of saving leaves to be done once the counters are in order."""

    in_epoch: bool  # whether an epoch was under way
    in_batch: bool  # whether a batch was, so that its effect is saved in part
    epoch_ends: bool  # whether the epoch's last hooks were running, before the metric schedulers step


def first_damaged(saved: Any, form: Any, path: str) -> str | None:
    """Path of the first entry that is not of its form; see `FitCallback.state_form`."""
    if isinstance(form, range):
        # a range looks for anything but a whole number one by one
        return None if type(saved) is int and saved in form else path
    if isinstance(form, frozenset):
        return None if type(saved) in (int, str) and saved in form else path
    if isinstance(form, Tensor):
        fits = isinstance(saved, Tensor) and saved.shape == form.shape and saved.dtype.is_complex == form.is_complex()
        return None if fits else path
    if isinstance(form, tuple):
        fits = any(first_damaged(saved, one, path) is None for one in form)
        return None if fits else path
    if isinstance(form, dict):
        return _first_in_dict(saved, form, path) if isinstance(saved, dict) else path
    if isinstance(form, list):
        return _first_in_list(saved, form, path) if isinstance(saved, list) else path
    kind = form if isinstance(form, type) else type(form)
    if kind is int:
        # all are counts; a step that was decided may be 0
        return None if isinstance(saved, int) and saved >= 0 else path
    if kind is float:
        # a number that happens to be whole may have been saved as one; nan compares with nothing
        return None if isinstance(saved, int | float) and saved == saved else path
    return None if isinstance(saved, kind) else path


def _first_in_dict(saved: dict[Any, Any], form: dict[Any, Any], path: str) -> str | None:
    of_others = form.get(str, object)
    for key in {**form, **saved}:
        if key is str:
            continue
        if str in form and not isinstance(key, str):
            return path
        found = first_damaged(saved.get(key), form.get(key, of_others), f"{path}.{key}")
        if found is not None:
            return found
    return None


def _first_in_list(saved: list[Any], form: list[Any], path: str) -> str | None:
    forms = form * len(saved) if len(form) == 1 else form
    if len(forms) != len(saved):
        return path
    for index, (entry, of_entry) in enumerate(zip(saved, forms, strict=True)):
        found = first_damaged(entry, of_entry, f"{path}[{index}]")
        if found is not None:
            return found
    return None


def first_contradiction(loops: dict[str, Any]) -> str | None:
    """Path of the first counter of a fit loop that is ahead of one that moves before it, or beyond its total."""
    for name in ("epoch_progress", "epoch_loop.batch_progress"):
        total, current = loops[name]["total"], loops[name]["current"]
        for kind, counts in (("total", total), ("current", current)):
            in_order = [counts[counter] for counter in COUNTERS]
            if in_order != sorted(in_order, reverse=True):
                return f"{name}.{kind}"
        if any(current[counter] > total[counter] for counter in COUNTERS):
            return f"{name}.current"
    return None


def settle(loops: dict[str, Any], goes_on: bool = True) -> SavedPoint:
    """Moves restored loop counters, ``checkpoint["loops"]["fit_loop"]``, to the nearest batch or epoch boundary.

    `goes_on`: whether there are steps left to make.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    epoch, batch = epochs["current"], batches["current"]
    ends = epoch["processed"] > epoch["completed"]
    if goes_on and ends and batch["ready"] and not batches["is_last_batch"]:
        # max_steps or max_time ended it between two batches, and there are more to read
        for counter in (epochs["total"], epoch):
            counter["processed"] -= 1
    in_epoch = epoch["started"] > epoch["processed"]
    in_batch = in_epoch and batch["started"] > batch["processed"]
    epoch_ends = not in_epoch and epoch["processed"] > epoch["completed"]
    for counter in (batches["total"], batch):
        between_batches = counter["ready"] == counter["processed"]
        _level(counter, counter["processed" if between_batches else "completed"])
        batches["is_last_batch"] = batches["is_last_batch"] and between_batches
    if not in_epoch:
        for counter in (epochs["total"], epoch):
            _level(counter, counter["processed"])
        _level(batch, 0)
        batches["is_last_batch"] = False
    _level(loops["epoch_loop.val_loop.batch_progress"]["current"], 0)  # a validation starts again
    return SavedPoint(in_epoch, in_batch, epoch_ends)


def _level(counter: dict[str, int], value: int) -> None:
    counter.update(dict.fromkeys(COUNTERS, value))
