"""Exact resume: a run that continues from any checkpoint ends as if it had never stopped."""

import os
import warnings
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from hybrid_lightning.distributed.ranks import fix_buckets
from hybrid_lightning.lightning_private import (
    accumulates,
    data_fetcher,
    forget_restart,
    logged_steps,
    remember_loaders,
    restart_at_epoch_start,
    restart_within_validation,
    set_logged_steps,
    validation_fetcher,
    validation_is_due,
)
from hybrid_lightning.resume.division import Division, Move, changes, division_of, go_on, warn_of_other_batch
from hybrid_lightning.resume.loop_counters import SavedPoint, settle
from hybrid_lightning.resume.replay import ReplayedLoader, epoch_of, position, refuse_uncounted, seed_device
from hybrid_lightning.resume.saved_fit import KEY, refuse_damaged_fit
from hybrid_lightning.resume.seeded_loaders import hashed
from hybrid_lightning.trainer import FitCallback, window_is_open


class ExactResume(FitCallback):
    """Makes a run that continues from a checkpoint equal, bit by bit, to one that never stopped.

    It holds for every checkpoint that is saved between two batches: after any batch, after a validation, at the end of
    an epoch, within an accumulation window. The loaders need no change: their order, the samples' augmentation, dropout
    and whatever else draws from the random state of torch (also on the device), numpy or random is seeded for each
    epoch, batch and sample. A loader continues where it stood without loading what was read before.

    On another number of ranks, with the same samples in each step (ranks × batch size × accumulation), the same samples
    follow in the same order; dropout and batch statistics are then other ones, see docs/elastic.md.

    Limits, each of which a checkpoint or a dataset meets by itself:

    - Randomness that a sampler or dataset keeps to itself is not seen, except in a `torch.Generator` of a sampler.
    - An `IterableDataset`, and a loader that is no plain `DataLoader`, is read from the epoch's start and dropped up to
      the position. Random transforms of validation data need ``persistent_workers=False``.
    - ``on_train_epoch_start`` is called again for the epoch that continues, so that what hooks set there is set.
    - In manual optimization, gradients that wait for a later step are not saved; nor are they under a sharded strategy.
    - Validation by time (``val_check_interval="00:10:00"``) happens when it happens.
    - A run that was saved at the last of its ``max_steps`` is over for Lightning, without the hooks that follow a step.

    Nothing is logged.

    Args:
        enabled: False leaves everything to Lightning.

    Raises:
        ConfigError: At the start of a run that continues within an epoch, if the module reads the batches by itself
            (``training_step(self, dataloader_iter)``).
    """

    def __init__(self, enabled: bool = True) -> None:
        super().__init__()
        self.enabled = enabled
        self.seed: int | None = None
        """Seed of all seeds of the running fit: that of ``seed_everything``, the checkpoint's, or a drawn one."""
        self._saved: dict[str, Any] | None = None
        self._point = SavedPoint(False, False, False)
        self._logged_steps = 0
        self._validated = -1
        self._validation_pending = False
        self._window: dict[str, dict[str, Tensor]] | None = None
        self._division: Division | None = None
        self._order = ""
        self._changes: list[str] = []
        self._move: Move | None = None
        self._silence = ExitStack()

    # Restoring

    def forget(self) -> None:
        """Forgets a checkpoint that other code has restored, such as a search for a learning rate."""
        self._saved = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets the Trainer keep the loaders as they are given."""
        super().setup(trainer, pl_module, stage)
        if self.enabled and stage == "fit":
            remember_loaders(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the saved counters in order, before Lightning reads them."""
        if self.enabled and trainer.state.fn == "fit" and "loops" in checkpoint:
            refuse_damaged_fit(trainer, checkpoint)
            self._saved = checkpoint.get(KEY) or {}
            goes_on = trainer.max_steps < 0 or checkpoint["global_step"] < trainer.max_steps
            self._point = settle(checkpoint["loops"]["fit_loop"], goes_on)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares the loaders; continues what the checkpoint left unfinished."""
        if not self.enabled:
            return
        fix_buckets(trainer)
        saved = self._saved
        self._saved = None
        self.seed = trainer.strategy.broadcast(chosen_seed((saved or {}).get("seed"), trainer.current_epoch))
        self._validated = -1
        self._validation_pending = False
        self._logged_steps = logged_steps(trainer)
        if saved is not None and not self._point.in_epoch:
            # with max_steps Lightning would take a restored fit for one within an epoch
            loop = trainer.fit_loop.epoch_loop
            for each in (trainer.fit_loop, loop, loop.automatic_optimization, loop.manual_optimization, loop.val_loop):
                forget_restart(each)
        self._prepare_loaders(trainer, saved)
        if saved is not None:
            self._finish_epoch(trainer, saved)
            if self._point.in_epoch:
                self._continue_epoch(trainer, pl_module, saved)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Lets warnings through again; so do the ends of a run."""
        self._silence.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """An interrupted fit ends like any other."""
        self._silence.close()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finishes a run that was over when it was saved."""
        self._silence.close()
        if self._saved is not None:
            self._finish_epoch(trainer, self._saved)
        self._saved = None

    def _finish_epoch(self, trainer: Trainer, saved: dict[str, Any]) -> None:
        """Does what follows the last epoch, if its end was being handled when the run was saved."""
        # metric schedulers and checkpoints look at these between validations
        for name, value in saved.get("metrics", {}).items():
            trainer.callback_metrics[name] = value.to(trainer.strategy.root_device)
        if self._point.epoch_ends:
            # Lightning steps ReduceLROnPlateau after the hooks that save an epoch's end
            current = trainer.fit_loop.epoch_progress.current
            current.completed -= 1  # it counts the epoch that has ended
            trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
            current.completed += 1

    def _continue_epoch(self, trainer: Trainer, pl_module: LightningModule, saved: dict[str, Any]) -> None:
        """Starts the epoch that was under way again, at the batch that comes next."""
        warn_of_changes(trainer, saved, self._point, self._changes)
        self._changes = []
        # Lightning warns between on_train_epoch_start and the first batch, whatever has been done
        self._silence.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")
        self._window = saved.get("window") if self._move is None or self._move.within_step else {}
        self._logged_steps = saved.get("logged_steps", self._logged_steps)
        self._validated = saved.get("validated", -1)
        fit_loop: Any = trainer.fit_loop
        forget_restart(fit_loop)  # else the epoch's metric schedulers would not step
        restart_at_epoch_start(trainer)  # on_train_epoch_start is called, and counts
        # the epoch had been counted when it started the first time
        fit_loop.epoch_progress.total.started -= 1
        fit_loop.epoch_progress.current.started -= 1
        fetcher = data_fetcher(trainer)
        if fetcher.length is not None and position(trainer) >= fetcher.length:
            fetcher.done = True
        self._finish_batch(trainer)

    def _finish_batch(self, trainer: Trainer) -> None:
        """Does what follows the last batch and had not been done when the run was saved in one of its hooks."""
        loop = trainer.fit_loop.epoch_loop
        steps_before = logged_steps(trainer)
        set_logged_steps(trainer, self._logged_steps)
        if validation_is_due(trainer):
            if not accumulates(trainer):
                set_logged_steps(trainer, self._logged_steps - 1)  # Lightning is about to count it
            if position(trainer) and self._validated != loop.batch_progress.total.ready:
                self._validation_pending = True
                restart_within_validation(trainer)
        elif steps_before < self._logged_steps:
            loop.update_lr_schedulers("step", update_plateau_schedulers=True)

    # Seeding

    def _prepare_loaders(self, trainer: Trainer, saved: dict[str, Any] | None = None) -> None:
        fetcher = data_fetcher(trainer)
        if isinstance(fetcher.combined_loader, ReplayedLoader):
            return
        assert self.seed is not None
        refuse_uncounted(position(trainer), fetcher)
        # in the fetcher alone: trainer.train_dataloader stays what the user gave
        combined = fetcher.combined_loader
        combined.reset()  # ends the workers of the first iterator, which have no seeds
        replayed = ReplayedLoader(trainer, combined, self.seed)
        self._division, self._order = division_of(trainer, replayed.samples), replayed.order
        fetcher.setup(replayed)
        if saved is not None and self._point.in_epoch:
            self._divide_anew(trainer, saved)
        elif saved is not None:
            warn_of_other_batch(trainer, saved, self._division)
        iter(fetcher)

    def _divide_anew(self, trainer: Trainer, saved: dict[str, Any]) -> None:
        """Goes on in the epoch after as many samples as the checkpoint has read, with any number of ranks."""
        total = trainer.fit_loop.epoch_loop.batch_progress.total
        was_validated = saved.get("validated") == total.ready
        self._changes = changes(trainer, saved, self._division, self._order)
        self._move = go_on(trainer, saved, self._division)
        if self._move is not None and self._move.repeated:
            self._changes.append(f"{self._move.repeated} samples of the epoch are trained a second time")
        if was_validated:
            saved["validated"] = total.ready

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepares loaders that were made anew for this epoch; every callback has started by now."""
        if self.seed is None:
            return
        self._prepare_loaders(trainer)
        self._seed(trainer, "epoch")
        if self._window:
            restore_window(trainer, pl_module, self._window)
        self._window = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Seeds the making of validation iterators, if a validation is due."""
        if self.seed is None:
            return
        # counted after this hook, in which the run may be saved
        self._logged_steps = logged_steps(trainer) if accumulates(trainer) else logged_steps(trainer) + 1
        if validation_is_due(trainer):
            self._seed_validation(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seeds the validation."""
        if not self._fits(trainer):
            return
        self._seed_validation(trainer)
        if self._validation_pending:
            # Lightning made the iterators before this hook; without a restart the end of the batch has seeded them
            fetcher = validation_fetcher(trainer)
            fetcher.combined_loader.reset()
            iter(fetcher)
            self._seed_validation(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes that this point of the run has been validated."""
        if self._fits(trainer):
            self._validated = trainer.fit_loop.epoch_loop.batch_progress.total.ready
            self._validation_pending = False

    def _fits(self, trainer: Trainer) -> bool:
        return self.seed is not None and trainer.state.fn == "fit" and not trainer.sanity_checking

    def _seed_validation(self, trainer: Trainer) -> None:
        self._seed(trainer, "validation", trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _seed(self, trainer: Trainer, *words: object) -> None:
        seed = hashed(self.seed, *words, epoch_of(trainer), trainer.global_rank)
        seed_device(trainer.strategy.root_device, seed)

    # Saving

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what Lightning does not save, as plain data."""
        if self.seed is None:
            return
        division = self._division
        metrics = {name: value.detach().cpu().clone() for name, value in trainer.callback_metrics.items()}
        checkpoint[KEY] = {
            "seed": self.seed,
            "ranks": trainer.world_size,
            "batches": trainer.num_training_batches,
            "division": None if division is None else {"samples": division.samples, "accumulate": division.accumulate},
            "order": self._order,
            "logged_steps": self._logged_steps,
            "validated": self._validated,
            "metrics": metrics,
            "window": open_window(trainer, pl_module),
        }


def chosen_seed(saved: int | None, epoch: int) -> int:
    """The seed of ``seed_everything``; else that of the checkpoint; else one drawn from torch's random state."""
    seed = int(os.environ.get("PL_GLOBAL_SEED") or (torch.randint(2**31, ()) if saved is None else saved))
    if saved not in (None, seed):
        rank_zero_info(f"seed {saved} → {seed}, applied from epoch {epoch}")
    return seed


def warn_of_changes(trainer: Trainer, saved: dict[str, Any], point: SavedPoint, reasons: list[str]) -> None:
    """Warns of what makes a run that goes on within an epoch not exact, instead of Lightning, which always warns."""
    if not saved:
        reasons.append("it was saved without ExactResume")
    elif saved.get("window") is None and window_is_open(trainer):
        reasons.append("it was saved within an accumulation window, whose gradients a sharded strategy does not give")
    if point.in_batch:
        reasons.append("it was saved in the middle of a batch")
    if reasons:
        rank_zero_warn(f"Exact resume: the run goes on, but not exactly as it would have: {'; '.join(reasons)}.")


def open_window(trainer: Trainer, module: LightningModule) -> dict[str, dict[str, Tensor]] | None:
    """What differs between ranks within an accumulation window: gradients that wait for the step, and buffers."""
    # ``gradients`` and ``buffers``: name → values of all ranks, `(ranks, *shape)`, on the CPU. Empty if no window is
    # open; None if the strategy shards gradients.
    if not window_is_open(trainer) or not module.automatic_optimization:
        return {}
    if type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
        return None

    def gathered(tensor: Tensor) -> Tensor:
        every = trainer.strategy.all_gather(tensor.detach())
        return every.reshape(trainer.world_size, *tensor.shape).cpu().clone()

    named = dict(module.named_parameters())
    is_here = torch.tensor([parameter.grad is not None for parameter in named.values()], device=module.device)
    is_anywhere = gathered(is_here).any(0).tolist()
    gradients = {}
    for (name, parameter), waits in zip(named.items(), is_anywhere, strict=True):
        if waits:  # every rank takes part, also one without this gradient
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients[name] = gathered(gradient)
    buffers = {name: gathered(buffer) for name, buffer in module.named_buffers()}
    return {"gradients": gradients, "buffers": buffers}


def restore_window(trainer: Trainer, module: LightningModule, window: dict[str, dict[str, Tensor]]) -> None:
    """Puts back what `open_window` saved."""
    gradients, buffers = window.get("gradients", {}), window.get("buffers", {})

    def own(of_ranks: Tensor) -> Tensor:
        # with another number of ranks each takes the mean, which is what they will average to
        return of_ranks[trainer.global_rank] if len(of_ranks) == trainer.world_size else of_ranks.double().mean(0)

    for name, parameter in module.named_parameters():
        if name in gradients:
            gradient = own(gradients[name]).to(parameter.device, parameter.dtype)
            parameter.grad = gradient.contiguous()  # compiled optimizers trust that its values do not overlap
    for name, buffer in module.named_buffers():
        if name in buffers:
            buffer.copy_(own(buffers[name]))
    if isinstance(trainer.strategy.model, DistributedDataParallel):
        trainer.strategy.model.require_forward_param_sync = False  # it copies no buffers within a window
