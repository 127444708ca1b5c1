"""Checks on two real gloo ranks: through three unfreezings, with clipping 0.5 and accumulation 2."""

import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from tests.conformance.model import EPOCHS, Violation, largest_difference
from tests.conformance.tools import Tool
from tests.processes import LIMIT, ranks

States = list[dict[str, Tensor]]
"""The parameters after each epoch."""


@cache
def states(tool: Tool, count: int, strategy: str) -> list[States]:
    """Each rank's parameters after each epoch, from a fit in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["-m", "tests.conformance.worker", tool.name, str(count), strategy, folder]
        try:
            done = ranks(count, *words)
        except AssertionError:
            raise Violation(f"still running after {LIMIT} s") from None
        failed = [one for one in done if one.returncode]
        if failed:
            cause = max(failed, key=lambda one: one.returncode)  # the others were killed: below 0
            last = (cause.stderr.strip().splitlines() or [f"exit status {cause.returncode}"])[-1]
            raise Violation("crash: " + last.split(". ")[0])
        paths = [[Path(folder) / f"{rank}-{epoch}.pt" for epoch in range(EPOCHS)] for rank in range(count)]
        found = [[torch.load(path, weights_only=True) for path in of_rank] for of_rank in paths]
    still = [name for name in found[0][0] if all(torch.equal(found[0][0][name], state[name]) for state in found[0])]
    if still:
        raise Violation(f"{len(still)} parameters never train")
    return found


def apart(one: States, other: States) -> float:
    """The largest difference of a parameter after any epoch."""
    return max(largest_difference(a, b)[1] for a, b in zip(one, other, strict=True))


def agree(tool: Tool, folder: Path) -> str:
    """max − min over the ranks is 0, for each parameter after each epoch."""
    spreads = [apart(*states(tool, 2, strategy)) for strategy in tool.strategies]
    if min(spreads) > 0:
        raise Violation(f"ranks apart by {min(spreads):.2g}")
    return "ranks apart by 0"


def like_one(tool: Tool, folder: Path) -> str:
    """Two ranks end where one process does on the same global batches, within 1e-6."""
    (single,) = states(tool, 1, "auto")
    distances = [max(apart(single, r) for r in states(tool, 2, strategy)) for strategy in tool.strategies]
    found = f"off by {min(distances):.2g}"
    if min(distances) > 1e-6:
        raise Violation(found)
    return found
