"""``batch_size_total``: the samples of an optimizer step, divided over devices and accumulated batches."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator

from hybrid_lightning.cli.batch_size_trial import found_by_first, largest_that_fits
from hybrid_lightning.cli.config_files import mapping_at, read_yaml_file
from hybrid_lightning.cli.parser import Parsed
from hybrid_lightning.cli.run_folder import Run, say
from hybrid_lightning.errors import ConfigError, check_number, counted
from hybrid_lightning.files import is_regular_file

_OPTION = "--batch_size_total"
_SIZE = "data.init_args.batch_size"
_WINDOW = "trainer.accumulate_grad_batches"
_MOST = 2**31 - 1
_DIVIDING = ("fit", "plan", "lr_find")
"""Commands whose steps are those of a run."""


class Division(NamedTuple):
    """A global batch in equal pieces."""

    per_device: int  # samples of a batch of one device
    window: int  # batches of each device that make a step


def divide_batch(parsed: Parsed, continued: Run | None) -> None:
    """Writes the batch size per device and the accumulation that make ``batch_size_total`` into the config.

    Raises:
        ConfigError: If the total cannot be divided evenly, or the config gives what follows from it.
    """
    config = parsed.config
    total = config.get("batch_size_total")
    is_over = continued is not None and continued.finished
    if total is None or parsed.command not in _DIVIDING or is_over:
        return
    check_number(total, _OPTION, low=1, high=_MOST)
    if config.get(_SIZE) is None:
        raise ConfigError(
            f"{config.data.class_path} has no argument batch_size that could follow from it. Leave it out, and "
            f"give trainer.accumulate_grad_batches.",
            _OPTION,
        )
    check_number(config[_SIZE], "data.batch_size", low=1)
    stated = parsed.stated()
    size, window = stated.get(_SIZE), stated.get(_WINDOW)
    before = _found_before(continued)
    is_given = size is not None and (before is None or size != before.per_device)
    if before is not None and window == before.window:
        window = None  # it was found when the run began, for the devices of then
    trainer = _like(config)
    ranks = trainer.num_devices * trainer.num_nodes
    if size is None and before is None and isinstance(trainer.accelerator, CUDAAccelerator):
        largest = _search(parsed, trainer, _share(total, ranks))
    else:
        largest = before.per_device if before is not None and not is_given else config.get(_SIZE)
    division = _division(total, ranks, largest, is_given)
    _refuse_other_window(window, division, total)
    config[_SIZE], config[_WINDOW] = division
    say(
        f"batch_size_total: {total} = {division.per_device} per device × {counted(ranks, 'device')} × "
        f"{counted(division.window, 'batch')} per step"
    )


def _refuse_other_window(window: int | None, division: Division, total: int) -> None:
    """Raises `ConfigError` if an accumulation is given that does not make the total."""
    if window not in (None, division.window):
        raise ConfigError(
            f"{window} is given as well as {_OPTION} {total}, from which {division.window} follows. Leave one of "
            f"them out.",
            _WINDOW,
        )


def _found_before(continued: Run | None) -> Division | None:
    """What a run that goes on had found, as its own config says; None if it had no total."""
    path = continued.folder / "config.yaml" if continued else Path()
    saved = read_yaml_file(path, "resume") if is_regular_file(path) else None
    if not isinstance(saved, dict) or saved.get("batch_size_total") is None:
        return None
    size = mapping_at(saved, "data", "init_args").get("batch_size")
    window = mapping_at(saved, "trainer").get("accumulate_grad_batches")
    if isinstance(size, int) and isinstance(window, int) and size > 0 and window > 0:
        return Division(size, window)
    return None


def _like(config: Namespace) -> Trainer:
    """A Trainer with the devices of the config, to ask how many they are."""
    given = config.trainer
    # a strategy with arguments of its own is not made for this: it would have to be made twice
    strategy = given.strategy if isinstance(given.strategy, str) else "auto"
    with _silent_lightning():
        return Trainer(
            accelerator=given.accelerator,
            devices=given.devices,
            num_nodes=given.num_nodes,
            strategy=strategy,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


@contextmanager
def _silent_lightning() -> Iterator[None]:
    """The Trainer of the run says the same again."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _search(parsed: Parsed, trainer: Trainer, share: int) -> int:
    """The largest batch that fits on a CUDA device, tried by the first process for all."""
    if "fsdp2" in str(parsed.config.trainer.strategy).lower():
        raise ConfigError(
            "under fsdp2 one device alone cannot try what fits. Give data.batch_size, the batch per device.", _OPTION
        )

    def find() -> int:
        with _silent_lightning():
            return largest_that_fits(parsed, share, trainer.strategy.root_device)

    return found_by_first(find, trainer)


def _share(total: int, ranks: int) -> int:
    """Samples of a step for each device."""
    if total % ranks:
        raise _uneven(total, ranks, None, False)
    return total // ranks


def _division(total: int, ranks: int, size: int, is_given: bool) -> Division:
    """Equal batches of `size` if it is given; else of at most as many."""
    found = _pieces(total, ranks, size, is_given)
    if found is None:
        raise _uneven(total, ranks, size, is_given)
    return found


def _pieces(total: int, ranks: int, size: int | None, is_given: bool) -> Division | None:
    """The largest equal batches per device, in which no sample is on its own if that is possible; None if none are."""
    if total < ranks or total % ranks:
        return None
    share = total // ranks
    if size is None:
        return Division(share, 1)
    if is_given:
        return None if share % size else Division(size, share // size)
    per_device = largest_divisor(share, size)
    # one sample at a time is slow, and nothing for BatchNorm; a prime number of them leaves no other way
    is_alone = per_device == 1 and min(share, size) > 1
    return None if is_alone else Division(per_device, share // per_device)


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is not above `most`."""
    divisors = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    pairs = divisors + [number // divisor for divisor in divisors]
    return max(divisor for divisor in pairs if divisor <= most)


def _uneven(total: int, ranks: int, size: int | None, is_given: bool) -> ConfigError:
    quantum = ranks * size if is_given and size else ranks
    below = total - (total % quantum or quantum)
    above = total + quantum - total % quantum
    while below > 0 and not _pieces(below, ranks, size, is_given):
        below -= quantum
    while not _pieces(above, ranks, size, is_given):
        above += quantum
    possible = [str(number) for number in (below, above) if 0 < number <= _MOST]
    nearest = f"The nearest that can: {' or '.join(possible)}" if possible else f"No total up to {_MOST} can"
    pieces = counted(ranks, "device")
    if is_given:
        pieces += f" with data.batch_size {size}"
    elif size is not None:
        pieces += f" with batches of 2 to {size} samples"
    return ConfigError(f"{total} cannot be divided evenly over {pieces}. {nearest}.", _OPTION)
