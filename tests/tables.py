"""Small tables that tests and generated data are written as."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a CSV with the columns of the first row."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
