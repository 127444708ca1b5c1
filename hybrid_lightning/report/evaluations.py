"""What ``evaluate`` has measured on new tables, as plain data: a file per table in the folder of the run."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_lightning.errors import reason
from hybrid_lightning.files import is_regular_file
from hybrid_lightning.report import record
from hybrid_lightning.report.record import Record, read_plain, write_plain

_BEGINNING = "evaluation_"
_MOST = 8  # that are read
_LONGEST_NAME = 150  # bytes, of which file systems take 255 with what stands around it
_FOLDERS = 3  # names of a path, the file's own among them, that a title has at most
_MOST_METRICS = 200  # of which a page shows the first
_MAYBE = (float, type(None))
_FORM: dict[Any, Any] = {
    "title": str,
    "drawn": str,
    "metrics": [{"name": str, "value": _MAYBE, "low": _MAYBE, "high": _MAYBE}],
    "record": record.FORM,
}


@dataclass
class Evaluation:
    """A checkpoint on a new table."""

    title: str  # see `title_of`
    drawn: str  # how the intervals were found
    metrics: list[dict[str, Any]]  # name, value, low and high of each; None where it is undefined
    record: Record  # of the predictions

    def write(self, folder: Path, table: Path) -> Path:
        """Writes the file in the place of an earlier evaluation of this table."""
        place = table.resolve()
        name = re.sub(r"[^\w.-]", "_", place.name).encode()[:_LONGEST_NAME].decode(errors="ignore")
        # tables in different folders may have one name
        digest = hashlib.blake2b(bytes(str(place.parent), "utf-8", "surrogateescape"), digest_size=4).hexdigest()
        path = folder / f"{_BEGINNING}{name}_{digest}.json"
        metrics = self.metrics[:_MOST_METRICS]
        write_plain(path, {**vars(self), "metrics": metrics, "record": self.record.plain()})
        return path


def title_of(table: Path) -> str:
    """The end of a table's path; a report shows as much of it as tells the tables apart."""
    return "/".join(table.resolve().parts[1:][-_FOLDERS:])


def read_evaluations(folder: Path) -> tuple[list[Evaluation], list[str]]:
    """The newest evaluations in a run's folder, and a line for each that cannot be read."""
    found: list[Evaluation] = []
    notes: list[str] = []
    paths = sorted(folder.glob(f"{_BEGINNING}*.json"), key=lambda path: path.lstat().st_mtime_ns)
    if len(paths) > _MOST:
        notes.append(f"Of {len(paths)} evaluations the newest {_MOST} are shown.")
    for path in sorted(paths[-_MOST:]):
        try:
            content = read_plain(path, _FORM) if is_regular_file(path) else None
            if content is not None:
                own = Record.of(content["record"])
                found.append(Evaluation(content["title"], content["drawn"], content["metrics"], own))
        except (ValueError, RecursionError, OSError) as error:
            notes.append(f"{path.name[:120]} cannot be read, so that it is missing: {reason(error)}")
    for one, title in zip(found, _told_apart([one.title for one in found]), strict=True):
        one.title = title
    return found, notes


def _told_apart(titles: Sequence[str]) -> Sequence[str]:
    """The file names where they differ, else the shortest ends of paths that do."""
    for count in range(1, _FOLDERS):
        ends = ["/".join(title.split("/")[-count:]) for title in titles]
        if len(set(ends)) == len(titles):
            return ends
    return titles
