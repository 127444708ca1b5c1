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
    frozen = []
    for name in network.wiring.order:
        is_steady = name not in trains
        if is_steady and _is_frozen(network, name, modes):
            frozen.append(name)
    return frozen


def _is_frozen(network: HybridNetwork, name: str, modes: Mapping[nn.Module, bool]) -> bool:
    part = network.options[name]
    module = network.parts[name]
    for parameter in module.parameters():
        if parameter.requires_grad:
            return False
    if part.origin == "random":
        if isinstance(module, ReadsTrainingData):
            return bool(module.prepared)
        return True
    # statistics that follow the batches change the output, although no parameter trains
    if part.batch_norm in ("train", "recalibrate"):
        return False
    in_train_mode = [modes.get(each, each.training) for each in module.modules()]
    return not any(in_train_mode)


def fixed_parts(network: HybridNetwork, frozen: Collection[str], varying: Collection[str]) -> list[str]:
    """Of the frozen parts, those that read no `varying` key of the batch and no part that is not fixed itself."""
    fixed: list[str] = []
    for name in network.wiring.order:
        parts = network.wiring.parts_read(name)
        keys = keys_of(network, name)
        parts_are_fixed = set(parts) <= set(fixed)
        keys_are_fixed = set(keys).isdisjoint(varying)
        if name in frozen and parts_are_fixed and keys_are_fixed:
            fixed.append(name)
    return fixed


def boundary(network: HybridNetwork, fixed: Collection[str]) -> list[str]:
    """Of the fixed parts, those whose output something else reads."""
    found = []
    for name in network.wiring.order:
        others = _readers(network, name) - set(fixed)
        is_read = name in network.feeding or len(others) > 0
        if name in fixed and is_read:
            found.append(name)
    return found


def _readers(network: HybridNetwork, name: str) -> set[str]:
    """The parts that read the output of a part."""
    readers = set()
    for other in network.wiring.order:
        before = network.wiring.parts_read(other)
        if name in before:
            readers.add(other)
    return readers


def keys_of(network: HybridNetwork, name: str) -> list[str]:
    """The keys of the batch that a part reads."""
    before = network.wiring.parts_read(name)
    inputs = network.wiring.reads[name]
    return [key for key in inputs if key not in before]


def live_keys(network: HybridNetwork, cached: Collection[str]) -> set[str]:
    """The keys of the batch that are still read if these parts are cached."""
    needed = network.wiring.needed(cached)
    running = needed - set(cached)
    return _keys_of_all(network, running)


def unread_keys(network: HybridNetwork, cached: Collection[str]) -> set[str]:
    """The keys of the batch that only parts read which need not run if these are cached."""
    keys = _keys_of_all(network, network.wiring.order)
    live = live_keys(network, cached)
    return keys - live


def _keys_of_all(network: HybridNetwork, names: Collection[str]) -> set[str]:
    """The keys of the batch that any of these parts reads."""
    keys: set[str] = set()
    for name in names:
        own = keys_of(network, name)
        keys.update(own)
    return keys
