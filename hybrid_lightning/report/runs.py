"""Reads what a run's folder holds, as data: nothing in it is run, and sizes are bounded."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_lightning.data.table import Array
from hybrid_lightning.direction import direction_of
from hybrid_lightning.files import is_regular_file
from hybrid_lightning.report.evaluations import Evaluation, read_evaluations
from hybrid_lightning.report.record import LARGEST_NUMBER, Record, read_record

_LARGEST_TABLE = 64 * 2**20  # bytes
_MOST_CELLS = 5_000_000
_MOST_PARTS = 60
_LARGEST_CONFIG = 64 * 2**10  # characters that are shown


@dataclass
class Series:
    """A logged value: steps and values, `(N,)` each."""

    steps: Array
    values: Array

    @property
    def last(self) -> float:
        """The last value."""
        return float(self.values[-1])


@dataclass
class Run:
    """A run as the report shows it."""

    title: str  # such as ``quickstart/version_0``
    record: Record
    series: dict[str, Series]  # key of metrics.csv → values
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    notes: list[str] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)

    @property
    def parts(self) -> list[str]:
        """Names of the parts, in the order of the network where that is known."""
        names = dict.fromkeys(part["part"] for part in self.record.parts)
        for prefix in ("trainable/", "grad_norm/", "drift/"):
            for key in self.with_prefix(prefix):
                if key != "total" and "." not in key:
                    names[key] = None
        return list(names)[:_MOST_PARTS]

    def with_prefix(self, prefix: str) -> dict[str, Series]:
        """The values whose keys begin so, by the rest of their keys."""
        return {key.removeprefix(prefix): one for key, one in self.series.items() if key.startswith(prefix)}

    @property
    def last_step(self) -> int:
        """The last step of training that the log has."""
        training = ("train/", "val/", "lr/")
        steps = [int(one.steps[-1]) for key, one in self.series.items() if key.startswith(training)]
        return max(steps, default=0)

    @property
    def main(self) -> str:
        """The main metric, without its split."""
        checkpoint = self.config.get("checkpoint")
        monitor = checkpoint.get("monitor") if isinstance(checkpoint, Mapping) else None
        named = str(monitor).removeprefix("val/")
        for name in (self.record.main, named, "accuracy", "average_precision", "r2", "loss"):
            if f"val/{name}" in self.series or f"test/{name}" in self.series:
                return name
        return "loss"

    @property
    def best_place(self) -> int:
        """The position of the validation with the best main metric; -1, the last, without one."""
        series = self.series.get(f"val/{self.main}")
        if series is None:
            return -1
        is_low = direction_of(f"val/{self.main}") == "min"
        return int(series.values.argmin() if is_low else series.values.argmax())


def read_run(folder: Path, title: str, config: Any, config_text: str) -> Run:
    """A run from its folder; `config` is its config as plain data."""
    notes: list[str] = []
    table = folder / "metrics.csv"
    series: dict[str, Series] = {}
    if not is_regular_file(table):
        notes.append("There is no metrics.csv, so that curves are missing.")
    elif table.stat().st_size > _LARGEST_TABLE:
        notes.append(f"metrics.csv has more than {_LARGEST_TABLE >> 20} MiB, so that curves are missing.")
    else:
        series = read_series(table)
    record = read_record(folder)
    evaluations, unread = read_evaluations(folder)
    notes += record.notes + unread
    known = config if isinstance(config, Mapping) else {}
    return Run(title, record, series, known, config_text[:_LARGEST_CONFIG], notes, evaluations)


def read_series(path: Path) -> dict[str, Series]:
    """The columns of a table of metrics; cells that are no finite numbers, and rows without a step, are left out."""
    steps: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = _rows(file)
        names = next(rows, [])
        for row in islice(rows, _MOST_CELLS // max(len(names), 1)):
            cells = dict(zip(names, row, strict=False))
            step = _number(cells.pop("step", ""))
            if step is None or not 0 <= step < 2**53:
                continue
            for name, cell in cells.items():
                value = _number(cell)
                if value is not None:
                    steps.setdefault(name, []).append(int(step))
                    values.setdefault(name, []).append(value)
    return {name: Series(np.array(steps[name]), np.array(values[name])) for name in values}


def _rows(file: Any) -> Iterator[list[str]]:
    reader = csv.reader(file)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:  # such as a cell larger than the module takes
            continue


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if abs(value) < LARGEST_NUMBER else None
