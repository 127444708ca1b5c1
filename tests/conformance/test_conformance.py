"""Every check with every tool: ours holds them all, and each check fails for a tool that is known not to hold it.

Where a tool does more than `KNOWN` says, the test fails: then correct `KNOWN` and print README's table anew.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from tests.conformance.checks import CHECKS, cell
from tests.conformance.tools import TOOLS, RateZero, Tool

pytestmark = pytest.mark.filterwarnings("ignore")  # of the other tools; elsewhere ours are errors

LIGHTNING = {
    "frozen parameters and buffers are bit-equal": r"✗ first\.1\.running_var moved by 2",
    "dropout of a frozen part is off": "✗ features off by 3",
    "frozen BatchNorm uses its own statistics": "✗ features off by 2",
    "a part that arrives in eval trains once unfrozen": "✗ 0 of 16 modules",
    "two ranks agree": r"✗ ranks apart by 0\.0",
    "two ranks equal one process": r"✗ off by 0\.0",
    "resume after the unfreezing": "✗ 10 of 10 steps",
    "restart within an epoch": "✗ 13 of 30 steps",
    "resume from every step is bit-equal": "✗ 0 of 14",
    "fit, test, fit": "✗ 5 of 20 steps",
    "validate, test, predict keep the flags": "✗ 24 of 42 flags",
    "the optimizer's groups never change": "✗ 1 groups, 2 from step 5 on",
    "every parameter is in one group": "✗ 2 of 14 parameters in no group",
    "LambdaLR over an unfreezing": "✗ ValueError at step 11",
    "OneCycleLR over an unfreezing": "✗ KeyError at step 11",
    "CyclicLR over an unfreezing": "✗ ValueError at step 11",
    "CosineAnnealingLR over an unfreezing": "✗ share 0.2 to 0.2",
}
HOLDS_WHERE_LIGHTNING_DOES_NOT = (
    "frozen parameters and buffers are bit-equal",
    "resume after the unfreezing",
    "every parameter is in one group",
    "LambdaLR over an unfreezing",
    "CosineAnnealingLR over an unfreezing",
)
SCHEDULER = {title: found for title, found in LIGHTNING.items() if title not in HOLDS_WHERE_LIGHTNING_DOES_NOT} | {
    "restart within an epoch": "✗ 3 of 30 steps",
    "OneCycleLR over an unfreezing": "– refused before the first step",
    "CyclicLR over an unfreezing": "– refused before the first step",
}
RATE_ZERO = {
    "frozen parameters and buffers are bit-equal": r"✗ first\.1\.running_var moved by 2",
    "dropout of a frozen part is off": "✗ features off by 3",
    "frozen BatchNorm uses its own statistics": "✗ features off by 2",
    "a part that arrives in eval trains once unfrozen": "✗ 0 of 16 modules",
    "no hidden momentum at the unfreezing": r"✗ first update × 2\.",
    "resume from every step is bit-equal": "✗ 0 of 14",
}
KNOWN = {
    "hybrid_lightning": {},
    "Backbone/BaseFinetuning": LIGHTNING,
    "finetuning-scheduler": SCHEDULER,
    "lr = 0": RATE_ZERO,
}
"""Tool → check → how its cell begins where that is not ✓."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("title", CHECKS)
@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_tool_holds_what_it_is_known_to_hold(tool: Tool, title: str, tmp_path: Path) -> None:
    if not tool.installed():
        pytest.skip(f"{tool.name} comes with the extra 'conformance'")
    expected = KNOWN[tool.name].get(title, "✓")
    found = cell(title, tool, tmp_path)
    assert re.match(expected, found), f"{tool.name}: {title}: {found}, known was {expected}"


def test_the_known_failures_are_checks() -> None:
    assert KNOWN.keys() == {tool.name for tool in TOOLS}
    assert all(titles.keys() <= CHECKS.keys() for titles in KNOWN.values())


class CountsByItself(RateZero):
    """Counts the epochs since it was made, so that after a restart its schedule begins anew."""

    def callbacks(self, schedule: Any, folder: Path) -> list[pl.Callback]:
        class Count(pl.Callback):
            epoch = -1

            def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
                self.epoch += 1
                for group in trainer.optimizers[0].param_groups:
                    group["own"] = group.get("own", group["lr"])
                    group["lr"] = group["own"] * (self.epoch >= group["start"])

        return [Count()]


def test_a_schedule_that_begins_anew_after_a_restart_is_seen(tmp_path: Path) -> None:
    found = cell("resume before the unfreezing", CountsByItself(), tmp_path)
    assert found == "✗ unfrozen at step 15, without the restart at 10"
