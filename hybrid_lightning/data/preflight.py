"""Checks of a manifest before a fit: files, shapes and ids; what is wrong is one error and a table of rows."""

import csv
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.overview import Checked, overview
from hybrid_lightning.data.preflight_files import FileFindings, Problem, check_files
from hybrid_lightning.data.splits import SPLITS, rows_of
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import whole_file

_SHOWN = 5
_ADVICE = "All are listed in {!r}. Correct the cells, the files or data.root, or remove these rows."


def check_on_first_rank(checked: Checked, trainer: pl.Trainer | None, decode: bool = False) -> None:
    """Runs `check_manifest` on the first rank and prints what it finds; the others wait for its verdict.

    Problems are listed in ``<manifest>.problems.csv``, in the run's folder, or without a Trainer in the working folder.

    Args:
        checked: What is checked.
        trainer: The Trainer of the fit; None if there is none.
        decode: Whether each file is read as a whole.

    Raises:
        ConfigError: If there is a problem, on every rank.
    """
    folder = None if trainer is None else trainer.log_dir  # every rank has to ask, because the answer is broadcast
    bar = sys.stderr.isatty() if trainer is None else trainer.progress_bar_callback is not None

    def work() -> None:
        text = check_manifest(checked, Path(folder or "."), decode, bar)
        if text:
            print(text)

    first_rank_first(trainer, work)


def first_rank_first(trainer: pl.Trainer | None, work: Callable[[], object]) -> None:
    """Does something on the first rank while the others wait; if it fails, all of them do.

    Raises:
        ConfigError: On the other ranks, with the words of the first one's error.
    """
    failure: Exception | None = None
    if trainer is None or trainer.is_global_zero:
        try:
            work()
        except Exception as error:  # whatever it is, the others must not wait for ever
            failure = error
    words = None if failure is None else str(failure)
    words = words if trainer is None else trainer.strategy.broadcast(words)
    if failure is not None:
        raise failure
    if words is not None:
        raise ConfigError(words)


def check_manifest(checked: Checked, folder: Path, decode: bool = False, bar: bool = False) -> str:
    """Looks at all rows of a manifest; torch's random state stays as it was.

    Refused are files that are missing or unreadable, samples whose shapes cannot be joined to a batch, and ids that
    stand twice.

    Args:
        checked: What is checked.
        folder: Where the table of problems is written; one of an earlier check is removed if there are none.
        decode: Whether files are read as a whole; otherwise their first bytes.
        bar: Whether progress is shown on standard error.

    Returns:
        Counts and shapes as aligned text, with a line for each warning; empty if only files are checked.

    Raises:
        ConfigError: If there is a problem; the first five of a kind are shown, all are listed in the table.
    """
    for entry in checked.entries.values():
        for column in entry.columns:
            checked.table.require(column, entry.where)
    with torch.random.fork_rng(devices=[]), _progress(checked, bar) as advance:
        findings = _all_files(checked, decode, advance)
    repeated = _repeated_ids(checked)
    problems = sorted([*_of_ids(repeated), *(one for found in findings.values() for one in found.problems)])
    path = folder / f"{checked.table.path.name.removesuffix('.gz').rpartition('.')[0]}.problems.csv"
    if not problems:
        path.unlink(missing_ok=True)
        return overview(checked, findings) if checked.split is not None else ""
    _write(problems, checked, path)
    lines = [*_file_lines(checked, problems), *_id_lines(checked, repeated)]
    more = "" if decode else " Only the first bytes were read; the command 'check' reads whole files."
    raise ConfigError("\n".join([*lines, f"{_ADVICE.format(str(path))}{more}"]))


@contextmanager
def _progress(checked: Checked, bar: bool) -> Iterator[Callable[[int], object]]:
    total = sum(int((~entry.empty(checked.table)).sum()) for entry in _files(checked))
    with Tqdm(total=total, desc="checking files", unit="file", delay=1, leave=False, disable=not bar) as shown:
        yield shown.update


def _files(checked: Checked) -> list[FileInput]:
    return [entry for entry in checked.entries.values() if isinstance(entry, FileInput)]


def _all_files(checked: Checked, decode: bool, advance: Callable[[int], object]) -> dict[str, FileFindings]:
    findings = {}
    for entry in _files(checked):
        entry.bind(checked.table, checked.folder)
        rows = np.flatnonzero(~entry.empty(checked.table))
        found = findings[entry.key] = check_files(entry, rows, len(checked.table), decode, advance)
        if checked.split is not None and checked.joined:
            found.compare(checked.split)
    return findings


def _repeated_ids(checked: Checked) -> dict[str, list[int]]:
    """Id → its rows, for those that stand in several; those in several splits first."""
    split = checked.split
    if checked.id is None or split is None:
        return {}
    encoded = checked.table.texts(checked.id).dictionary_encode()
    numbers = np.asarray(encoded.indices.fill_null(len(encoded.dictionary)))
    counts = np.bincount(numbers, minlength=len(encoded.dictionary) + 1)
    counts[-1] = 0  # empty cells
    repeated: dict[str, list[int]] = {}
    for row in np.flatnonzero(counts[numbers] > 1).tolist():
        repeated.setdefault(encoded.dictionary[int(numbers[row])].as_py(), []).append(row)
    shared = {name: len(set(split[rows].tolist())) > 1 for name, rows in repeated.items()}
    return {name: repeated[name] for name in sorted(repeated, key=lambda name: not shared[name])}


def _of_ids(repeated: Mapping[str, list[int]]) -> list[Problem]:
    return [
        Problem(row, "id", "", f"{name!r} is also in {rows_of(other for other in rows if other != row)}")
        for name, rows in repeated.items()
        for row in rows
    ]


def _file_lines(checked: Checked, problems: list[Problem]) -> list[str]:
    broken = [problem for problem in problems if problem.cell]
    if not broken:
        return []
    lines = [f"{checked.table.where}: {len(broken)} files of {str(checked.table.path)!r} cannot be used:"]
    lines += [f"  row {one.row}, {one.key}, {one.cell!r}: {one.reason}" for one in broken[:_SHOWN]]
    return lines + ([f"  and {len(broken) - _SHOWN} more"] if len(broken) > _SHOWN else [])


def _id_lines(checked: Checked, repeated: Mapping[str, list[int]]) -> list[str]:
    if not repeated or checked.split is None:
        return []
    shown, both = [], 0
    for name, rows in repeated.items():
        places: dict[str, list[int]] = {}
        for row in rows:
            places.setdefault(SPLITS[checked.split[row]], []).append(row)
        both += len(places) > 1
        by_split = "; ".join(f"{split}: {rows_of(own, 3)}" for split, own in places.items())
        shown.append(f"{name!r} ({by_split if len(places) > 1 else rows_of(rows, 3)})")
    seen = f", {both} of them in more than one split, so that a model is tested on what it has seen" if both else ""
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return [
        f"data.id: {len(shown)} values of {checked.id!r} stand in several rows{seen}: "
        f"{', '.join(shown[:_SHOWN])}{more}."
    ]


def _write(problems: list[Problem], checked: Checked, path: Path) -> None:
    """Writes the problems as CSV: row, id, key, path, problem."""
    ids = None if checked.id not in checked.table.columns else checked.table.texts(str(checked.id))
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "id", "key", "path", "problem"])
        for one in problems:
            where = str(Path(checked.folder, one.cell)) if one.cell else ""
            writer.writerow([one.row, one.row if ids is None else ids[one.row].as_py(), one.key, where, one.reason])
