"""The parts' own heads, and samples that lack parts: what a task asks and says about them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_lightning.errors import ConfigError, check_number, listing, unknown
from hybrid_lightning.network.contracts import MakesOutputs
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.missing import PREFIX
from hybrid_lightning.network.registry import resolve


def part_weight(given: Any, where: str = "model.part_heads") -> float:
    """The weight of the part heads' losses: 0 if they only look on.

    Raises:
        ConfigError: If it is neither true, nor false, nor ``{weight: ...}``.
    """
    if isinstance(given, bool):
        return 0.0
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where}: {given!r} is neither true, nor false, nor {{weight: 0.3}}.")
    for key in given:
        if key != "weight":
            raise unknown(where, "key", str(key), ("weight",))
    check_number(given["weight"], f"{where}.weight", low=0)
    return float(given["weight"])


def makes_outputs(fusion: Any) -> bool:
    """Whether a fusion, a module or its name, makes the model's outputs itself, so that no head has to follow."""
    found = resolve(fusion, "model.fusion.module") if isinstance(fusion, str) else fusion
    return isinstance(found, MakesOutputs) and found.makes_outputs


def refuse_empty_samples(network: HybridNetwork, batch: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if a sample has nothing that a part reads; asked while the batch is still on the CPU."""
    if not any(key.startswith(PREFIX) for key in batch):
        return
    found = network.presence(batch)
    if not all(name in found for name in network.feeding):
        return
    nothing = ~torch.stack([found[name] for name in network.feeding]).any(0)
    if bool(nothing.any()):
        ids = batch.get("id")
        names = [str(n) for n in (ids[nothing] if isinstance(ids, Tensor) else nothing.nonzero().flatten()).tolist()]
        what = "id" if isinstance(ids, Tensor) else "position in the batch"
        raise ConfigError(
            f"data: samples with nothing that a part reads ({what}): {listing(names, 5)}. A prediction of them would "
            f"be a guess. Remove these samples, or give them one of the inputs."
        )


def better_alone(logged: Mapping[str, Tensor], metrics: nn.ModuleDict) -> str | None:
    """A sentence if the last validation found a part's own head better than the model, by the task's first metric.

    Args:
        logged: The Trainer's ``callback_metrics``.
        metrics: Name → metric of the task.
    """
    name = next(iter(metrics), "")
    joint, prefix = logged.get(f"val/{name}"), f"val/{name}/"
    if joint is None:
        return None
    sign = 1 if getattr(metrics[name], "higher_is_better", True) else -1
    better = {
        key.removeprefix(prefix): float(value)
        for key, value in logged.items()
        if key.startswith(prefix) and sign * float(value) > sign * float(joint)
    }
    if not better:
        return None
    parts = ", ".join(f"{part} {value:.4g}" for part, value in better.items())
    return (
        f"val/{name}: all parts together have {float(joint):.4g}, and better alone, by their own heads: {parts}. "
        f"Lower the rates or raise the weight decay of the other parts, or leave parts out."
    )
