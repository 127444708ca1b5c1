"""Shapes of learning rates: the factor on a group's own rate as a function of the steps since it started to train."""

import math
from collections.abc import Callable


def _one_cycle(progress: float) -> float:
    """1/25 up to 1 over the first 30 %, down to 1/250000, both along a cosine (Smith, arXiv 1708.07120)."""
    if progress < 0.3:
        low, descent = 1 / 25, 1 - progress / 0.3
    else:
        low, descent = 1 / 250_000, (progress - 0.3) / 0.7
    return low + (1 - low) * (1 + math.cos(math.pi * descent)) / 2


def _slanted_triangular(progress: float) -> float:
    """Up over the first 10 %, down over the rest, from and to 1/32 (ULMFiT, arXiv 1801.06146, section 3.2)."""
    height = progress / 0.1 if progress < 0.1 else 1 - (progress - 0.1) / 0.9
    return (1 + height * 31) / 32


SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "one_cycle": _one_cycle,
    "slanted_triangular": _slanted_triangular,
}
"""Shape name → multiplier in [0, 1] as a function of progress in [0, 1]."""


def rise(clock: int, warm_up: int) -> float:
    """The factor of a warm-up: linear over `warm_up` steps from ``1 / (warm_up + 1)``, then 1."""
    return (clock + 1) / (warm_up + 1) if clock < warm_up else 1.0


def multiplier(shape: str, clock: int, span: int, warm_up: int = 0) -> float:
    """The factor on a group's own rate, `clock` of the `span` steps that it trains after its start."""
    # the shape stretches over the steps that the warm-up leaves
    if clock < warm_up:
        return rise(clock, warm_up)
    progress = (clock - warm_up) / max(span - warm_up, 1)
    return SHAPES[shape](min(progress, 1.0))
