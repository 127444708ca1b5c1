"""Cross-validation: a fit per fold in a process of its own, their scores, and one prediction per sample."""

import argparse
import csv
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hybrid_lightning.cli.lightning_cli import HybridCLI, run_cli
from hybrid_lightning.cli.metrics_table import read_rows
from hybrid_lightning.cli.run_folder import versions
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import whole_file

Row = dict[str, Any]
_OWN = ("--data.fold", "--data.init_args.fold", "--ckpt_path", "--resume", "--output", "--row_numbers")


class _Parsed(HybridCLI):
    """Reads a command, and makes nothing of it."""

    def set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def run_subcommand(self, subcommand: str) -> None:
        pass


class Plan(NamedTuple):
    """What is cross-validated.

    Args:
        words: The arguments of each fit.
        folds: How many.
        runs: The folder of all runs.
        name: Of the whole; the fits are named ``<name>_fold<number>``.
        tested: ``best`` or ``last``: the checkpoint that is tested and predicts.
        predict_path: Whether the data would predict something else than the fold.
    """

    words: list[str]
    folds: int
    runs: Path
    name: str
    tested: str
    predict_path: bool

    @classmethod
    def parse(cls, words: list[str], folds: int) -> "Plan":
        """Reads the arguments of a fit.

        Raises:
            ConfigError: If they are wrong, or the data cannot be split into folds.
        """
        for word in words:
            if word.partition("=")[0] in _OWN:
                raise ConfigError(f"cross_validate: {word.partition('=')[0]} differs between the folds; leave it out.")
        if folds < 2:
            raise ConfigError(f"--folds: {folds} folds leave nothing to train on; give 2 or more.")
        config = _parsed(words)
        arguments = config.data.get("init_args") or {}
        if "fold" not in arguments:
            raise ConfigError(
                f"data: {config.data.get('class_path')} has no argument 'fold' (such as 2/5: the second of five folds "
                f"is the test split), so it cannot be cross-validated. ManifestDataModule has one."
            )
        for key in ("logger", "enable_checkpointing"):
            if config.trainer.get(key) is False:
                raise ConfigError(f"trainer.{key}: cross_validate reads what it would write; leave it out.")
        runs = Path(config.trainer.get("default_root_dir") or ".") / "runs"
        tested = config.test_after_fit or "best"
        return cls(words, folds, runs, config.name, tested, bool(arguments.get("predict_path")))

    def run_of(self, fold: int) -> Path | None:
        """The folder of the newest fit of a fold; None if there is none of this fold."""
        for version in versions(self.runs / f"{self.name}_fold{fold}"):
            if (version / "checkpoints").is_dir():
                return version if _fold_in(version) == f"{fold}/{self.folds}" else None
        return None


def _parsed(words: list[str]) -> Any:
    return run_cli(["fit", *words], _Parsed).config["fit"]


def _fold_in(run: Path) -> Any:
    """The fold in a run's config."""
    path = run / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return ((config.get("data") or {}).get("init_args") or {}).get("fold")


def cross_validate(arguments: Sequence[str]) -> None:
    """Fits and tests a model on each fold of the data; --config and all other flags are those of fit."""
    parser = argparse.ArgumentParser(
        "hybrid_lightning cross_validate", description=cross_validate.__doc__, allow_abbrev=False
    )
    parser.add_argument("--folds", type=int, default=5, help="Number of folds; each sample is tested once (default 5).")
    parser.add_argument("--resume", action="store_true", help="Keep the folds that are finished, and go on.")
    options, words = parser.parse_known_args(arguments)
    plan = Plan.parse(words, options.folds)
    with _ended_by_sigterm():
        runs = [_run_fold(plan, fold, options.resume) for fold in range(1, plan.folds + 1)]
    scores = [_test_scores(run) for run in runs]
    folder = plan.runs / f"{plan.name}_folds"
    _write(folder / "scores.csv", [*numbered(scores), *_summary(scores)])
    _write(folder / "predictions.csv", in_order([_read(run / "predictions.csv") for run in runs]))
    print(
        *score_lines(scores), f"scores: {folder / 'scores.csv'}", f"predictions: {folder / 'predictions.csv'}", sep="\n"
    )


