"""The one pass over the gradients of a step, which all callbacks and the task share."""

from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from torch.optim import Optimizer

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.gradients.norms import GradientPass, MeasuredGroups
from hybrid_lightning.optim.training_groups import TrainingGroups, groups_with_gradients
from hybrid_lightning.trainer import named_groups

_PASSES: WeakKeyDictionary[Optimizer, tuple[int, GradientPass]] = WeakKeyDictionary()
"""Optimizer → its last step and that step's pass. Beside the optimizer, because a foreign module, its Trainer and the
callbacks have no object of ours in common."""
_MEASURED: WeakKeyDictionary[TrainingGroups, MeasuredGroups] = WeakKeyDictionary()
"""What is known of groups that have been checked."""


def shared_pass(trainer: Trainer, user: str) -> GradientPass:
    """The pass of the optimizer step under way, made by the first call of the step."""
    # to be called from ``on_before_optimizer_step`` on, where gradients are unscaled and not yet clipped
    made = made_pass(trainer, trainer.global_step)
    if made is None:
        optimizer = trainer.optimizers[0]
        training = groups_with_gradients(optimizer)
        measured = _MEASURED.get(training)
        if measured is None:
            measured = MeasuredGroups(named_groups(trainer, user), training.groups)
            refuse_scaled_gradients(trainer, user)
            _MEASURED[training] = measured
        made = GradientPass(measured)
        _PASSES[optimizer] = trainer.global_step, made
    return made


def made_pass(trainer: Trainer, step: int) -> GradientPass | None:
    """The pass of an optimizer step, if one was made and the next step has made none yet."""
    last_step, last = _PASSES.get(trainer.optimizers[0], (-1, None))
    return last if last_step == step else None


def has_scaler(trainer: Trainer) -> bool:
    """Whether a gradient scaler skips the steps whose gradients overflow (precision 16-mixed)."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.is_enabled()


def refuse_scaled_gradients(trainer: Trainer, user: str) -> None:
    """Raises `ConfigError` if gradients stay scaled until the optimizer's step."""
    optimizer = trainer.optimizers[0]
    if has_scaler(trainer) and getattr(optimizer, "_step_supports_amp_scaling", False):
        raise ConfigError(
            f"{type(optimizer).__name__}(fused=True) unscales gradients within its step, so under precision 16-mixed "
            f"they cannot be measured or changed before it. Use fused=False, or precision bf16-mixed.",
            user,
        )
