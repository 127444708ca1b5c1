"""Checks of a manifest before a fit: files, shapes and ids; what is wrong is one error and a table of rows."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.overview import ManifestToCheck, overview
from hybrid_lightning.data.preflight_files import FileFindings, Problem, check_files
from hybrid_lightning.data.samples import require_columns
from hybrid_lightning.data.splits import places_of
from hybrid_lightning.data.table import Array, rows_of
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import write_csv

_SHOWN = 5
"""Problems of a kind in the error; the table lists all."""


def check_on_first_rank(manifest: ManifestToCheck, trainer: pl.Trainer | None, decode: bool = False) -> None:
    """Runs `check_manifest` on the first rank and prints what it finds; the others wait for the result."""
    folder = None if trainer is None else trainer.log_dir  # collective: read on every rank
    bar = sys.stderr.isatty() if trainer is None else trainer.progress_bar_callback is not None

    def work() -> None:
        text = check_manifest(manifest, Path(folder or "."), decode, bar)
        if text:
            print(text)

    first_rank_first(trainer, work)


def first_rank_first(trainer: pl.Trainer | None, work: Callable[[], object]) -> None:
    """Does something on the first rank while the others wait; if it fails, all of them do."""
    if trainer is None:
        work()
        return
    failure: Exception | None = None
    if trainer.is_global_zero:
        try:
            work()
        except Exception as error:  # any failure must reach the other ranks, or they hang
            failure = error
    words = trainer.strategy.broadcast(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    if words is not None:
        raise ConfigError(words)


def check_manifest(manifest: ManifestToCheck, folder: Path, decode: bool = False, bar: bool = False) -> str:
    """Checks all rows of a manifest; torch's random state stays as it was."""
    for entry in manifest.entries.values():
        require_columns(entry, manifest.table)
    with torch.random.fork_rng(devices=[]):  # reading draws random transforms
        findings = _check_all_files(manifest, decode, bar)
    of_files: list[Problem] = []
    for found in findings.values():
        of_files += found.problems
    repeated = _repeated_ids(manifest)
    name = manifest.table.path.name.removesuffix(".gz").rpartition(".")[0]
    path = folder / f"{name}.problems.csv"
    if not of_files and not repeated:
        # the list of an earlier check would mislead
        path.unlink(missing_ok=True)
        return "" if manifest.split is None else overview(manifest, manifest.split, findings)
    _write_problems(sorted([*of_files, *_problems_of_ids(repeated)]), manifest, path)
    more = "" if decode else " Only the first bytes were read; the command 'check' reads whole files."
    lines = _lines_of_files(manifest, sorted(of_files)) + _lines_of_ids(manifest, repeated)
    advice = f"All are listed in {str(path)!r}. Correct the cells, the files or data.root, or remove these rows.{more}"
    raise ConfigError("\n".join([*lines, advice]))


def _check_all_files(manifest: ManifestToCheck, decode: bool, bar: bool) -> dict[str, FileFindings]:
    """Key → what was found, for the inputs that are files."""
    table, findings = manifest.table, {}
    files = [entry for entry in manifest.entries.values() if isinstance(entry, FileInput)]
    rows = [np.flatnonzero(~entry.empty(table)) for entry in files]
    with _progress(sum(map(len, rows)), bar) as advance:
        for entry, own_rows in zip(files, rows, strict=True):
            entry.bind(table, entry.folder)
            found = check_files(entry, own_rows, len(table), decode, advance)
            if manifest.split is not None and manifest.joined:
                found.compare(manifest.split)
            findings[entry.key] = found
    return findings


@contextmanager
def _progress(total: int, bar: bool) -> Iterator[Callable[[int], object]]:
    with Tqdm(total=total, desc="checking files", unit="file", delay=1, leave=False, disable=not bar) as shown:
        yield shown.update


def _repeated_ids(manifest: ManifestToCheck) -> dict[str, Array]:
    """Id → its rows, for those that stand in several; those in several splits first."""
    split = manifest.split
    if manifest.id is None or split is None:
        return {}
    texts = manifest.table.texts(manifest.id)
    filled = np.flatnonzero(np.asarray(texts.is_valid()))
    numbers = np.asarray(texts.take(filled).dictionary_encode().indices)
    counts = np.bincount(numbers)
    repeated: dict[str, list[int]] = {}
    # Python objects for the few repeated ids alone
    for row in filled[counts[numbers] > 1].tolist():
        repeated.setdefault(texts[row].as_py(), []).append(row)
    rows_of_id = {name: np.array(rows) for name, rows in repeated.items()}
    return dict(sorted(rows_of_id.items(), key=lambda item: not _is_shared(item[1], split)))


def _is_shared(rows: Array, split: Array) -> bool:
    return len(np.unique(split[rows])) > 1


def _problems_of_ids(repeated: Mapping[str, Array]) -> list[Problem]:
    problems = []
    for name, rows in repeated.items():
        for row in rows.tolist():
            reason = f"{name!r} is also in {rows_of(rows[rows != row])}"
            problems.append(Problem(row, "id", "", reason))
    return problems


def _lines_of_files(manifest: ManifestToCheck, problems: list[Problem]) -> list[str]:
    if not problems:
        return []
    table = manifest.table
    lines = [f"{table.place}: {len(problems)} files of {str(table.path)!r} cannot be used:"]
    lines += [f"  row {one.row}, {one.key}, {one.cell!r}: {one.reason}" for one in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return lines


def _lines_of_ids(manifest: ManifestToCheck, repeated: Mapping[str, Array]) -> list[str]:
    split = manifest.split
    if not repeated or split is None:
        return []
    first = list(repeated.items())[:_SHOWN]
    shown = [f"{name!r} ({places_of(rows, split)})" for name, rows in first]
    shared = sum(_is_shared(rows, split) for rows in repeated.values())
    seen = f", {shared} of them in more than one split, so that a model is tested on what it has seen"
    more = f" and {len(repeated) - _SHOWN} more" if len(repeated) > _SHOWN else ""
    return [
        f"data.id: {len(repeated)} values of {manifest.id!r} stand in several rows{seen if shared else ''}: "
        f"{', '.join(shown)}{more}."
    ]


def _write_problems(problems: list[Problem], manifest: ManifestToCheck, path: Path) -> None:
    """Writes the problems as CSV; a manifest to predict may lack the column of ids."""
    ids = manifest.table.texts(manifest.id) if manifest.id in manifest.table.columns else None
    rows = []
    for one in problems:
        name = one.row if ids is None else ids[one.row].as_py()
        file = str(Path(manifest.entries[one.key].folder, one.cell)) if one.cell else ""
        rows.append((one.row, name, one.key, file, one.reason))
    write_csv(path, ["row", "id", "key", "path", "problem"], rows)
