"""Continued runs by strategy, launcher and number of ranks, on the CPU: ``python -m tests.distributed``.

Each cell trains on some ranks through three unfreezings, and saves while a part is frozen, within an epoch, within a
step, after an epoch's last batch and at its end. From each file a run goes on, on as many ranks or on others, and is
compared with the one that was never stopped: on as many bit by bit, with dropout and batch statistics; on others to
1e-6, without them. A line a cell, the others follow after a failure, a table at the end; the exit status is 1 if any
cell failed.
"""

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning
import torch

from tests.distributed.continued import EVEN, UNEVEN, continued
from tests.distributed.launchers import LAUNCHERS

STRATEGIES = ("ddp", "fsdp2", "folder")
"""Copies; shards, saved in a file; shards, saved in a folder."""
COLUMNS = ("2 → 2", "2 → 2, uneven", "3 → 3", "3 → 3, uneven", "2 → 3", "3 → 2")
"""Ranks before and after; ``uneven``: the last batch of an epoch is smaller."""
LEFT_OUT = (
    "left out: 2 → 3 and 3 → 2, uneven: ranks repeat the first samples to fill the last step, others on each number of "
    "ranks (docs/elastic.md)",
    "left out: 3 → 3 of fsdp2 and folder from within a step: its gradients are sharded and not saved, which is told",
)


class Cell(NamedTuple):
    """What is started, and how."""

    strategy: str
    launcher: str
    column: str

    @property
    def title(self) -> str:
        """As it is printed."""
        return f"{self.strategy}, {self.launcher}, {self.column}"

    def run(self, folder: Path) -> float:
        """How far the runs that go on are off the one that was never stopped; an `AssertionError` if too far."""
        ranks, _, is_uneven = self.column.partition(", ")
        before, now = map(int, ranks.split(" → "))
        kind = "random" if before == now else "plain"
        samples = UNEVEN if is_uneven else EVEN
        return continued(folder, before, now, self.strategy, kind, launcher=self.launcher, samples=samples)


CELLS = tuple(itertools.starmap(Cell, itertools.product(STRATEGIES, LAUNCHERS, COLUMNS)))
QUICK = (Cell("ddp", "torchrun", "3 → 3, uneven"), Cell("fsdp2", "srun", "2 → 3"))


def outcome(cell: Cell) -> str:
    """``equal`` bit by bit, the largest difference, or ``failed`` with the reason."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            off = cell.run(Path(folder))
        except Exception as error:
            traceback.print_exc()
            first_line = (str(error).splitlines() or [""])[0]
            return f"failed: {type(error).__name__}: {first_line}"
    return f"{off:.0e}" if off else "equal"


def table(found: dict[Cell, str]) -> str:
    """The outcomes in Markdown, a row for each strategy and launcher."""
    columns = [column for column in COLUMNS if any(cell.column == column for cell in found)]
    lines = ["| strategy | launcher | " + " | ".join(columns) + " |", "|---" * (2 + len(columns)) + "|"]
    for strategy, launcher in itertools.product(STRATEGIES, LAUNCHERS):
        row = [found.get(Cell(strategy, launcher, column), "–").partition(":")[0] for column in columns]
        if set(row) != {"–"}:
            lines.append(" | ".join([f"| {strategy} | {launcher}", *row]) + " |")
    return "\n".join(lines)


def chosen(only: Sequence[str], quick: bool) -> list[Cell]:
    """The cells whose titles contain all of the words."""
    return [cell for cell in (QUICK if quick else CELLS) if all(word in cell.title for word in only)]


def main(words: Sequence[str]) -> int:
    """Runs the cells and returns the exit status."""
    parser = argparse.ArgumentParser("python -m tests.distributed", description="Continued runs on several ranks.")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cells whose titles contain all of them")
    parser.add_argument("--quick", action="store_true", help=f"{len(QUICK)} of the {len(CELLS)} cells")
    options = parser.parse_args(words)
    cells = chosen(options.only, options.quick)
    if not cells:
        parser.error(f"no cell has a title with all of these words; titles are such as '{CELLS[0].title}'")
    print(*LEFT_OUT, sep="\n", flush=True)
    found, began = {}, time.monotonic()
    for cell in cells:
        started = time.monotonic()
        found[cell] = outcome(cell)
        print(f"{cell.title}: {found[cell]}, {time.monotonic() - started:.1f} s", flush=True)
    minutes = (time.monotonic() - began) / 60
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, lightning {lightning.__version__}"
    print(f"\n{table(found)}\n\n{len(cells)} cells, {minutes:.1f} min, {os.cpu_count()} CPU cores, {versions}")
    return int(any(text.startswith("failed") for text in found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
