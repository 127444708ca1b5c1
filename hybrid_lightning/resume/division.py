"""How an epoch is divided among ranks, batches and steps, and where a run stands that goes on with another division."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from hybrid_lightning.errors import counted
from hybrid_lightning.resume.loop_counters import COUNTERS
from hybrid_lightning.trainer import length_of


class Division(NamedTuple):
    """What one optimizer step takes."""

    ranks: int
    samples: int  # of a batch, on all ranks together
    accumulate: int  # batches of a step

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self.samples * self.accumulate


def saved_division(saved: Mapping[str, Any]) -> Division | None:
    """The division of a saved fit; None if its loaders did not tell, or an older version saved it."""
    division = saved.get("division")
    return None if division is None else Division(saved["ranks"], division["samples"], division["accumulate"])


def division_of(trainer: Trainer, samples: int | None) -> Division | None:
    """The division of the running fit, whose batches have so many samples on all ranks together, if that is known."""
    return None if samples is None else Division(trainer.world_size, samples, trainer.accumulate_grad_batches)


class Move(NamedTuple):
    """Where an epoch goes on."""

    batch: int  # the next one
    within_step: bool  # whether gradients of the batches before wait for a step
    repeated: int  # samples that are trained a second time


def moved(batches: int, before: Division, now: Division, has_gradients: bool = True) -> Move:
    """Where a run goes on that has read so many batches of an epoch with another division.

    `has_gradients`: whether those of a step that was not complete were saved.
    """
    # of the last step, if it was not complete, only gradients are there
    of_open_step = batches % before.accumulate * before.samples
    read = batches * before.samples
    batch, rest = divmod(read, now.samples)
    within_step = batch % now.accumulate > 0
    can_go_on = has_gradients and before.global_batch == now.global_batch
    if not rest and (can_go_on or not (within_step or of_open_step)):
        return Move(batch, within_step, 0)
    # back to where a step begins, so that no sample is left out
    trained = read - of_open_step
    batch = trained // now.global_batch * now.accumulate
    return Move(batch, False, trained - batch * now.samples)


def set_position(trainer: Trainer, batch: int) -> None:
    """Lets the restored fit loop go on at a batch of its epoch."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    # the total may not fall below the number of steps, which does not change
    total = progress.total.ready + max(0, batch - progress.current.ready)
    for counter in COUNTERS:
        setattr(progress.total, counter, total)
        setattr(progress.current, counter, batch)


def go_on(trainer: Trainer, saved: Mapping[str, Any], now: Division | None) -> Move | None:
    """Moves the restored fit loop to where its epoch goes on with the present division; None if nothing changes."""
    before = saved_division(saved)
    if before is None or now is None or before == now:
        return None
    ready: int = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    move = moved(ready, before, now, has_gradients=saved.get("window") is not None)
    length = trainer.num_training_batches
    was_read = ready >= (saved.get("batches") or math.inf)
    if isinstance(length, int) and (was_read or move.batch > length):
        move = Move(length, False, 0)  # the epoch was read; its last batches may have been smaller
    set_position(trainer, move.batch)
    rank_zero_info(
        f"Exact resume: ranks {before.ranks} → {now.ranks}, samples of a batch {before.samples} → {now.samples}; the "
        f"epoch goes on after {move.batch} of {length} batches."
    )
    return move


def changes(trainer: Trainer, saved: Mapping[str, Any], now: Division | None, order: str) -> list[str]:
    """What makes the rest of an epoch other than it would have been."""
    found = []
    before = saved_division(saved)
    if saved.get("order", order) != order:
        found.append(f"the order of samples is that of another sampler ({saved['order']} → {order})")
    if before is None or now is None or before == now:
        found += _other_counts(trainer, saved)
    elif before.global_batch != now.global_batch:
        found.append(_other_global_batch(before, now))
    elif steps := _other_steps(trainer, saved, before, now):
        found.append(f"{steps}; a whole number as trainer.limit_train_batches counts the batches of one device")
    if saved and "order" not in saved:
        found.append("it was saved by an earlier version, which drew the samples otherwise")
    return found


def warn_of_other_batch(trainer: Trainer, saved: Mapping[str, Any], now: Division | None) -> None:
    """Warns of what another global batch changes in a run that goes on at the start of an epoch."""
    before = saved_division(saved)
    if before is None or now is None or before.global_batch == now.global_batch:
        return
    reasons = [_other_global_batch(before, now)]
    steps = _other_steps(trainer, saved, before, now)
    total = length_of(trainer, trainer.num_training_batches).total_steps
    if steps is not None:
        reasons.append(steps)
    if steps is not None and total is not None:
        # all epochs of the run are taken to have as many steps as those to come
        reasons.append(
            f"rates, and unfreezings in epochs or percent, are those of a run of {counted(total, 'step')}, which now "
            f"stands at step {trainer.global_step}"
        )
    rank_zero_warn(f"Exact resume: the run goes on, but not exactly as it would have: {'; '.join(reasons)}.")


def _other_global_batch(before: Division, now: Division) -> str:
    return (
        f"a step takes {now.global_batch} samples, and {before.global_batch} in the checkpoint; keep ranks × batch "
        f"size × trainer.accumulate_grad_batches at {before.global_batch}"
    )


def _other_steps(trainer: Trainer, saved: Mapping[str, Any], before: Division, now: Division) -> str | None:
    """How the number of steps of an epoch differs from that of a checkpoint; None if it is the same or not known."""
    batches, length = saved.get("batches"), trainer.num_training_batches
    if not isinstance(batches, int) or not isinstance(length, int):
        return None
    steps_before = -(-batches // before.accumulate)
    steps_now = -(-length // now.accumulate)
    if steps_before == steps_now:
        return None
    return f"an epoch has {counted(steps_now, 'step')}, and {steps_before} in the checkpoint"


def _other_counts(trainer: Trainer, saved: Mapping[str, Any]) -> list[str]:
    """How the numbers of ranks and of batches differ from those of a checkpoint."""
    found = []
    for name, value in (("ranks", trainer.world_size), ("batches", trainer.num_training_batches)):
        if saved.get(name, value) != value:
            found.append(f"{name}: {saved[name]} → {value}")
    return [f"an epoch is divided otherwise than in the checkpoint ({', '.join(found)})"] if found else []
