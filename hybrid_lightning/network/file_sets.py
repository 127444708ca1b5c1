"""Parts that read several files per sample: the module runs once, on all of them, and its features are pooled."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from hybrid_lightning.data.tensors import FILES_POOL, PRESENT
from hybrid_lightning.errors import ConfigError, listing
from hybrid_lightning.network.missing import encode_present
from hybrid_lightning.network.wiring import Wiring


def pool_of_files(name: str, wiring: Wiring, inferred: Mapping[str, Mapping[str, Any]]) -> str | None:
    """How the features of a part are pooled over several files per sample; None if it reads no such."""
    for key in wiring.keys_of(name):
        stated = inferred.get(key, {}).get(FILES_POOL)
        if stated is None:
            continue
        others = [other for other in wiring.reads[name] if other != key]
        if others:
            raise ConfigError(
                f"{key!r} has several files per sample, so that the part can read nothing beside it. Let another part "
                f"read {listing(others)}.",
                "input",
            )
        return str(stated)
    return None


def rows_of_files(inputs: list[Any], mask: Tensor | None = None) -> tuple[list[Any], Tensor]:
    """The files of all samples as samples `(B * K, ...)`, and which are there, `(B, K)`; none where `mask` is False."""
    [entry] = inputs
    rows = {name: tensor.flatten(0, 1) for name, tensor in entry.items() if name != PRESENT}
    there: Tensor = entry[PRESENT] if mask is None else entry[PRESENT] & mask.unsqueeze(1)
    return [rows["values"] if set(rows) == {"values"} else rows], there


def encode_files(
    call: Callable[[list[Any]], Tensor],
    module: nn.Module,
    inputs: list[Any],
    mask: Tensor | None,
    pool: str,
) -> Tensor:
    """What `call` makes of the files that are there, pooled over those of each sample."""
    rows, there = rows_of_files(inputs, mask)
    encoded = encode_present(call, module, rows, there.flatten())
    return pooled_over_files(encoded, there, pool)


def pooled_over_files(features: Tensor, there: Tensor, pool: str) -> Tensor:
    """The ``mean`` or ``max`` of `(B * K, ...)` over the files that are `there` `(B, K)`; 0 where none is."""
    files = features.reshape(-1, there.shape[1], *features.shape[1:])
    is_there = there.view(*there.shape, *[1] * (files.ndim - 2))
    if pool == "max":
        highest = files.masked_fill(~is_there, float("-inf")).amax(1)
        return highest.masked_fill(~is_there.any(1), 0)
    count = is_there.sum(1).clamp(min=1)
    return files.masked_fill(~is_there, 0).sum(1) / count
