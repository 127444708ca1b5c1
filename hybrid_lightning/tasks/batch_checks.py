"""Checks of a batch while it is still on the CPU, where looking at values makes no device wait."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybrid_lightning.data.loaders import require_dict
from hybrid_lightning.errors import ConfigError, at, listing
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import PREFIX
from hybrid_lightning.tasks.objective import Objective


def check_batch(batch: Any, network: HybridNetwork, objective: Objective, is_target_needed: bool) -> None:
    """Raises `ConfigError` unless a batch is a dict with something to read in each sample, and a possible target."""
    require_dict(batch)
    refuse_empty_samples(network, batch)
    if not is_target_needed:
        return
    if "target" not in batch:
        raise ConfigError(f"the batch has no 'target'. It has: {listing(batch)}.", "data")
    target = batch["target"]
    with at("data: target"):
        if not isinstance(target, Tensor):
            raise ConfigError(f"a {type(target).__name__} is not a tensor; let the loader collate the labels to one.")
        objective.check_target(target)


def refuse_empty_samples(network: HybridNetwork, batch: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if a sample has nothing that a part reads."""
    if not any(key.startswith(PREFIX) for key in batch):
        return
    present = network.presence(batch)
    if not all(name in present for name in network.feeding):
        return  # a part that is not there is present in all samples
    is_empty = ~torch.stack([present[name] for name in network.feeding]).any(0)
    if not bool(is_empty.any()):
        return
    ids = batch.get("id")
    if isinstance(ids, Tensor):
        what, found = "id", ids[is_empty]
    else:
        what, found = "position in the batch", is_empty.nonzero().flatten()
    raise ConfigError(
        f"samples with nothing that a part reads ({what}): {listing(map(str, found.tolist()), 5)}. A prediction of "
        f"them would be a guess. Remove these samples, or give them one of the inputs.",
        "data",
    )
