"""What trains now and what changes next, in a few words."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hybrid_lightning.errors import counted
from hybrid_lightning.unfreezing.schedule import Span
from hybrid_lightning.unfreezing.timeline import next_change

_MOST_NAMES = 3


def phase(
    groups: Sequence[Mapping[str, Any]],
    spans: Mapping[str, Span],
    step: int,
    steps_per_epoch: int | None = None,
    waiting: Collection[str] = (),
) -> str:
    """Such as "encoder unfreezes in 2 epochs".

    Args:
        groups: The named groups of the optimizer.
        spans: Name of a group → between which steps it trains.
        step: The optimizer step that is next.
        steps_per_epoch: Steps of an epoch; None if the data have no length.
        waiting: Parts that a metric will unfreeze.
    """
    change = next_change(spans, step)
    if change != float("inf"):
        return _coming(groups, spans, int(change), _distance(int(change) - step, steps_per_epoch))
    if waiting:
        return f"{_few(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for a metric"
    training = {str(group["part"]) for group in groups if spans[group["name"]].trains(step)}
    resting = {str(group["part"]): None for group in groups if not spans[group["name"]].trains(step)}
    if not resting:
        return "all parts train"
    if not training:
        return "nothing trains"
    frozen = [part for part in resting if part not in training]
    if frozen:
        return f"{_few(frozen)} {'stays' if len(frozen) == 1 else 'stay'} frozen"
    return f"stages of {_few(resting)} stay frozen"


def _coming(groups: Sequence[Mapping[str, Any]], spans: Mapping[str, Span], change: int, distance: str) -> str:
    """What happens at the step of the next change."""
    starting = [str(group["part"]) for group in groups if spans[group["name"]].start == change]
    stopping = [str(group["part"]) for group in groups if spans[group["name"]].stop == change]
    parts = list(dict.fromkeys(starting or stopping))
    verb = "unfreeze" if starting else "freeze"
    return f"{_few(parts)} {verb}{'s' if len(parts) == 1 else ''} in {distance}"


def _distance(steps: int, steps_per_epoch: int | None) -> str:
    """How far a step is, in whole epochs where it is at least one."""
    if steps_per_epoch is None or steps < steps_per_epoch:
        return counted(steps, "step")
    return counted(round(steps / steps_per_epoch), "epoch")


def _few(names: Collection[str]) -> str:
    """Names in one short line."""
    shown = list(names)[:_MOST_NAMES]
    left = len(names) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")