def _run_fold(plan: Plan, fold: int, resume: bool) -> Path:
    """Fits, tests and predicts a fold, unless that is done; gives its folder."""
    before = plan.run_of(fold) if resume else None
    if before and (before / "predictions.csv").is_file():
        print(f"fold {fold}/{plan.folds}: finished, in {before}", flush=True)
        return before
    print(f"fold {fold}/{plan.folds}", flush=True)
    common = [*plan.words, "--name", f"{plan.name}_fold{fold}", "--data.fold", f"{fold}/{plan.folds}"]
    fit = [*common, "--test_after_fit", plan.tested, *(["--resume", str(before)] if before else [])]
    _run(["fit", *fit], f"{fold}/{plan.folds}")
    run = plan.run_of(fold)
    assert run is not None
    wanted = run / "checkpoints" / f"{plan.tested}.ckpt"
    checkpoint = wanted if wanted.exists() else wanted.with_name("last.ckpt")  # without validation nothing is best
    predict = ["--ckpt_path", str(checkpoint), "--output", str(run / "predictions.csv"), "--row_numbers", "true"]
    predict += ["--data.predict_path", "null"] if plan.predict_path else []
    _run(["predict", *common, *predict], f"{fold}/{plan.folds}")
    return run


def _run(words: list[str], fold: str) -> None:
    with subprocess.Popen([sys.executable, "-m", "hybrid_lightning", *words]) as process:
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            raise
    if status:
        raise ConfigError(
            f"cross_validate: {words[0]} of fold {fold} ended with status {status}; its error stands above. Correct "
            f"what it says, and repeat the command with --resume: folds that are finished are kept."
        )


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """While it is open, SIGTERM ends the running fold too."""

    def end(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


# Scores


def _test_scores(run: Path) -> dict[str, float]:
    """Metric → its value in the test of a run."""
    found = {
        k: float(v) for row in read_rows(run / "metrics.csv") for k, v in row.items() if k.startswith("test/") and v
    }
    if not found:
        raise ConfigError(f"cross_validate: {str(run)!r} has no test metrics. Repeat the command without --resume.")
    return found


def numbered(scores: Sequence[dict[str, float]]) -> list[Row]:
    """A row per fold."""
    return [{"fold": fold, **row} for fold, row in enumerate(scores, 1)]


def mean_and_std(scores: Sequence[dict[str, float]]) -> dict[str, tuple[float, float | None, int]]:
    """Metric → mean and standard deviation (of a sample) over the folds that have it, and their number."""
    names = dict.fromkeys(name for row in scores for name in row)
    values = {name: [row[name] for row in scores if name in row] for name in names}
    return {
        name: (statistics.fmean(of), statistics.stdev(of) if len(of) > 1 else None, len(of))
        for name, of in values.items()
    }


def _summary(scores: Sequence[dict[str, float]]) -> list[Row]:
    known = mean_and_std(scores)
    mean = {name: value for name, (value, _, _) in known.items()}
    return [{"fold": "mean", **mean}, {"fold": "std", **{name: std for name, (_, std, _) in known.items()}}]


def score_lines(scores: Sequence[dict[str, float]]) -> list[str]:
    """``metric  mean ± std`` as a table; where a metric was undefined in a fold, with the number of folds."""
    known = mean_and_std(scores)
    width = max(map(len, known))
    lines = []
    for name, (mean, std, count) in known.items():
        of = "" if count == len(scores) else f"  ({count} of {len(scores)} folds)"
        lines.append(f"{name:<{width}}  {mean:.4g}" + ("" if std is None else f" ± {std:.2g}") + of)
    return lines


# Predictions


def _read(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def in_order(folds: Sequence[list[Row]]) -> list[Row]:
    """The rows of all folds, with their fold, in the order of the data.

    If the folds number their rows each from 0, because batches have no ``id``, they are kept one after the other.
    """
    rows = [{"fold": fold, **row} for fold, of_fold in enumerate(folds, 1) for row in of_fold]
    numbers = [int(row["row"]) for row in rows]
    return sorted(rows, key=lambda row: int(row["row"])) if len(set(numbers)) == len(numbers) else rows


def _write(path: Path, rows: Iterable[Row]) -> None:
    rows = list(rows)
    columns = dict.fromkeys(name for row in rows for name in row)
    with whole_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
