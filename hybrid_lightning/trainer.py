"""What callbacks share: their base class, and the questions that they ask the Trainer."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

from hybrid_lightning.duration import FitLength
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.lightning_private import accumulates, logged_steps, skip_empty_hooks


class NoProfiler(PassThroughProfiler):
    """The Trainer's own profiler, which measures nothing, without the context that it makes around each hook."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> Any:
        """A context that does nothing."""
        return self._nothing


class FitCallback(Callback):
    """Base of the callbacks that remember something of a run, or need its named groups."""

    gradient_order: ClassVar[int | None] = None
    """Place among the callbacks that work on the gradients of a step: 0 adds to them, 1 measures, limits or drops them.
    Those with a lower number have to stand before those with a higher one. None: does nothing with gradients."""

    state_form: ClassVar[dict[Any, Any]] = {}
    """What a checkpoint has to hold of the callback: name → type, or an example of it; a tuple of forms allows each.
    The key ``str`` stands for all other names, ``[form]`` for a list of such entries, and a longer list for one of just
    as many."""

    made_by_task: bool = False
    """Whether a task brought it along, for as long as that task is trained."""

    def forget(self) -> None:
        """Forgets what belongs to one run. Called at the start of each, before a checkpoint is read."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A run starts without the memory of an earlier one."""
        if stage == "fit":
            self.forget()
            skip_empty_hooks(self)
            if type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
                trainer.profiler = NoProfiler()  # type: ignore[attr-defined]
            measuring: list[str] = []
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                name = type(callback).__name__
                order = getattr(callback, "gradient_order", None)
                if order == 1:
                    measuring.append(name)
                elif order == 0 and measuring:
                    raise ConfigError(
                        f"{listing(measuring)} stands before {name} and would not see what {name} adds to the "
                        f"gradients. List {name} first.",
                        "trainer.callbacks",
                    )

    def groups(self, trainer: Trainer) -> list[dict[str, Any]]:
        """The named groups of the one optimizer, see `named_groups`."""
        return named_groups(trainer, type(self).__name__)


def is_log_step(trainer: Trainer) -> bool:
    """Whether the optimizer step that is under way is one that the Trainer logs."""
    every = int(trainer.log_every_n_steps)  # type: ignore[attr-defined]
    return every > 0 and (trainer.global_step + 1) % every == 0


def log_values(trainer: Trainer, values: Mapping[str, float | Tensor]) -> None:
    """Logs values of an optimizer step that the Trainer logs, to its loggers and to ``callback_metrics``."""
    # on the command line the first logger is `RunLogger`, which writes metrics.csv;
    # as Lightning's `LearningRateMonitor` does; `log_dict` takes 0.2 ms per value, and looks at each again in every
    # later step
    numbers = {name: float(value) for name, value in values.items()}
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=logged_steps(trainer))
    tensors = torch.tensor([*numbers.values()], dtype=torch.float64).unbind()  # float32 would round a rate
    trainer.callback_metrics.update(zip(numbers, tensors, strict=True))


def fit_length(trainer: Trainer) -> FitLength:
    """Length of the running fit in optimizer steps; to be asked from ``on_train_start`` on."""
    # `Trainer.estimated_stepping_batches` is not used, because reading it too early builds the loader before its state
    # has been restored
    refuse_changing_windows(trainer)
    return length_of(trainer, trainer.num_training_batches)


def refuse_changing_windows(trainer: Trainer) -> None:
    """Raises `ConfigError` if the number of batches in an optimizer step changes during the run."""
    if any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks):  # type: ignore[attr-defined]
        raise ConfigError(
            "with GradientAccumulationScheduler the number of steps in an epoch changes, so moments and rates would "
            "not be where you wrote them. Use trainer.accumulate_grad_batches.",
            "trainer.callbacks",
        )


def length_of(trainer: Trainer, batches: float) -> FitLength:
    """Length of a run with this many batches per epoch (``inf`` if the data have no length)."""
    per_epoch = None if math.isinf(batches) else max(math.ceil(batches / trainer.accumulate_grad_batches), 1)
    limits = []
    if trainer.max_steps >= 0:
        limits.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and per_epoch is not None:
        limits.append(trainer.max_epochs * per_epoch)
    return FitLength(per_epoch, min(limits, default=None))


def named_groups(trainer: Trainer, callback: str) -> list[dict[str, Any]]:
    """The param groups of the one optimizer, read anew because restoring a checkpoint replaces them."""
    if len(trainer.optimizers) != 1:
        raise ConfigError(f"{callback}: works with one optimizer; this module has {len(trainer.optimizers)}.")
    groups = trainer.optimizers[0].param_groups
    if any(not {"name", "part", "stage", "unfrozen_at", "fixed"} <= group.keys() for group in groups):
        raise ConfigError(
            f"{callback}: the optimizer's groups have no part names. In configure_optimizers, make them with "
            f"hybrid_lightning.named_param_groups(self, {{'backbone': 'backbone', 'head': 'head'}}, lr=...)."
        )
    return groups


def window_is_open(trainer: Trainer) -> bool:
    """Whether gradients of earlier batches wait for the optimizer's step."""
    loop = trainer.fit_loop.epoch_loop
    current: Any = loop.batch_progress.current
    if current.ready > current.processed:  # within a batch
        return bool(current.processed % trainer.accumulate_grad_batches)
    return accumulates(trainer)


def reduced_metric(trainer: Trainer, name: str) -> float:
    """The last value of a logged metric: the mean over all ranks, the same number on each. Call it on all ranks."""
    value = trainer.callback_metrics[name].detach().to(trainer.strategy.root_device)
    return float(trainer.strategy.broadcast(trainer.strategy.reduce(value, reduce_op="mean")))


@contextmanager
def as_validation(trainer: Trainer) -> Iterator[None]:
    """Hooks of batches, such as augmentation on the device, depend on the Trainer's stage."""
    stage = trainer.state.stage
    trainer.validating = True
    try:
        yield
    finally:
        trainer.state.stage = stage
