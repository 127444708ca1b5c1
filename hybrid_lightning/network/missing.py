"""Missing modalities: presence masks, encoding of present samples only, modality dropout."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.unfreezing.freezing import has_statistics

PREFIX = "present/"
"""``present/<key>`` in a batch: `(B,)` bool, False where a sample has no ``<key>``."""

Presence = dict[str, Tensor]
"""Part → `(B,)` bool; a part that is not named is there in all samples."""


def presence(
    order: Sequence[str],
    reads: Mapping[str, Sequence[str]],
    batch: Mapping[str, Any],
) -> Presence:
    """Which parts are there in which samples: those all of whose inputs are; in `order`, each follows what it reads."""
    found: Presence = {}
    before: set[str] = set()
    for name in order:
        for key in reads[name]:
            mask = found.get(key) if key in before else batch.get(PREFIX + key)
            if mask is not None:
                mask = mask.bool()
                found[name] = found[name] & mask if name in found else mask
        before.add(name)
    return found


def never_absent(name: str, is_alone: bool) -> ConfigError:
    """The error for samples without a part that the model has always had; `is_alone` if it is the only part."""
    reason = (
        "was trained without such samples. Train it with them, or with model.fusion.args.modality_dropout, such as 0.2."
    )
    if is_alone:
        reason = "has no other part. Remove these samples, or add a part that reads something else."
    return ConfigError(f"data: some samples have nothing that part {name!r} reads, and the model {reason}")


def everybody(like: Tensor) -> Tensor:
    """`(B,)` of True, for `(B, ...)`."""
    # len() would fix the size in an exported program
    return like.new_ones(like.shape[0], dtype=torch.bool)


def drop_at_random(
    present: Presence,
    parts: Sequence[str],
    rate: float,
    like: Tensor,
) -> Presence:
    """Modality dropout: leaves each part out of a sample of `like` `(B, ...)`, but never all that the sample has."""
    there = torch.stack([present.get(part, everybody(like)) for part in parts], dim=1)
    draws = torch.rand(there.shape, device=like.device)
    kept = there & (draws >= rate)
    # a sample that would lose everything keeps what drew highest among what it has
    highest = torch.where(there, draws, -1.0).argmax(1, keepdim=True)
    rescued = torch.zeros_like(there).scatter(1, highest, value=True) & there
    kept = torch.where(kept.any(1, keepdim=True), kept, rescued)
    after = dict(zip(parts, kept.unbind(1), strict=True))
    return {**present, **after}


def encode_present(
    call: Callable[[list[Any]], Tensor],
    module: nn.Module,
    inputs: list[Any],
    present: Tensor,
) -> Tensor:
    """A part's output `(B, ...)` for the samples that are `present` `(B,)`, and zeros for the others.

    A part that no sample has is still called, on one sample, because every rank has to call each part in every step.
    """
    # a program has no data-dependent shapes; the fusion leaves out what is absent
    if torch.compiler.is_compiling():
        return call(inputs)
    rows = present.nonzero().flatten()
    if len(rows) == len(present):
        return call(inputs)
    # the first sample stands for nobody, and its output is cut off below
    chosen = rows if len(rows) else rows.new_zeros(1)
    # with too few samples, normalizations use their running statistics and keep them
    moving: list[nn.Module] = []
    if len(rows) < 2:
        moving = [norm for norm in module.modules() if norm.training and _has_own_statistics(norm)]
    for norm in moving:
        norm.training = False
    try:
        encoded = call([take(value, chosen) for value in inputs])
    finally:
        for norm in moving:
            norm.training = True
    absent_are_zero = encoded.new_zeros(len(present), *encoded.shape[1:])
    return absent_are_zero.index_copy(0, rows, encoded[: len(rows)])


def take(value: Any, rows: Tensor) -> Any:
    """Some samples of an entry of a batch; `rows` are indices, or a mask `(B,)`."""
    if isinstance(value, Mapping):
        return {key: take(entry, rows) for key, entry in value.items()}
    return value[rows] if isinstance(value, Tensor) else value


def rows_with(part: str, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
    """The features of a part `(N, features)` of the samples that have it."""
    own = features[part]
    return own[present[part]] if part in present else own


def _has_own_statistics(norm: nn.Module) -> bool:
    # on several ranks a SyncBatchNorm joins a collective, which all of them have to call
    return has_statistics(norm) and not isinstance(norm, nn.SyncBatchNorm)
