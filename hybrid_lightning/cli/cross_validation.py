"""Cross-validation: a run per fold in a process of its own, their scores, and one prediction per sample."""

import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_lightning.cli.building import runs_folder
from hybrid_lightning.cli.config_files import mapping_at, read_yaml_file
from hybrid_lightning.cli.metrics_table import read_rows
from hybrid_lightning.cli.parser import parse
from hybrid_lightning.cli.run_folder import versions
from hybrid_lightning.cli.word_parser import WordParser
from hybrid_lightning.errors import ConfigError, reason
from hybrid_lightning.files import is_regular_file, write_csv

Row = dict[str, Any]
PER_FOLD = ("--data.fold", "--data.init_args.fold", "--ckpt_path", "--resume", "--output", "--row_numbers")
"""Flags that the commands of each fold are given."""


class Plan(NamedTuple):
    """What is cross-validated."""

    words: list[str]
    folds: int
    runs: Path
    name: str
    tested: str  # best or last: the checkpoint that is tested and predicts
    predict_path: bool  # whether the data would predict something else than the fold

    @classmethod
    def parse(cls, words: list[str], folds: int) -> "Plan":
        """Reads the arguments of a run."""
        for word in words:
            flag = word.partition("=")[0]
            if flag in PER_FOLD:
                raise ConfigError(f"cross_validate: {flag} differs between the folds; leave it out.")
        if folds < 2:
            raise ConfigError(f"{folds} folds leave nothing to train on; give 2 or more.", "--folds")
        config = parse(["fit", *words]).config
        arguments = config.data.get("init_args") or {}
        if "fold" not in arguments:
            raise ConfigError(
                f"data: {config.data.get('class_path')} has no argument 'fold' (such as 2/5: the second of five folds "
                f"is the test split), so it cannot be cross-validated. ManifestDataModule has one."
            )
        for key in ("logger", "enable_checkpointing"):
            if config.trainer[key] is False:
                raise ConfigError("cross_validate reads what it would write; leave it out.", f"trainer.{key}")
        return cls(
            words,
            folds,
            runs=runs_folder(config).parent,
            name=config.name,
            tested=config.test_after_fit or "best",
            predict_path=bool(arguments.get("predict_path")),
        )

    def run_of(self, fold: int) -> Path | None:
        """The folder of the newest fit of a fold; None if there is none of this fold."""
        for version in versions(self.runs / f"{self.name}_fold{fold}"):
            if (version / "checkpoints").is_dir():
                return version if _fold_in(version) == f"{fold}/{self.folds}" else None
        return None


def _fold_in(run: Path) -> Any:
    """The fold in a run's config."""
    path = run / "config.yaml"
    config = read_yaml_file(path, "cross_validate") if is_regular_file(path) else {}
    return mapping_at(config, "data", "init_args").get("fold")


def cross_validate(words: Sequence[str]) -> None:
    """Fits and tests a model on each fold of the data; --config and all other flags are those of fit."""
    parser = WordParser("hybrid_lightning cross_validate", description=cross_validate.__doc__, allow_abbrev=False)
    parser.add_argument("--folds", type=int, default=5, help="Number of folds; each sample is tested once (default 5).")
    parser.add_argument("--resume", action="store_true", help="Keep the folds that are finished, and go on.")
    options, fit_words = parser.parse_beside_fit(words)
    plan = Plan.parse(fit_words, options.folds)
    with ended_by_sigterm():
        runs = [_run_fold(plan, fold, options.resume) for fold in range(1, plan.folds + 1)]
    try:
        scores = [_test_scores(run) for run in runs]
        predictions = in_order([read_rows(run / "predictions.csv") for run in runs])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"cross_validate: metrics.csv or predictions.csv of a fold is damaged: {reason(error)} Remove the folders "
            f"{f'{plan.name}_fold*'!r} in {str(plan.runs)!r} that hold them, and repeat the command with --resume."
        ) from error
    folder = plan.runs / f"{plan.name}_folds"
    _write(folder / "scores.csv", score_rows(scores))
    _write(folder / "predictions.csv", predictions)
    for line in score_lines(scores):
        print(line)
    print(f"scores: {folder / 'scores.csv'}")
    print(f"predictions: {folder / 'predictions.csv'}")


