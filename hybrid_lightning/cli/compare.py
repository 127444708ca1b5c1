"""``compare``: recipes and baselines over several seeds, each run in a process of its own, as one table."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from hybrid_lightning.cli.building import runs_folder
from hybrid_lightning.cli.comparison_rows import AS_IS, RIDGE, Row, rows_of
from hybrid_lightning.cli.comparison_run import Job, Result, read_result, run
from hybrid_lightning.cli.comparison_table import as_text, cells, readings, summary, write_files
from hybrid_lightning.cli.config_files import read_yaml, read_yaml_file, recipes
from hybrid_lightning.cli.cross_validation import ended_by_sigterm
from hybrid_lightning.cli.parser import parse
from hybrid_lightning.cli.search import Search, ranges_of
from hybrid_lightning.cli.word_parser import WordParser
from hybrid_lightning.errors import ConfigError, check_number, printable
from hybrid_lightning.files import is_regular_file, whole_file

_PER_RUN = ("--seed_everything", "--ckpt_path", "--resume", "--output")
"""Flags of fit that differ between the runs."""
_MOST_SEEDS = 1000
_WRONG_INPUT = 2  # the status with which a command refuses what it was given, whatever the seed


class Failure(NamedTuple):
    """Why a run has no result."""

    name: str
    reason: str


def compare(words: Sequence[str]) -> None:
    """Fits recipes and baselines over several seeds, and prints their scores; --config and other flags as in fit."""
    parser = _parser()
    options, fit_words = parser.parse_beside_fit(words)
    if options.run:
        row, seed, tested = options.run
        run(Job(options.folder, row, int(seed), tested, options.validate_only))
        return
    check_number(options.seeds, "--seeds", low=1, high=_MOST_SEEDS)
    check_number(options.jobs, "--jobs", low=1)
    check_number(options.trials, "--trials", low=1)
    config, folder, tested = _read_config(fit_words)
    folder = (options.folder or folder).absolute()
    _refuse_links(folder)
    rows = rows_of(config, options.recipes, options.baselines == "true")
    if options.search:
        ranges = ranges_of(options.search)
        search = Search(folder, ranges, options.trials, options.jobs, tested)
        with ended_by_sigterm():
            rows = _searched(rows, search)
    _write_configs(folder, rows)
    # seed by seed, so that a comparison that is cut off has values of all rows
    jobs = [Job(folder, row.name, seed, tested) for seed in range(options.seeds) for row in rows]
    with ended_by_sigterm():
        failures = _Runner(jobs, options.jobs).run()
    _tell(folder, rows, jobs, failures)


def _parser() -> WordParser:
    parser = WordParser("hybrid_lightning compare", description=compare.__doc__, allow_abbrev=False)
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=[AS_IS, "full", "linear_probe", "head_first"],
        metavar="RECIPE",
        help=f"Names or YAML files that are stacked on the config; {AS_IS} adds nothing. Differences are to the first. "
        f"Names: {', '.join(recipes())}.",
    )
    parser.add_argument("--seeds", type=int, default=5, help="Number of seeds, from 0 on (default 5).")
    parser.add_argument(
        "--baselines",
        choices=("true", "false"),
        default="true",
        help="Also each part alone, pretrained parts from random weights, and ridge on all features (default true).",
    )
    parser.add_argument("--jobs", type=int, default=1, help="Fits at a time, which share the threads (default 1).")
    parser.add_argument("--folder", type=Path, help="Where all is kept (default runs/<name>_compare).")
    parser.add_argument(
        "--search",
        nargs="+",
        metavar="KEY=LOW..HIGH",
        help="First finds, for each row but the ridge, the values that are best on validation (extra 'tune').",
    )
    parser.add_argument("--trials", type=int, default=20, help="Values that a search tries per row (default 20).")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)  # row, seed, checkpoint: one run in this process
    parser.add_argument("--validate_only", action="store_true", help=argparse.SUPPRESS)
    return parser


def _refuse_links(folder: Path) -> None:
    """Raises `ConfigError` for a link to another place, in which files of a comparison would be replaced."""
    found = [*folder.iterdir(), *folder.glob("logs/*"), *folder.glob("runs/*")] if folder.is_dir() else []
    for path in found:
        if path.is_symlink():
            raise ConfigError(
                f"{str(path)!r} is a link to {str(path.resolve())!r}, where files would be replaced and removed. Put "
                f"what it names in its place, or give another --folder.",
                "--folder",
            )


def _searched(rows: Sequence[Row], search: Search) -> list[Row]:
    """The rows with the values that are best on validation."""

    def fit_all(tried: Sequence[Row], jobs: Sequence[Job]) -> None:
        _write_configs(search.folder, tried)
        _Runner(jobs, search.at_a_time).run()

    searched = [row for row in rows if row.name != RIDGE]
    # a misspelled key is told before the first trial, not by each of them
    refusals = {row.name: search.refusal(row) for row in searched}
    if all(refusals.values()):
        raise ConfigError(f"no row takes these values. {searched[0].name}: {refusals[searched[0].name]}", "--search")
    found = []
    for row in rows:
        reason = refusals.get(row.name)
        if reason is not None:
            print(printable(f"{row.name}: without a search, because it takes no such values: {reason}"), flush=True)
        is_fixed = row.name == RIDGE or reason is not None
        found.append(row if is_fixed else search.best(row, fit_all))
    return found


def _read_config(words: list[str]) -> tuple[dict[str, Any], Path, str]:
    """The config of the flags of fit as plain data, the folder of its comparison, and which checkpoint is measured."""
    for word in words:
        flag = word.partition("=")[0]
        if flag in _PER_RUN:
            raise ConfigError(f"compare: {flag} differs between the runs; leave it out.")
    parsed = parse(["fit", *words])
    settings = parsed.config
    for key in ("logger", "enable_checkpointing"):
        if settings.trainer[key] is False:
            raise ConfigError("compare reads what it would write; leave it out.", f"trainer.{key}")
    if settings.trainer.fast_dev_run:
        raise ConfigError("compare needs whole fits; leave it out.", "trainer.fast_dev_run")
    folder = runs_folder(settings).parent / f"{settings.name}_compare"
    tested = settings.test_after_fit or "best"
    config = read_yaml(parsed.parser.dump(settings, skip_none=False))
    config["trainer"]["enable_progress_bar"] = False
    return {**config, "test_after_fit": tested, "resume": None}, folder, tested


def _write_configs(folder: Path, rows: Sequence[Row]) -> None:
    """Writes the config of each row; one of another comparison that has results is not replaced."""
    for row in rows:
        path = Job(folder, row.name, 0).config
        if is_regular_file(path) and read_yaml_file(path, "--folder") != row.config:
            if _of_row(folder / "results", row):
                raise ConfigError(
                    f"{str(folder)!r} holds results of {row.name!r} with another config. Give another --folder, or "
                    f"remove this one.",
                    "--folder",
                )
            for run_folder in _of_row(folder / "runs", row):
                shutil.rmtree(run_folder)  # cut off, and not to be continued with other settings
        with whole_file(path) as temporary:
            temporary.write_text(yaml.safe_dump(row.config, sort_keys=False), encoding="utf-8")


def _of_row(folder: Path, row: Row) -> list[Path]:
    """What a folder holds of a row's runs."""
    found = folder.iterdir() if folder.is_dir() else ()
    return [path for path in found if path.name.rpartition("_seed")[0] == row.name]


