"""One run of a comparison: a fit, or ridge regression in closed form, then its validation and its test."""

import contextlib
import io
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hybrid_lightning.cli.building import Setup, build
from hybrid_lightning.cli.comparison_rows import RIDGE, Config
from hybrid_lightning.cli.metrics_table import read_rows
from hybrid_lightning.cli.parser import parse
from hybrid_lightning.cli.preparation import plan, restoring
from hybrid_lightning.cli.probe import prepared_on_device, training_features
from hybrid_lightning.cli.run_folder import versions
from hybrid_lightning.cli.run_lock import is_first_rank
from hybrid_lightning.cli.training import fit
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.files import is_regular_file, whole_file
from hybrid_lightning.tasks.monitored import directions_of
from hybrid_lightning.tasks.probing import TOGETHER, probe_features
from hybrid_lightning.tasks.start import set_start, solution_of

_LARGEST_RESULT = 2**20  # bytes


class Job(NamedTuple):
    """A row and a seed."""

    folder: Path  # of the comparison
    row: str
    seed: int
    tested: str = "best"  # best or last: the checkpoint that is measured
    validates_only: bool = False  # whether the test rows are left alone

    @property
    def name(self) -> str:
        """The folder of the run."""
        return f"{self.row}_seed{self.seed}"

    @property
    def config(self) -> Path:
        """The config of the row."""
        return self.folder / "configs" / f"{self.row}.yaml"

    @property
    def result(self) -> Path:
        """What is written when all is done."""
        return self.folder / "results" / f"{self.name}.json"


class Result(NamedTuple):
    """What a run gave."""

    validation: dict[str, float]  # metric without its split → value
    test: dict[str, float]
    main: str  # metric
    is_better_high: bool
    seconds: float | None  # of the run; None if several sittings made it
    drift: dict[str, float]  # pretrained part → ‖w - w0‖ / ‖w0‖ at the end of the run


def read_result(path: Path) -> Result | None:
    """The result of a run; None if it has not ended, or the file is damaged."""
    if not is_regular_file(path) or path.stat().st_size > _LARGEST_RESULT:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        seconds = found["seconds"]
        return Result(
            validation=_numbers(found["validation"]),
            test=_numbers(found["test"]),
            main=str(found["main"]),
            is_better_high=bool(found["is_better_high"]),
            seconds=None if seconds is None else float(seconds),
            drift=_numbers(found["drift"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _numbers(given: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in given.items()}


def refusal(config: Config) -> str | None:
    """Why a run of a config would end before its first step; None if it would not."""
    planned = {key: value for key, value in config.items() if key != "ckpt_path"}  # which plan has not
    logging.disable(logging.INFO)  # what Lightning tells about the machine, once for each Trainer
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            plan(build(parse(["plan"], planned)))
    except ConfigError as error:
        return str(error)
    finally:
        logging.disable(logging.NOTSET)
    return None


def run(job: Job) -> None:
    """Fits, then validates and tests what the run leaves, once; writes the result."""
    words = ["--config", str(job.config), "--name", job.name, "--seed_everything", str(job.seed)]
    words += ["--trainer.default_root_dir", str(job.folder)]
    result = _ridge(words) if job.row == RIDGE else _fit(job, words)
    if is_first_rank():
        with whole_file(job.result) as temporary:
            temporary.write_text(json.dumps(result._asdict(), indent=1), encoding="utf-8")


def _fit(job: Job, words: list[str]) -> Result:
    runs = job.folder / "runs" / job.name
    file = f"checkpoints/{job.tested}.ckpt"
    before = _newest_fit(runs)
    is_whole = before is None or (before / file).exists() or not (before / "finished.yaml").exists()
    started = time.perf_counter()
    # a finished fit whose checkpoint is gone is made anew, in the next folder
    # a run tests once, after its validation
    once = ["--test_after_fit", "null", *(["--resume", "auto"] if is_whole else [])]
    setup = build(parse(["fit", *words, *once]))
    try:
        fit(setup, setup.checkpoint)
    finally:
        if setup.continued and setup.continued.lock:
            setup.continued.lock.release()
    seconds = time.perf_counter() - started if before is None or not is_whole else None
    folder = _newest_fit(runs)
    assert folder is not None
    if not (folder / file).exists():
        raise ConfigError(f"the run has left no {job.tested}.ckpt. compare needs validation rows, by which it chooses.")
    checkpoint = str(folder / file)
    found = _measured(build(parse(["test", *words, "--ckpt_path", checkpoint])), checkpoint, job.validates_only)
    return found._replace(seconds=seconds, drift=_last_drift(folder), main=setup.model.objective.main_metric)


def _newest_fit(runs: Path) -> Path | None:
    return next((folder for folder in versions(runs) if (folder / "checkpoints").is_dir()), None)


def _last_drift(folder: Path) -> dict[str, float]:
    """Part → the last drift that a run has logged; stages have a dot in their names."""
    found = {}
    for row in read_rows(folder / "metrics.csv"):
        for name, text in row.items():
            if name.startswith("drift/") and "." not in name and text:
                found[name.removeprefix("drift/")] = float(text)
    return found


def _ridge(words: list[str]) -> Result:
    """Ridge regression on the features of all parts at their start, set into the network and measured like a fit."""
    setup = build(parse(["probe", *words]))
    model, data = setup.model, setup.data
    started = time.perf_counter()
    network, loader = prepared_on_device(setup, None)
    features = training_features(setup, network, loader)
    found = solution_of(model.objective, probe_features(model.objective, features, getattr(data, "train_groups", None)))
    weights = {name: float(name == TOGETHER) for name in found.weights}
    set_start(network, features, found._replace(weights=weights))
    seconds = time.perf_counter() - started
    return _measured(setup)._replace(seconds=seconds)


def _measured(setup: Setup, checkpoint: str | None = None, validates_only: bool = False) -> Result:
    """The metrics of the validation split, then those of the test split, unless it is left alone."""
    trainer, model = setup.trainer, setup.model
    options: dict[str, Any] = {"ckpt_path": checkpoint, "weights_only": True} if checkpoint else {}
    evaluations = {"val/": trainer.validate}
    if not validates_only:
        evaluations["test/"] = trainer.test
    splits: dict[str, dict[str, float]] = {"test/": {}}
    for prefix, evaluate in evaluations.items():
        with restoring(trainer, checkpoint):
            found: Any = evaluate(model, datamodule=setup.data, verbose=False, **options)
        of_split = {name: value for name, value in found[0].items() if name.startswith(prefix)}
        splits[prefix] = {name.removeprefix(prefix): value for name, value in of_split.items()}
    main = model.objective.main_metric
    direction = directions_of(model).get(f"val/{main}")
    return Result(splits["val/"], splits["test/"], main, direction != "min", seconds=math.nan, drift={})
