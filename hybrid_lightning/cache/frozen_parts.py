"""Which parts, or starts of parts, are fixed functions of the sample, and which of their outputs others read."""

from collections.abc import Collection, Mapping

from torch import nn
from torch.distributed.fsdp import FSDPModule

from hybrid_lightning.network.contracts import ReadsTrainingData
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.short_circuit import parts_of


def frozen_parts(
    network: HybridNetwork,
    trains: Collection[nn.Parameter],
    modes: Mapping[nn.Module, bool],
) -> list[str]:
    """The parts whose weights and modes stay as they are, in the order in which they run.

    Args:
        network: The network.
        trains: Parameters that train, or are about to.
        modes: Module → whether it is in train mode during training; one that is not named keeps its mode.
    """
    return [name for name in network.wiring.order if _is_frozen(network, name, trains, modes)]


def _is_frozen(
    network: HybridNetwork,
    name: str,
    trains: Collection[nn.Parameter],
    modes: Mapping[nn.Module, bool],
) -> bool:
    part = network.options[name]
    module = network.parts[name]
    for parameter in module.parameters():
        if parameter.requires_grad or parameter in trains:
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


def partly_frozen(network: HybridNetwork, trains: Collection[nn.Parameter]) -> list[str]:
    """The parts of which some parameters train and others do not, and whose statistics do not follow the batches."""
    # the start of a sharded part can only be gathered with the rest of it
    if isinstance(network, FSDPModule):
        return []
    found = []
    for name in network.wiring.order:
        part = network.options[name]
        training = [parameter in trains for parameter in network.parts[name].parameters()]
        is_between = any(training) and not all(training)
        # compiled code does not stop at a module within
        if is_between and not part.compile and part.batch_norm not in ("train", "recalibrate"):
            found.append(name)
    return found


def fixed_parts(network: HybridNetwork, frozen: Collection[str], varying: Collection[str]) -> list[str]:
    """Of the frozen parts, those that read no `varying` key of the batch and no part that is not fixed itself."""
    fixed: list[str] = []
    for name in network.wiring.order:
        if name in frozen and _reads_fixed(network, name, fixed, varying):
            fixed.append(name)
    return fixed


def startable_parts(
    network: HybridNetwork,
    partly: Collection[str],
    fixed: Collection[str],
    varying: Collection[str],
) -> list[str]:
    """Of the partly frozen parts, those that read no `varying` key of the batch and no part that is not fixed."""
    return [name for name in partly if _reads_fixed(network, name, fixed, varying)]


def _reads_fixed(network: HybridNetwork, name: str, fixed: Collection[str], varying: Collection[str]) -> bool:
    parts = network.wiring.parts_read(name)
    keys = network.wiring.keys_of(name)
    # an input that varies makes the output vary
    return set(parts) <= set(fixed) and set(keys).isdisjoint(varying)


def boundary(network: HybridNetwork, fixed: Collection[str], started: Collection[str] = ()) -> list[str]:
    """Of the fixed parts, those whose output something else reads; `started` ones are run from within."""
    found = []
    for name in network.wiring.order:
        others = _readers(network, name) - {*fixed, *started}
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


def live_keys(network: HybridNetwork, cached: Collection[str]) -> set[str]:
    """The keys of the batch that are still read if these parts, or the starts of parts, are cached."""
    parts = parts_of(cached)
    needed = network.wiring.needed(parts)
    running = needed - parts
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
        own = network.wiring.keys_of(name)
        keys.update(own)
    return keys
