"""All checks, in the order of the table."""

from collections.abc import Callable
from pathlib import Path

from tests.conformance import frozen, groups, ranks, resume
from tests.conformance.model import NotApplicable, Violation
from tests.conformance.tools import Tool

CHECKS: dict[str, Callable[[Tool, Path], str]] = {
    "frozen parameters and buffers are bit-equal": frozen.frozen,
    "dropout of a frozen part is off": frozen.no_dropout,
    "frozen BatchNorm uses its own statistics": frozen.own_statistics,
    "a part that arrives in eval trains once unfrozen": frozen.trains_from_eval,
    "no hidden momentum at the unfreezing": frozen.momentum,
    "two ranks agree": ranks.agree,
    "two ranks equal one process": ranks.like_one,
    "resume after the unfreezing": resume.after_unfreezing,
    "resume before the unfreezing": resume.before_unfreezing,
    "restart within an epoch": resume.mid_epoch,
    "resume from every step is bit-equal": resume.every_step,
    "fit, test, fit": resume.second_fit,
    "validate, test, predict keep the flags": resume.flags_kept,
    "the optimizer's groups never change": groups.constant,
    "every parameter is in one group": groups.complete,
    **{f"{name} over an unfreezing": check for name, check in groups.scheduler_checks.items()},
}
"""What has to hold → the check: a function that returns what it measured or raises `Violation`."""


def cell(title: str, tool: Tool, folder: Path) -> str:
    """One cell of the table: ✓ or ✗ with what was measured, or – with the reason."""
    try:
        return f"✓ {CHECKS[title](tool, folder)}"
    except Violation as violation:
        return f"✗ {violation}"
    except NotApplicable as reason:
        return f"– {reason}"
