"""The table of a run, ``metrics.csv``, that later processes continue."""

import csv
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor

from hybrid_lightning.errors import counted, writing
from hybrid_lightning.files import remove_leftovers, write_csv

Row = dict[str, str]  # column → text of its cell
_STEP = re.compile(r"[0-9]{1,18}")
GO_ON = "What was saved before is whole. Make room or mend the cause, and go on with --resume auto."
"""What to do after a run could not write a file."""


class RunLogger(CSVLogger):
    """Writes ``metrics.csv``; other than Lightning's `CSVLogger`, it continues a table that is there.

    Args:
        save_dir: Folder of all runs.
        name: Folder of the runs of one name.
        version: Folder of the run; None is a new one.
        first_step: Optimizer step from which on the run will log; later rows, of a process that got further than its
            last checkpoint, are dropped. At 0 the run starts from scratch: a table with rows is renamed to
            ``metrics.old_<number>.csv``.
        kept: Number of rows that are kept whatever their step, because the checkpoint came after them.
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str,
        version: str | None = None,
        first_step: int = 0,
        kept: int = 0,
    ) -> None:
        super().__init__(save_dir, name=name, version=version)
        self.first_step = first_step
        self.kept = kept
        self._written = 0  # rows in the file
        self._is_open = False
        self._columns: list[str] = []
        self._rows: list[Row] = []  # those that are logged, but not in the file yet
        self._at_last_step: list[Row] = []  # those in the file that are of its last step

    @property
    def path(self) -> Path:
        """The file of the table."""
        return Path(self.log_dir) / "metrics.csv"

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """This logger, with its table open; a Trainer reads it at the start of a run."""
        with writing(self.path, GO_ON):
            self._open()
        return self

    def _open(self) -> None:
        """Keeps the rows of an earlier process up to the step at which the run continues."""
        if self._is_open:
            return
        self._is_open = True
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        remove_leftovers(folder / "checkpoints")
        found = read_rows(self.path)
        self._keep_damaged(found)
        rows = []
        for number, row in enumerate(found):
            if _is_whole(row) and (number < self.kept or int(row["step"]) < self.first_step):
                rows.append(row)
        self._written = len(rows)
        if rows:
            self._columns = list(rows[0])
            self._rewrite(rows)
            for row in rows:
                self._note({name: text for name, text in row.items() if text})
        elif found and self.first_step == 0:
            # the rows of another run in this folder, which ended before its first checkpoint
            self.path.rename(self._free("old"))
        else:
            self.path.unlink(missing_ok=True)

    def _free(self, word: str) -> Path:
        """The first name such as ``metrics.old_0.csv`` that is free."""
        number = 0
        while (path := self.path.with_name(f"metrics.{word}_{number}.csv")).exists():
            number += 1
        return path

    def _keep_damaged(self, found: list[Row]) -> None:
        """Copies a table with rows that cannot be read, such as after a power loss, and tells where."""
        count = sum(not _is_whole(row) for row in found)
        if count:
            aside = self._free("damaged")
            shutil.copyfile(self.path, aside)
            rank_zero_warn(f"{self.path}: {counted(count, 'damaged row')} left out; as it was, the table is {aside}")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        """Adds a row, or fills up the last one that was not saved yet if it is of the same step."""
        row = {}
        for name, value in metrics.items():
            number = value.item() if isinstance(value, Tensor) else value
            row[name] = str(number)
        row["step"] = str(len(self._rows) if step is None else step)
        if self._rows and self._rows[-1]["step"] == row["step"]:
            self._rows[-1] |= row
        else:
            self._rows.append(row)

    @rank_zero_only
    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Writes nothing: they stand in ``config.yaml``."""

    @rank_zero_only
    def save(self) -> None:
        """Appends the new rows; rewrites the table, in one step, if they have new columns."""
        with writing(self.path, GO_ON):
            self._save()

    def _save(self) -> None:
        self._open()
        if self._written and not self.path.is_file():
            raise FileNotFoundError("it has been removed since its last row was written")
        rows = []
        for row in self._rows:
            if not self._is_repeated(row):
                self._note(row)
                rows.append(row)
        self._rows = []
        if not rows:
            return
        self._written += len(rows)
        columns = set(self._columns).union(*rows)
        if len(columns) > len(self._columns):
            self._columns = sorted(columns)
            self._rewrite([*read_rows(self.path), *rows])
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerows(rows)

    def rows(self) -> int:
        """How many rows the table has, those that are not written yet included; 0 on other ranks than the first."""
        return self._written + sum(not self._is_repeated(row) for row in self._rows)

    def _is_repeated(self, row: Row) -> bool:
        """Whether it is of a step that was saved, or of a validation that is repeated after a restart."""
        return any(row.items() <= old.items() for old in self._at_last_step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Saves the last rows."""
        # a process that has logged nothing must not open the table of another one
        if self._rows:
            self.save()

    def _note(self, row: Row) -> None:
        """Keeps a row for comparison as long as no later step is in the file."""
        if self._at_last_step and self._at_last_step[0]["step"] != row["step"]:
            self._at_last_step = []
        self._at_last_step.append(row)

    def _rewrite(self, rows: list[Row]) -> None:
        cells = ([row.get(name) for name in self._columns] for row in rows)
        write_csv(self.path, self._columns, cells)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table, without a last one that was torn when its process was killed; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        whole_lines = [line for line in file if line.endswith("\n")]
    rows: list[Row] = []
    reader = csv.DictReader(whole_lines)
    while True:
        try:
            rows.append(next(reader))
        except StopIteration:
            return rows
        except csv.Error:  # such as a cell larger than the module takes
            rows.append({})


def _is_whole(row: Mapping[Any, Any]) -> bool:
    """Whether a row is as it was written: a step, and numbers or empty cells."""
    cells = list(row.values())  # a list for what is too much, None for what is missing
    if not all(isinstance(cell, str) and cell == cell.strip() for cell in cells):
        return False
    try:
        for cell in cells:
            float(cell or 0)
    except ValueError:
        return False
    return _STEP.fullmatch(row.get("step", "")) is not None
