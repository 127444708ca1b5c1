"""Keeps ``last.ckpt``: at the end of each epoch, as often as wanted between, and when the process is told to end."""

import signal
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hybrid_lightning.duration import Duration
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import cluster_environment, log_train_step, save_now, validation_is_due
from hybrid_lightning.resume.exact_resume import ExactResume
from hybrid_lightning.resume.own_files import rebuild_paths
from hybrid_lightning.resume.requeue import requeue_job
from hybrid_lightning.resume.told_to_end import ToldToEnd
from hybrid_lightning.trainer import fit_length


class LastCheckpoint(ModelCheckpoint):
    """Keeps ``last.ckpt``, from which a run continues after any end.

    On SIGTERM, on SIGHUP unless it is ignored, and within a SLURM job on SIGUSR1 the current optimizer step is
    finished, the checkpoint is saved, and `SIGTERMException` leaves the run; the process ends with code 143. The signal
    may reach any of several ranks; all leave at the same step. A validation that is under way is cut short on one rank
    with `ExactResume`, because the next process repeats it; else it is finished first. Where Lightning requeues a SLURM
    job (``SLURMEnvironment(auto_requeue=True)``), its own handlers stay in place.

    Args:
        every: How often to save between the ends of epochs, a duration such as ``500 steps`` or ``0.5 epochs``; None
            saves only there.
        dirpath: Folder of ``last.ckpt``; None is ``checkpoints`` in the folder of the first logger.
        requeue: Whether SIGUSR1 within a SLURM job also puts the job back into its queue, after saving. For jobs whose
            command continues the run: ``fit --resume auto``.

    Raises:
        ConfigError: If `every` is not a duration, or is less than a step.
    """

    def __init__(self, every: str | None = None, dirpath: str | Path | None = None, requeue: bool = False) -> None:
        # one name always, so that a run that starts again in its folder leaves no second file
        super().__init__(dirpath, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.every = None if every is None else Duration.parse(every, "save_every")
        self._every_steps = 0
        self._step_before = 0
        self._stepped = False
        self.requeue = requeue
        self._signals = ToldToEnd()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the folder."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._signals.remember_handlers()

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handles the signals in place of Lightning, which has set its own handlers before."""
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Turns the duration into steps."""
        super().on_train_start(trainer, pl_module)
        self._listen(trainer)
        if self.every is not None:
            self._every_steps = self.every.steps(fit_length(trainer), "save_every")
            if self._every_steps < 1:
                raise ConfigError(f"save_every: '{self.every}' is less than a step; give at least '1 step'.")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves after the checkpoint of the last epoch's end, if the process has to end."""
        self._leave_if_told(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Notes the step, to see whether this batch completes one."""
        self._step_before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Saves if it is due, unless the batch leaves gradients behind or a later hook saves at this step."""
        self._stepped = trainer.global_step > self._step_before
        if self._stepped and not _epoch_ends(trainer) and not validation_is_due(trainer):
            self._save_between(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves before a validation that the next process can make."""
        if _validation_is_repeated(trainer):
            self._leave_if_told(trainer, save=True)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Leaves within a validation that the next process can make."""
        # ranks may have different numbers of validation batches, so they could not agree here
        if trainer.world_size == 1 and _validation_is_repeated(trainer):
            self._leave_if_told(trainer, save=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after a validation within an epoch, if that is due."""
        if self._stepped and not trainer.sanity_checking and trainer.state.fn == "fit" and not _epoch_ends(trainer):
            self._save_between(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves."""
        self._stepped = False
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves before a test, if the process has to end."""
        self._leave_if_told(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Replaces the paths in the states of callbacks by those in the folder of this run."""
        rebuild_paths(trainer, checkpoint)

    def _listen(self, trainer: Trainer) -> None:
        environment = cluster_environment(trainer)
        requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
        if not requeues and not getattr(trainer, "fast_dev_run", False):
            # Lightning's handler would start a collective within any other; it restores the earlier handlers itself
            self._signals.listen()

    def _told(self, trainer: Trainer) -> bool:
        """Whether any rank was told to end. Collective: call it on every rank."""
        return trainer.strategy.reduce_boolean_decision(self._signals.is_told, all=False)

    def _save_between(self, trainer: Trainer) -> None:
        told = self._told(trainer)
        is_due = self._every_steps > 0 and trainer.global_step % self._every_steps == 0
        if told or is_due:
            if trainer.training:
                # Lightning logs the step after this hook, and so never, if the process ends here
                log_train_step(trainer)
            save_now(self, trainer)
        if told:
            self._leave(trainer)

    def _leave_if_told(self, trainer: Trainer, save: bool = False) -> None:
        if self._told(trainer):
            if save:
                save_now(self, trainer)
            self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        time_is_up = trainer.strategy.reduce_boolean_decision(self._signals.by_requeue, all=False)
        if trainer.is_global_zero:
            saved = "no step"
            if self.best_model_path:
                saved = f"saved {self.best_model_path}; continue with --resume auto"
            print(f"terminated at step {trainer.global_step}: {saved}", flush=True)
            if time_is_up:
                hint = "not resubmitted: start the run with --resume auto, so that it is"
                print(requeue_job() if self.requeue else hint, flush=True)
        # Lightning's launcher takes any code but 0 of a process that it started for a crash, and kills its own process
        raise SIGTERMException(128 + signal.SIGTERM if trainer.local_rank == 0 else 0)


def _epoch_ends(trainer: Trainer) -> bool:
    """Whether the epoch ends after the batch that has just been trained."""
    return trainer.is_last_batch or trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step


def _validation_is_repeated(trainer: Trainer) -> bool:
    """Whether a checkpoint of this moment, in or before a validation of a run, lets the next process repeat it."""
    exact = any(isinstance(c, ExactResume) and c.enabled for c in trainer.callbacks)  # type: ignore[attr-defined]
    return exact and trainer.state.fn == "fit" and not trainer.sanity_checking
