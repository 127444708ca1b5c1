"""``report``: a page of one or several runs; and the one that a run or a test writes by itself."""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hybrid_lightning.cli.building import Setup, build
from hybrid_lightning.cli.config_files import read_yaml_file
from hybrid_lightning.cli.parser import parse
from hybrid_lightning.cli.preparation import build_from_data
from hybrid_lightning.cli.run_folder import say, versions
from hybrid_lightning.cli.tables import check_output
from hybrid_lightning.cli.word_parser import WordParser
from hybrid_lightning.errors import ConfigError, reason
from hybrid_lightning.files import is_regular_file
from hybrid_lightning.report.collect import collect
from hybrid_lightning.report.loggers import log_page
from hybrid_lightning.report.page import write_page
from hybrid_lightning.report.record import Record, read_record, require_plotly
from hybrid_lightning.report.runs import Run, read_run
from hybrid_lightning.report.sections import sections
from hybrid_lightning.tasks.selection import best_checkpoint

_MOST_RUNS = 20
_SECONDS = 3.0
"""For the predictions of a report that a run writes by itself, which then takes less than four."""
_LARGEST_CHECKPOINT = 256 * 2**20  # bytes; reading a larger one takes longer
_LARGEST_CONFIG = 2**20  # bytes


def report(words: Sequence[str]) -> None:
    """Writes a page that opens offline: curves, what trained when, predictions, samples and settings of runs.

    Give a run's folder, or that of a name, of which it is the newest run; several are drawn side by side. A run writes
    the page by itself where plotly is installed. It is drawn from the folder alone; --config, which names the data and
    classes to be used, also predicts the validation rows anew.
    """
    options = _parser().parse_args(words)
    if options.output is not None:
        check_output(options.output, (".html",))
    require_plotly()
    if len(options.runs) > _MOST_RUNS:
        raise ConfigError(
            f"{len(options.runs)} runs are more than a page can show; give at most {_MOST_RUNS}.", "report"
        )
    folders = [_folder(path) for path in options.runs]
    if options.config or options.ckpt_path:
        if len(folders) > 1 or not options.config:
            raise ConfigError("--config and --ckpt_path are for one run, and --config is needed.", "report")
        _predict(folders[0], options.config, options.ckpt_path)
    runs = _read(folders)
    for folder, run in zip(folders, runs, strict=True):
        if not run.record.rows and not run.notes:
            of_run = f" of {run.title}" if len(runs) > 1 else ""
            run.notes.append(
                f"Predictions{of_run} are not shown. To add them, with the data and classes that the config names: "
                f"python -m hybrid_lightning report {folder} --config {folder / 'config.yaml'}"
            )
    default = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    output = Path(options.output or default)
    write_page(runs, output)
    say(f"report: {output}")


def _parser() -> WordParser:
    parser = WordParser("hybrid_lightning report", description=report.__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="Folders of runs, such as runs/quickstart.")
    parser.add_argument(
        "--output", help="The page, .html (default: report.html in the run's folder; of several, here)."
    )
    parser.add_argument("--config", action="append", help="Config whose model and data predict the validation rows.")
    parser.add_argument("--ckpt_path", help="Checkpoint that predicts: best (default) or last of the run, or a path.")
    return parser


def _folder(path: Path) -> Path:
    """A run's folder; of the folder of a name, its newest fit."""
    if path.is_dir() and any(is_regular_file(path / name) for name in ("config.yaml", "metrics.csv")):
        return path
    newest = versions(path) if path.is_dir() else []
    fits = [folder for folder in newest if (folder / "checkpoints").is_dir()]
    if not newest:
        raise ConfigError(
            f"there is no run in {str(path)[:300]!r}. Give a folder such as runs/name/version_0.", "report"
        )
    return (fits or newest)[0]


def page_of(folder: Path) -> Path:
    """Draws the page of one run's folder, and gives its path."""
    path = folder / "report.html"
    write_page(_read([folder]), path)
    return path


