"""Checks of a manifest before a run: files, shapes and ids; what is wrong is one error and a table of rows."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from hybrid_lightning.data.inputs.base import shortened_cell
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.overview import ManifestToCheck, overview
from hybrid_lightning.data.preflight_files import FileFindings, Problem, check_files
from hybrid_lightning.data.splits import places_of
from hybrid_lightning.data.table import Array, rows_of
from hybrid_lightning.errors import ConfigError, counted
from hybrid_lightning.files import write_csv

if TYPE_CHECKING:
    import pyarrow

_SHOWN = 5  # problems of a kind in the error; the table lists all


def check_on_first_rank(manifest: ManifestToCheck, trainer: pl.Trainer | None, decode: bool = False) -> None:
    """Runs `check_manifest` on the first rank and prints what it finds; the others wait for the result."""
    folder = None if trainer is None else trainer.log_dir  # collective: read on every rank
    bar = sys.stderr.isatty() if trainer is None else trainer.progress_bar_callback is not None

    first_rank_first(trainer, lambda: check_manifest(manifest, Path(folder or "."), decode, bar))


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


def check_manifest(manifest: ManifestToCheck, folder: Path, decode: bool, bar: bool) -> None:
    """Checks a manifest and prints what it holds; refuses it, with a table in `folder`, if something is wrong."""
    with torch.random.fork_rng(devices=[]):  # reading draws random transforms
        findings = _check_all_files(manifest, decode, bar)
    problems: list[Problem] = []
    for found in findings.values():
        problems += found.problems
    problems.sort()
    lines = _lines_of_files(manifest, problems)
    if manifest.split is not None and manifest.id is not None:
        repeated = _repeated_ids(manifest.table.names(manifest.id), manifest.split)
        problems += _problems_of_ids(repeated)
        lines += _lines_of_ids(manifest.id, repeated, manifest.split)
    name = manifest.table.title.removesuffix(".gz")
    path = folder / f"{name.rpartition('.')[0] or name}.problems.csv"
    if problems:
        _write_problems(sorted(problems), manifest, path)
        more = "" if decode else " Only the first bytes were read; the command 'check' reads whole files."
        lines.append(
            f"All are listed in {str(path)!r}; row 0 is the first below the header. Correct the cells, the files or "
            f"data.root, or remove these rows.{more}"
        )
        raise ConfigError("\n".join(lines))
    path.unlink(missing_ok=True)  # the list of an earlier check would mislead
    if manifest.split is not None:
        print(overview(manifest, manifest.split, findings, decode))


def _check_all_files(manifest: ManifestToCheck, decode: bool, bar: bool) -> dict[str, FileFindings]:
    """Key → what was found, for the inputs that are files."""
    table, findings = manifest.table, {}
    files = [entry for entry in manifest.entries.values() if isinstance(entry, FileInput)]
    numbers = []
    for entry in files:
        entry.bind(table)
        numbers.append(entry.numbers(np.arange(len(table))))
    total = sum(map(len, numbers))
    with Tqdm(total=total, desc="checking files", unit="file", delay=1, leave=False, disable=not bar) as shown:
        for entry, own in zip(files, numbers, strict=True):
            found = check_files(entry, own, decode, shown.update)
            if manifest.split is not None and manifest.joined:
                found.compare(manifest.split)
            findings[entry.key] = found
    return findings


def _repeated_ids(texts: "pyarrow.Array", split: Array) -> dict[str, Array]:
    """Id → its rows, for those that stand in several; those in several splits first."""
    codes = texts.dictionary_encode().indices.to_pandas().dropna()
    repeated = codes[codes.duplicated(keep=False)]
    groups = repeated.groupby(repeated, sort=False).groups.values()
    rows_of_id = {texts[int(rows[0])].as_py(): rows.to_numpy() for rows in groups}
    return dict(sorted(rows_of_id.items(), key=lambda item: not _is_shared(item[1], split)))


def _is_shared(rows: Array, split: Array) -> bool:
    return len(np.unique(split[rows])) > 1


def _problems_of_ids(repeated: Mapping[str, Array]) -> list[Problem]:
    problems = []
    for name, rows in repeated.items():
        reason = f"{name!r} stands in {rows_of(rows)}"
        problems += [Problem(row, "id", "", reason) for row in rows.tolist()]
    return problems


def _lines_of_files(manifest: ManifestToCheck, problems: list[Problem]) -> list[str]:
    if not problems:
        return []
    table = manifest.table
    lines = [f"{table.place}: {counted(len(problems), 'file')} of {str(table.path)!r} cannot be used:"]
    lines += [f"  row {one.row}, {one.key}, {shortened_cell(one.cell)}: {one.reason}" for one in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        lines.append(f"  and {len(problems) - _SHOWN} more")
    return lines


def _lines_of_ids(column: str, repeated: Mapping[str, Array], split: Array) -> list[str]:
    if not repeated:
        return []
    first = list(repeated.items())[:_SHOWN]
    shown = [f"{name!r} ({places_of(rows, split)})" for name, rows in first]
    shared = sum(_is_shared(rows, split) for rows in repeated.values())
    seen = f", {shared} of them in more than one split, so that a model is tested on what it has seen"
    more = f" and {len(repeated) - _SHOWN} more" if len(repeated) > _SHOWN else ""
    return [
        f"data.id: {len(repeated)} values of {column!r} stand in several rows{seen if shared else ''}: "
        f"{', '.join(shown)}{more}."
    ]


def _write_problems(problems: list[Problem], manifest: ManifestToCheck, path: Path) -> None:
    ids = None if manifest.id is None else manifest.table.texts(manifest.id)
    rows = []
    for one in problems:
        name = one.row if ids is None else ids[one.row].as_py()
        is_file = one.cell and manifest.table.shards is None
        file = str(Path(manifest.entries[one.key].folder, one.cell)) if is_file else one.cell
        rows.append((one.row, name, one.key, file, one.reason))
    write_csv(path, ["row", "id", "key", "path", "problem"], rows)
