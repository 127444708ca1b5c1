"""Where in a fit a checkpoint was saved: Lightning's counters, read and put in order.

Lightning (2.6) tells several moments apart by which of its counters have moved on, and loses something at most of them:
the end of an epoch, a validation that was due, a step of a metric scheduler, the logger's step. Here a saved fit is
brought to one of two plain points: between two epochs, or after a whole number of batches of one.
"""

from dataclasses import dataclass
from typing import Any

COUNTERS = ("ready", "started", "processed", "completed")


@dataclass(frozen=True)
class SavedPoint:
    """What is left to know of the moment once the counters are in order.

    Args:
        in_epoch: Whether an epoch was under way.
        in_batch: Whether a batch was, so that its effect is saved in part.
        epoch_ends: Whether the epoch's last hooks were running, before the metric schedulers step.
    """

    in_epoch: bool
    in_batch: bool
    epoch_ends: bool


def settle(loops: dict[str, Any]) -> SavedPoint:
    """Brings the saved state of a fit loop to a plain point, in place.

    Args:
        loops: ``checkpoint["loops"]["fit_loop"]``.
    """
    epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    now = epochs["current"]
    in_epoch = now["started"] > now["processed"]
    in_batch = in_epoch and batches["current"]["started"] > batches["current"]["processed"]
    epoch_ends = not in_epoch and now["processed"] > now["completed"]
    for total in (batches["total"], batches["current"]):
        between = total["ready"] == total["processed"]
        _level(total, total["processed" if between else "completed"])
        batches["is_last_batch"] = batches["is_last_batch"] and between
    if not in_epoch:
        for total in (epochs["total"], epochs["current"]):
            _level(total, total["processed"])
        _level(batches["current"], 0)
        batches["is_last_batch"] = False
    _level(loops["epoch_loop.val_loop.batch_progress"]["current"], 0)
    return SavedPoint(in_epoch, in_batch, epoch_ends)


def _level(counter: dict[str, int], value: int) -> None:
    counter.update(dict.fromkeys(COUNTERS, value))