def _run_fold(plan: Plan, fold: int, resume: bool) -> Path:
    """Fits, tests and predicts a fold, unless that is done; gives its folder."""
    before = plan.run_of(fold) if resume else None
    if before and (before / "predictions.csv").is_file():
        print(f"fold {fold}/{plan.folds}: finished, in {before}", flush=True)
        return before
    print(f"fold {fold}/{plan.folds}", flush=True)
    common = [*plan.words, "--name", f"{plan.name}_fold{fold}", "--data.fold", f"{fold}/{plan.folds}"]
    fit = ["fit", *common, "--test_after_fit", plan.tested]
    if before:
        fit += ["--resume", str(before)]
    _run(fit, f"{fold}/{plan.folds}")
    run = plan.run_of(fold)
    assert run is not None
    checkpoint = run / "checkpoints" / f"{plan.tested}.ckpt"
    if not checkpoint.exists():  # without validation nothing is best
        checkpoint = checkpoint.with_name("last.ckpt")
    predict = ["predict", *common, "--ckpt_path", str(checkpoint), "--output", str(run / "predictions.csv")]
    predict += ["--row_numbers", "true"]  # by which the tables of all folds are put in order
    if plan.predict_path:  # else the new samples would be predicted instead of the fold
        predict += ["--data.predict_path", "null"]
    _run(predict, f"{fold}/{plan.folds}")
    return run


def _run(words: list[str], fold: str) -> None:
    """Runs a command in a process of its own, which releases all memory of the device at its end."""
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
def ended_by_sigterm() -> Iterator[None]:
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
    found = {}
    for row in read_rows(run / "metrics.csv"):
        for name, text in row.items():
            if name.startswith("test/") and text:
                found[name] = float(text)
    if not found:
        raise ConfigError(f"cross_validate: {str(run)!r} has no test metrics. Repeat the command without --resume.")
    return found


def mean_and_std(scores: Sequence[dict[str, float]]) -> dict[str, tuple[float, float | None, int]]:
    """Metric → mean and standard deviation (of a sample) over the folds that have it, and their number."""
    values: dict[str, list[float]] = {}
    for of_fold in scores:
        for name, value in of_fold.items():
            values.setdefault(name, []).append(value)
    found = {}
    for name, of_metric in values.items():
        std = statistics.stdev(of_metric) if len(of_metric) > 1 else None
        found[name] = (statistics.fmean(of_metric), std, len(of_metric))
    return found


def score_rows(scores: Sequence[dict[str, float]]) -> list[Row]:
    """A row per fold, and one each for mean and standard deviation."""
    rows: list[Row] = [{"fold": fold, **of_fold} for fold, of_fold in enumerate(scores, 1)]
    means: Row = {"fold": "mean"}
    stds: Row = {"fold": "std"}
    for name, (mean, std, _) in mean_and_std(scores).items():
        means[name] = mean
        stds[name] = std
    return [*rows, means, stds]


def score_lines(scores: Sequence[dict[str, float]]) -> list[str]:
    """``metric  mean ± std`` as a table; where a metric was undefined in a fold, with the number of folds."""
    known = mean_and_std(scores)
    width = max(map(len, known))
    lines = []
    for name, (mean, std, count) in known.items():
        line = f"{name:<{width}}  {mean:.4g}"
        if std is not None:
            line += f" ± {std:.2g}"
        if count < len(scores):
            line += f"  ({count} of {len(scores)} folds)"
        lines.append(line)
    return lines


# Tables


def in_order(folds: Sequence[Sequence[Mapping[str, Any]]]) -> list[Row]:
    """The rows of all folds, with their fold, in the order of the data."""
    # if the folds number their rows each from 0, because batches have no ``id``, they are kept one after the other
    rows = []
    for fold, of_fold in enumerate(folds, 1):
        rows += [{"fold": fold, **row} for row in of_fold]
    numbers = {int(row["row"]) for row in rows}
    if len(numbers) < len(rows):
        return rows
    return sorted(rows, key=lambda row: int(row["row"]))


def _write(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows of which some lack columns."""
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(row)
    write_csv(path, columns, ([row.get(name) for name in columns] for row in rows))
