"""The commands that Lightning's Trainer runs: ``fit``, ``validate`` and ``test``."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hybrid_lightning.callbacks import LastCheckpoint
from hybrid_lightning.cli.building import Select, Setup, limits
from hybrid_lightning.cli.loggers import failing_loggers, log_best
from hybrid_lightning.cli.member_metrics import test_members
from hybrid_lightning.cli.metrics_table import RunLogger
from hybrid_lightning.cli.preparation import restoring
from hybrid_lightning.cli.run_folder import mark_finished, say
from hybrid_lightning.cli.run_lock import RunLock, is_first_rank
from hybrid_lightning.errors import format_table, listing
from hybrid_lightning.report.summary import summary
from hybrid_lightning.resume.requeue import requeue_job
from hybrid_lightning.resume.told_to_end import REQUEUE


def fit(setup: Setup, ckpt_path: str | None = None) -> None:
    """Trains, unless the run to continue has ended; then tests one checkpoint, if the config names it.

    Args:
        setup: What to train.
        ckpt_path: Checkpoint that a new run continues from: best, last (of the newest run of this name) or a path.
    """
    continued, trainer = setup.continued, setup.trainer
    if continued and continued.finished:
        say(f"finished: {continued.folder} has ended; raise max_epochs, max_steps or max_time to train on")
        return
    with requeued_between_steps(trainer):
        _fit_and_tell(setup, ckpt_path)


def _fit_and_tell(setup: Setup, ckpt_path: str | None) -> None:
    trainer = setup.trainer
    # weights_only: plain data alone, so that a file cannot run code
    with failing_loggers(), owned(setup), restoring(trainer, ckpt_path):
        trainer.fit(setup.model, datamodule=setup.data, ckpt_path=ckpt_path, weights_only=True)
    did = summary(trainer, setup.model)
    if did:
        say(did)
    _tell_best(setup)
    if setup.options.test_after_fit:
        _test_after_fit(setup, setup.options.test_after_fit)
    folder = trainer.log_dir  # a collective call: the answer is broadcast
    if trainer.is_global_zero and folder:
        if trainer.logger:
            mark_finished(Path(folder), limits(setup.options))
        best = setup.options.checkpoint
        if best in trainer.checkpoint_callbacks and best.best_model_path:
            config = Path(folder) / "config.yaml"
            say(f"next: python -m hybrid_lightning predict --config {config} --ckpt_path {best.best_model_path}")
        print(f"results: {folder}")


def _tell_best(setup: Setup) -> None:
    """Prints which checkpoint is the best, and where it is."""
    best = setup.options.checkpoint
    described = best.described() if best in setup.trainer.checkpoint_callbacks else ""
    if described:
        if best.best_model_score is not None:
            log_best(setup.trainer, float(best.best_model_score))
        say(f"best: {described}; {best.best_model_path}")


@contextmanager
def requeued_between_steps(trainer: Trainer) -> Iterator[None]:
    """Within it the signal before the end of a SLURM job's time queues the job again where no step hears it.

    So it is while data are prepared and while a test runs; between them `LastCheckpoint` hears it, and saves first.
    """
    callbacks = trainer.checkpoint_callbacks
    is_wanted = any(isinstance(callback, LastCheckpoint) and callback.requeue for callback in callbacks)
    in_main = threading.current_thread() is threading.main_thread()  # the only one that may set handlers
    if REQUEUE is None or not is_wanted or not in_main or "SLURM_JOB_ID" not in os.environ:
        yield
        return

    def leave(*_: Any) -> None:
        if is_first_rank():
            say(f"terminated outside of training: {requeue_job()}")
        raise SIGTERMException(128 + signal.SIGTERM)

    before = signal.signal(REQUEUE, leave)
    try:
        yield
    finally:
        signal.signal(REQUEUE, before)


@contextmanager
def owned(setup: Setup) -> Iterator[None]:
    """Holds the folder of a new run while it is open; that of a continued one is held already."""
    table = setup.trainer.logger
    if setup.continued or not isinstance(table, RunLogger) or not is_first_rank():
        yield
        return
    lock = RunLock(Path(table.log_dir))
    try:
        yield
    finally:
        lock.release()


def _test_after_fit(setup: Setup, which: str) -> None:
    """Tests ``best`` or ``last``; the model as it is, if no such checkpoint was saved."""
    path = None
    for callback in setup.trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.filename == which:
            path = callback.best_model_path
    if path:
        say(f"test: {path}")
    else:
        say(f"test: no {which} checkpoint was saved; the model is tested as it is now")
    with failing_loggers():
        found = setup.trainer.test(setup.model, setup.data, ckpt_path=path or None, weights_only=True, verbose=False)
    _tell_metrics(found)


def _tell_metrics(found: Sequence[Mapping[str, float]]) -> None:
    """Prints the metrics of an evaluation, one a line."""
    rows = []
    for values in found:
        rows += [{"metric": name, "value": f"{value:.4g}"} for name, value in values.items()]
    if rows:
        say(format_table(rows, ("metric", "value"), ("value",)))


def validate(setup: Setup, ckpt_path: str | None = None, select: Select = "best") -> None:
    """Measures a checkpoint on the validation data.

    Args:
        setup: What to measure.
        ckpt_path: best, last (of the newest run of this name) or a path.
        select: best is what the run has selected for its best checkpoint; joint is the joint network in any case.
    """
    setup.model.serves_selection = select == "best"
    with failing_loggers(), restoring(setup.trainer, ckpt_path):
        found = setup.trainer.validate(setup.model, setup.data, ckpt_path=ckpt_path, weights_only=True, verbose=False)
    say(f"validate: {ckpt_path}")
    _tell_metrics(found)


def test(
    setup: Setup,
    ckpt_path: list[str] | str | None = None,  # noqa: PT028, ARG001  a command, whose members have their paths
    select: Select = "best",  # noqa: PT028
) -> None:
    """Measures a checkpoint on the test data, or several and the mean of what they predict.

    Args:
        setup: What to measure.
        ckpt_path: best, last (of the newest run of this name) or a path. Several paths, folders of runs or a pattern
            in quotes, such as 'runs/x_seed*', are an ensemble: the metrics of each, and of their averaged prediction.
        select: best is what the run has selected for its best checkpoint; joint is the joint network in any case.
    """
    members = [setup, *setup.others]
    for member in members:
        member.model.serves_selection = select == "best"
    if setup.others:
        with failing_loggers():
            told = test_members(members)
        say(f"test: {listing([str(member.checkpoint) for member in members], 20)}")
        say(told)
        return
    with failing_loggers(), restoring(setup.trainer, setup.checkpoint):
        found = setup.trainer.test(
            setup.model, setup.data, ckpt_path=setup.checkpoint, weights_only=True, verbose=False
        )
    say(f"test: {setup.checkpoint}")
    _tell_metrics(found)
