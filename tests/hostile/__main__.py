"""Hostile inputs and faults: ``python -m tests.hostile`` runs all and prints a table kind x held / tried.

``--kind 1 8`` or ``--only NAME`` (part of a name) run some, ``--jobs`` so many at a time.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.hostile import cases  # noqa: F401  registers them
from tests.hostile.harness import CASES, KINDS, MATERIALS, Case, Result, run_cases
from tests.zygote import import_all

FEWEST = 10
"""Inputs of each kind."""


def inputs(found: Sequence[Case], kind: int) -> int:
    """Inputs of a kind that differ in place or mechanism."""
    return len({(one.place, one.mechanism) for one in found if one.kind == kind})


def table(results: Sequence[Result]) -> str:
    """Kind, held, tried, inputs that differ."""
    lines = [f"{'kind':<40} {'held':>5} {'tried':>6} {'distinct':>9}"]
    for kind, name in KINDS.items():
        of_kind = [result for result in results if result.case.kind == kind]
        if of_kind:
            held = sum(not result.problem for result in of_kind)
            distinct = inputs([result.case for result in of_kind], kind)
            lines.append(f"{kind:>2} {name:<37} {held:>5} {len(of_kind):>6} {distinct:>9}")
    return "\n".join(lines)


def tell(result: Result) -> None:
    if result.problem:
        one = result.case
        print(f"NOT HELD {one.kind} {one.name} ({one.place}: {one.mechanism})\n      {result.problem}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.hostile", description=__doc__)
    parser.add_argument("--kind", type=int, nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--only", default="", help="part of the names of the cases")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    parser.add_argument("--slow", type=int, default=0, help="print so many of the slowest")
    options = parser.parse_args()
    chosen = [one for one in CASES if one.kind in options.kind and options.only in one.name]
    began = time.monotonic()
    import_all()
    with tempfile.TemporaryDirectory() as folder:
        results = run_cases(chosen, options.jobs, Path(folder).resolve(), tell, MATERIALS)
    for result in sorted(results, key=lambda result: -result.seconds)[: options.slow]:
        print(f"{result.seconds:5.1f} s  {result.case.name}")
    print(table(results))
    print(f"{time.monotonic() - began:.0f} s")
    return int(any(result.problem for result in results))


if __name__ == "__main__":
    sys.exit(main())