def _read(folders: Sequence[Path]) -> list[Run]:
    """The runs of folders, with titles that tell them apart."""
    titles = [f"{folder.absolute().parent.name}/{folder.absolute().name}" for folder in folders]
    runs = []
    for number, (folder, title) in enumerate(zip(folders, titles, strict=True)):
        path = folder / "config.yaml"
        config: Any = {}
        text = ""
        if is_regular_file(path) and path.stat().st_size <= _LARGEST_CONFIG:
            text = path.read_text(encoding="utf-8", errors="replace")
            try:
                config = read_yaml_file(path, "report")
            except ConfigError as error:
                text = f"{error}\n\n{text}"
        title = f"{title} ({number})" if titles.count(title) > 1 else title
        runs.append(read_run(folder, title, config, text))
    return runs


def _predict(folder: Path, configs: Sequence[str], ckpt_path: str | None) -> None:
    """Predicts the validation rows by a config of the user's, and writes the record of the run."""
    path = Path(ckpt_path or "best")
    if str(path) in ("best", "last"):
        path = folder / "checkpoints" / f"{path}.ckpt"
    words = [word for config in configs for word in ("--config", config)]
    # no logger: no other run's folder is made
    setup = build(parse(["validate", *words, "--ckpt_path", str(path), "--trainer.logger", "false"]))
    build_from_data(setup, load=False)
    record = collect(setup.trainer, setup.model, setup.data, "val", path)
    if not record.rows:
        raise ConfigError(" ".join(record.notes) or "there are no validation rows to predict.", "report")
    old = read_record(folder)
    if old.parts:  # when their stages began, and what the end of the run compared
        fresh = {part["part"]: part for part in record.parts}
        measured = ("without", "whole", "contribution")
        for part in old.parts:
            part |= {key: fresh.get(part["part"], {}).get(key) for key in measured}
        record.parts, record.best = old.parts, old.best
    record.write(folder)


# By itself


def report_after(command: str, setup: Setup) -> None:
    """After a run or a test writes the report of its folder, on the first rank, where plotly is installed."""
    if command not in ("fit", "test") or setup.others or (setup.continued and setup.continued.finished):
        return
    trainer = setup.trainer
    folder = trainer.log_dir  # a collective call: the answer is broadcast
    is_wanted = setup.options.report and not trainer.fast_dev_run  # type: ignore[attr-defined]
    if not (is_wanted and trainer.is_global_zero and folder and trainer.logger and find_spec("plotly")):
        return
    started = time.perf_counter()
    page = Path(folder) / "report.html"
    try:
        _collect_now(command, setup, Path(folder)).write(Path(folder))
        runs = _read([Path(folder)])
        write_page(runs, page)
    except Exception as error:  # a picture must not cost a run
        say(f"report: none was written. {reason(error)}")
        return
    say(f"report: {page} ({time.perf_counter() - started:.1f} s)")
    for problem in log_page(trainer.loggers[1:], page, sections(runs), trainer.global_step):
        say(f"report: {problem}")


def _collect_now(command: str, setup: Setup, folder: Path) -> Record:
    """The record of what has just run."""
    trainer = setup.trainer
    path = Path(setup.checkpoint or "") if command == "test" else best_checkpoint(trainer)
    problem = ""
    if path is None or not is_regular_file(path):
        problem = "there is no best checkpoint in one file"
    elif path.stat().st_size > _LARGEST_CHECKPOINT:
        problem = "the checkpoint is large"
    elif trainer.world_size > 1:
        problem = "several devices have run"
    split = "test" if command == "test" else "val"
    record = collect(trainer, setup.model, setup.data, split, None if problem else path, _SECONDS)
    if problem:
        record.notes.append(f"Predictions are not shown: {problem}.")
    if record.notes and command == "fit":
        config = folder / "config.yaml"
        record.notes.append(f"To add them: python -m hybrid_lightning report {folder} --config {config}")
    best = setup.options.checkpoint
    if command == "fit" and best in trainer.checkpoint_callbacks:
        record.best = best.described()
    return record
