"""How often a run logs, where the config does not say."""

from lightning.pytorch import Callback, LightningModule, Trainer

from hybrid_lightning.duration import FitLength
from hybrid_lightning.trainer import fit_length

_LONGEST = 10  # steps
_PER_EPOCH = 5  # points of a curve that an epoch has at least


def log_interval(length: FitLength) -> int:
    """Steps between two rows of a log: 10, or fewer where an epoch, or the whole run, is short."""
    known = [steps for steps in (length.steps_per_epoch, length.total_steps) if steps is not None]
    steps = min(known, default=_LONGEST * _PER_EPOCH)
    return max(1, min(_LONGEST, steps // _PER_EPOCH))


class LogInterval(Callback):
    """Sets ``log_every_n_steps`` from the length of the run, which is the same on all ranks and after a restart."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step, when the length is known."""
        trainer.log_every_n_steps = log_interval(fit_length(trainer))  # type: ignore[attr-defined]
