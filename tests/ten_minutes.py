"""A newcomer's first ten minutes, from a table to a page: ``python -m tests.ten_minutes FOLDER``.

Writes a table of photos and columns into the empty FOLDER, then calls one command after the other there, each in a
process of its own as a user would, and again where it left something; prints the seconds of each.
"""

import contextlib
import csv
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.data.make_files import make_manifest
from tests.tables import write_rows

COLUMNS = ["sample", "patient", "photo", "age", "dose", "site", "sex", "label"]
FIT = ["fit", "mine.yaml", "--test_after_fit", "best"]
COMMANDS = [
    [],
    ["init", "samples.csv", "--target", "label", "--output", "mine.yaml"],
    ["check", "mine.yaml"],
    ["plan", "mine.yaml"],
    ["probe", "mine.yaml"],
    FIT,
    ["report", "runs/mine"],
    ["evaluate", "new.csv", "--ckpt_path", "runs/mine"],
    ["predict", "mine.yaml", "--ckpt_path", "best", "--data.predict_path", "new.csv"],
]
AGAIN = [FIT, *COMMANDS[-3:]]
"""What is there by then must neither stop nor mix up a second run."""


def write_tables(rows: int = 120) -> None:
    """Writes ``samples.csv`` and, with a fifth as many new rows, ``new.csv``."""
    for name, count, seed in (("samples", rows, 0), ("new", rows // 5, 1)):
        path = make_manifest(name, count, missing=0.1, seed=seed)
        with path.open(encoding="utf-8", newline="") as file:
            table = [{column: row[column] for column in COLUMNS} for row in csv.DictReader(file)]
        for row in table:
            row["photo"] = row["photo"] and f"{name}/{row['photo']}"
        write_rows(f"{name}.csv", table)


def timed(commands: Sequence[Sequence[str]], run: Callable[[Sequence[str]], int]) -> Iterator[tuple[str, float]]:
    """Yields each command with its seconds.

    Raises:
        RuntimeError: A command failed.
    """
    for words in commands:
        start = time.perf_counter()
        status = run(words)
        if status and words:  # 2 without a command, whose overview is printed
            raise RuntimeError(f"{' '.join(words) or 'no argument'}: ended with {status}")
        yield " ".join(words) or "(no argument)", time.perf_counter() - start


def in_a_process(words: Sequence[str]) -> int:
    print("\n$ python -m hybrid_lightning", *words, flush=True)
    return subprocess.run([sys.executable, "-m", "hybrid_lightning", *words], check=False).returncode


def main(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):
        if list(Path().iterdir()):
            sys.exit(f"{folder} is not empty")
        write_tables()
        times = list(timed([*COMMANDS, *AGAIN], in_a_process))
    print()
    for command, seconds in times:
        print(f"{seconds:7.1f} s  {command}")
    print(f"{sum(seconds for _, seconds in times):7.1f} s  in all")


if __name__ == "__main__":
    main(sys.argv[1])
