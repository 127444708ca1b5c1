"""Which parts are fixed functions of the sample, and which of their outputs others read."""

from collections.abc import Collection, Mapping

from torch import nn

from hybrid_lightning.network.contracts import ReadsTrainingData
from hybrid_lightning.network.hybrid_network import HybridNetwork


def frozen_parts(network: HybridNetwork, trains: Collection[str], modes: Mapping[nn.Module, bool]) -> list[str]:
    """The parts whose weights and modes stay as they are, in the order in which they run.

    Args:
        network: The network.
        trains: Parts of which something is about to train.
        modes: Module → whether it is in train mode during training; one that is not named keeps its mode.
    """
    others = [name for name in network.wiring.order if name not in trains]
    return [name for name in others if _is_frozen(network, name, modes)]


def _is_frozen(network: HybridNetwork, name: str, modes: Mapping[nn.Module, bool]) -> bool:
    part, module = network.options[name], network.parts[name]
    if any(parameter.requires_grad for parameter in module.parameters()):
        return False
    if part.origin == "random":
        return not isinstance(module, ReadsTrainingData) or bool(module.prepared)
    # statistics that follow the batches change the output, although no parameter trains
    if part.batch_norm in ("train", "recalibrate"):
        return False
    return not any(modes.get(each, each.training) for each in module.modules())


def fixed_parts(network: HybridNetwork, frozen: Collection[str], varying: Collection[str]) -> list[str]:
    """Of the frozen parts, those that read no `varying` key of the batch and no part that is not fixed itself."""
    fixed: list[str] = []
    for name in network.wiring.order:
        before = network.wiring.parts_read(name)
        reads_fixed = set(before) <= set(fixed) and set(keys_of(network, name)).isdisjoint(varying)
        if name in frozen and reads_fixed:
            fixed.append(name)
    return fixed


def boundary(network: HybridNetwork, fixed: Collection[str]) -> list[str]:
    """Of the fixed parts, those whose output something else reads."""
    found = []
    for name in network.wiring.order:
        readers = [other for other in network.wiring.order if name in network.wiring.parts_read(other)]
        is_read = name in network.feeding or not set(readers) <= set(fixed)
        if name in fixed and is_read:
            found.append(name)
    return found


def keys_of(network: HybridNetwork, name: str) -> list[str]:
    """The keys of the batch that a part reads."""
    before = network.wiring.parts_read(name)
    return [key for key in network.wiring.reads[name] if key not in before]


def live_keys(network: HybridNetwork, cached: Collection[str]) -> set[str]:
    """The keys of the batch that are still read if these parts are cached."""
    needed = network.wiring.needed(cached) - set(cached)
    keys: set[str] = set()
    for name in needed:
        keys.update(keys_of(network, name))
    return keys


def unread_keys(network: HybridNetwork, cached: Collection[str]) -> set[str]:
    """The keys of the batch that only parts read which need not run if these are cached."""
    keys: set[str] = set()
    for name in network.wiring.order:
        keys.update(keys_of(network, name))
    return keys - live_keys(network, cached)
