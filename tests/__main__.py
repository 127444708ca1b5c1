"""All checks: ``python -m tests``; ``--all`` runs the exhaustive tests, too.

``python -m tests --all --minutes 8 --seed 3`` runs only the exhaustive tests, in an order that the seed draws, and
starts none after 8 minutes.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTEST = ("pytest", "-n", "auto", "--maxprocesses", "8", "--dist", "worksteal")


def start(*words: str, output: int | None = None) -> "subprocess.Popen[bytes]":
    print("$", *words, flush=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    return subprocess.Popen([sys.executable, "-m", *words], cwd=ROOT, env=environment, stdout=output, stderr=output)


def check_everything(exhaustive: str) -> int:
    """Formatting and lint, and unless these fail, types and tests at the same time."""
    for words in (("ruff", "format", "--check", "."), ("ruff", "check", ".")):
        if status := start(*words).wait():
            return status
    with tempfile.TemporaryFile("w+") as file:
        types = start("mypy", output=file.fileno())
        tests = start(*PYTEST, "--exhaustive", exhaustive)
        statuses = [tests.wait(), types.wait()]
        file.seek(0)
        print("$ mypy", file.read(), sep="\n", flush=True)
    return max(map(abs, statuses))


def check_exhaustively(minutes: float, seed: int | None) -> int:
    """Only exhaustive tests, as many as fit."""
    seed = random.randrange(1_000_000) if seed is None else seed
    print(f"the order of the tests: --seed {seed}", flush=True)
    return start(*PYTEST, "--exhaustive", "only", "--minutes", str(minutes), "--order", str(seed)).wait()


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests", description="All checks.")
    parser.add_argument("--all", action="store_true", help="the exhaustive tests, too")
    parser.add_argument("--minutes", type=float, help="with --all: only these tests, and none starts later")
    parser.add_argument("--seed", type=int, help="with --minutes: draws the order; printed")
    options = parser.parse_args()
    if options.minutes is None and options.seed is not None:
        parser.error("--seed draws the order of the tests that --minutes leaves time for")
    if options.minutes is None:
        return check_everything("also" if options.all else "no")
    if not options.all:
        parser.error("--minutes limits the exhaustive tests: add --all")
    return check_exhaustively(options.minutes, options.seed)


if __name__ == "__main__":
    sys.exit(main())