# Running


class _Runner:
    """Runs jobs, some at a time, and tells how far they are."""

    def __init__(self, jobs: Sequence[Job], at_a_time: int) -> None:
        self.jobs = jobs
        self.at_a_time = at_a_time
        self._refused: set[str] = set()  # rows of which no seed can be fitted
        self._running: set[Any] = set()
        self._done = 0
        self._open = sum(read_result(job.result) is None for job in jobs)
        self._started = time.monotonic()

    def run(self) -> list[Failure]:
        """Runs what has no result yet; gives what failed."""
        try:
            return [failure for failure in self._outcomes() if failure is not None]
        except (KeyboardInterrupt, SystemExit):
            print("compare: cut off; the same command goes on, and keeps what is finished", flush=True)
            raise
        finally:
            for process in list(self._running):
                process.terminate()

    def _outcomes(self) -> Iterator[Failure | None]:
        if self.at_a_time == 1:
            yield from map(self._one, self.jobs)
            return
        with ThreadPoolExecutor(self.at_a_time) as threads:
            try:
                yield from threads.map(self._one, self.jobs)
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                for process in list(self._running):
                    process.terminate()
                raise

    def _one(self, job: Job) -> Failure | None:
        before = read_result(job.result)
        if before is not None:
            print(f"{job.name}: finished before, {_score(before)}", flush=True)
            return None
        if job.row in self._refused:
            self._open -= 1
            return None
        log = job.folder / "logs" / f"{job.name}.log"
        status = self._process(job, log)
        self._done += 1
        result = None if status else read_result(job.result)
        if result is not None:
            self._say(job, _score(result))
            return None
        reason = _reason(log, status)
        if status == _WRONG_INPUT:
            self._refused.add(job.row)
            reason += " No further seed is tried."
        self._say(job, f"failed: {reason.removesuffix('.')}")
        return Failure(job.name, f"{reason} (all of it: {log})")

    def _process(self, job: Job, log: Path) -> int:
        """Runs a job in a process of its own, whose output goes to a file; gives its status."""
        words = ["--folder", str(job.folder), "--run", job.row, str(job.seed), job.tested]
        if job.validates_only:
            words.append("--validate_only")
        threads = max(1, torch.get_num_threads() // self.at_a_time)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("w", encoding="utf-8") as output,
            subprocess.Popen(
                [sys.executable, "-m", "hybrid_lightning", "compare", *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            ) as process,
        ):
            self._running.add(process)
            try:
                return process.wait()
            except BaseException:
                process.terminate()
                raise
            finally:
                self._running.discard(process)

    def _say(self, job: Job, text: str) -> None:
        each = (time.monotonic() - self._started) / self._done
        left = each * (self._open - self._done) / 60
        print(printable(f"[{self._done}/{self._open}] {job.name}: {text}; about {left:.0f} min left"), flush=True)


def _score(result: Result) -> str:
    """The main metric on the validation rows; the test is for the table alone."""
    value = result.validation.get(result.main)
    score = "no score" if value is None else f"val/{result.main} {value:.4g}"
    return score if result.seconds is None else f"{score}, {result.seconds:.0f} s"


def _reason(log: Path, status: int) -> str:
    """The last error in what a process has written, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    last = f"status {status}: {lines[-1]}" if lines else f"status {status}"
    return (errors[-1] if errors else last)[:500]


# Telling


def _tell(folder: Path, rows: Sequence[Row], jobs: Sequence[Job], failures: Sequence[Failure]) -> None:
    """Prints the table and what failed, and writes the files."""
    results: dict[str, dict[int, Result]] = {}
    for job in jobs:
        found = read_result(job.result)
        if found is not None:
            results.setdefault(job.row, {})[job.seed] = found
    failed = [f"failed: {failure.name}: {failure.reason}" for failure in failures]
    if not results:
        raise ConfigError("compare: no run has a result. " + " ".join(failed[:3]))
    any_result = _told_by_most(results)
    lines = summary(rows, results, any_result.main)
    shown = cells(lines, any_result.main, rows[0].title)
    notes = [
        "Means over seeds, with their 95 % interval (Student's t: how far another choice of seeds may move them, not "
        "other rows); differences over the same seeds. Drift: ‖w - w0‖ / ‖w0‖ at the end of the run.",
        *readings(rows, results, any_result.main, any_result.is_better_high),
        *failed,
    ]
    write_files(folder, lines, shown, results, "\n\n".join(notes))
    print(printable("\n".join(["", as_text(shown), *notes, f"table: {folder / 'compare.md'}"])))
    if failures:
        print("Repeat the command to try again what failed; what is finished is kept.")


def _told_by_most(results: dict[str, dict[int, Result]]) -> Result:
    """A result whose main metric is that of most."""
    every = [result for found in results.values() for result in found.values()]
    [(main, _)] = Counter(result.main for result in every).most_common(1)
    return next(result for result in every if result.main == main)
