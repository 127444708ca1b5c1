"""The table of a run, ``metrics.csv``, that later processes continue."""

import csv
import sys
from collections.abc import Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from hybrid_lightning.files import remove_leftovers, whole_file
from hybrid_lightning.lightning_private import TableWriter, set_table, table_of


class RunLogger(CSVLogger):
    """Writes ``metrics.csv``; other than Lightning's `CSVLogger`, it continues a table that is there.

    Args:
        save_dir: Folder of all runs.
        name: Folder of the runs of one name.
        version: Folder of the run; None is a new one.
        first_step: Optimizer step from which on the run will log; later rows, of a process that got further than its
            last checkpoint, are dropped. At 0 the run starts from scratch: a table with rows is renamed to
            ``metrics.old_<number>.csv``.
    """

    def __init__(self, save_dir: str | Path, name: str, version: str | None = None, first_step: int = 0) -> None:
        # the Trainer saves after each row of its own; until then the row is filled up
        super().__init__(save_dir, name=name, version=version, flush_logs_every_n_steps=sys.maxsize)
        self.first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The table; opening it cleans the run's folder and its checkpoints of what killed processes left."""
        table = table_of(self)
        if table is None:
            remove_leftovers(Path(self.log_dir))
            remove_leftovers(Path(self.log_dir) / "checkpoints")
            table = _Table(self.log_dir, self.first_step)
            set_table(self, table)
        return table


class _Table(TableWriter):
    """A table that is appended to row by row, and rewritten as a whole when columns appear."""

    def __init__(self, log_dir: str, first_step: int) -> None:
        self._first_step = first_step
        self._at_last_step: list[dict[str, str]] = []
        super().__init__(log_dir)

    @property
    def path(self) -> Path:
        return Path(self.metrics_file_path)

    def take_over(self) -> None:
        """Keeps what Lightning would delete here, up to the step at which the run continues."""
        found = read_rows(self.path)
        rows = [row for row in found if int(row["step"]) < self._first_step]
        if rows:
            self.metrics_keys = list(rows[0])
            self._write(rows)
            self._at_last_step = [_filled(row) for row in rows if row["step"] == rows[-1]["step"]]
        elif found and self._first_step == 0:
            names = (self.path.with_name(f"metrics.old_{number}.csv") for number in count())
            self.path.rename(next(name for name in names if not name.exists()))
        else:
            self.path.unlink(missing_ok=True)

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Adds a row, or fills up the last one that was not saved yet if it is of the same step."""
        super().log_metrics(metrics_dict, step)
        *_, before, row = [{}, *self.metrics]
        if before.get("step") == row["step"]:
            self.metrics[-2:] = [before | row]

    def save(self) -> None:
        """Writes the new rows; the whole table, in one step, if they have new columns.

        Not those that stand there already: from a step that was saved, or a validation that is repeated.
        """
        self.metrics = [row for row in self.metrics if self._is_new(_filled(row))]
        if self.metrics and self.new_columns():
            self._write([*read_rows(self.path), *self.metrics])
        elif self.metrics:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.metrics_keys).writerows(self.metrics)
        self.metrics = []

    def _is_new(self, row: dict[str, str]) -> bool:
        if any(row.items() <= old.items() for old in self._at_last_step):
            return False
        self._at_last_step = [*(old for old in self._at_last_step if old["step"] == row["step"]), row]
        return True

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with whole_file(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


def _filled(row: Mapping[str, Any]) -> dict[str, str]:
    """A row as it stands in the file, without its empty cells."""
    return {key: str(value) for key, value in row.items() if value not in (None, "")}


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, without a last one that was torn when its process was killed; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        whole = [line for line in file if line.endswith("\n")]
    return list(csv.DictReader(whole))
