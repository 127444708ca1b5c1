"""Hashes of what features depend on: a part's weights and options, and raw samples."""

import hashlib
import operator
import pickle
import random
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hybrid_lightning.distributed.sharding import own_share, own_shares
from hybrid_lightning.lightning_private import holders, write_count
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.short_circuit import is_inside, part_of

_TRAINS = operator.attrgetter("requires_grad")


def digest(*values: Any) -> str:
    """A stable hash of tensors (of sharded ones this rank's shard), arrays, numbers, texts, and containers of them."""
    hasher = hashlib.blake2b(digest_size=16)
    for value in values:
        _add(hasher, value)
    return hasher.hexdigest()


def _add(hasher: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        hasher.update(b"{%d" % len(value))
        for key, entry in value.items():
            _add(hasher, key)
            _add(hasher, entry)
    elif isinstance(value, list | tuple):
        hasher.update(b"[%d" % len(value))
        for entry in value:
            _add(hasher, entry)
    elif isinstance(value, Tensor):
        value = own_share(value)
        shape = tuple(value.shape)
        hasher.update(f"{value.dtype}{shape}".encode())
        # of a copy, as the storage of what has become an array can't be freed by a sharded module
        hasher.update(bytes_of(value.clone()))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        hasher.update(f"{value.dtype}{value.shape}".encode())
        in_order = np.ascontiguousarray(value)
        hasher.update(in_order.tobytes())
    elif isinstance(value, str | bytes | int | float | bool | None):
        text = repr(value)
        hasher.update(text.encode())
    else:
        # such as an image that the collation turns into a tensor
        pickled = pickle.dumps(value)
        hasher.update(pickled)


def bytes_of(tensor: Tensor) -> Any:
    """The values of a tensor as bytes, without a copy if it is contiguous and on the CPU."""
    values = tensor.detach().cpu()
    flat = values.contiguous().view(-1)
    if not flat.numel():
        return b""
    single_bytes = flat.view(torch.uint8)
    return single_bytes.numpy().data


def own_tensors(network: HybridNetwork, place: str) -> dict[str, Tensor]:
    """The parameters and buffers of a part, or of its start, that its output depends on, its scale included."""
    name = part_of(place)
    module = network.parts[name]
    found: dict[str, Tensor] = dict(module.named_parameters())
    found.update(module.named_buffers())
    if is_inside(place):
        names = network.short_circuits[place].tensors
        # somebody may have given a tensor another name since, such as by pruning it
        found = {own: found[own] for own in names if own in found}
    if name in network.scales:
        scale = network.scales[name]
        for own, buffer in scale.named_buffers():
            found[f"scale.{own}"] = buffer
    return found


def all_tensors(network: HybridNetwork, place: str) -> list[Tensor]:
    """The same, and those of the parts that it reads."""
    found = list(own_tensors(network, place).values())
    before = network.wiring.parts_read(part_of(place))
    for name in sorted(network.wiring.needed((), before)):
        found += own_tensors(network, name).values()
    return found


def tensors_of(network: HybridNetwork, places: Iterable[str]) -> list[Tensor]:
    """The same for several, each tensor once."""
    found: dict[Tensor, None] = {}
    for place in places:
        found.update(dict.fromkeys(all_tensors(network, place)))
    return list(found)


def part_fingerprint(network: HybridNetwork, place: str) -> str:
    """The hash of a part's options, module, weights and buffers, and of the parts that it reads; or of its start."""
    name = part_of(place)
    record = network.record.parts[name]
    module = network.parts[name]
    kind = type(module).__qualname__
    options = network.options[name].plain()
    described = [kind, str(module), repr(options), record.output, record.pool, record.files]
    if is_inside(place):
        described.append(place)
    before = []
    for other in network.wiring.parts_read(name):
        fingerprint = part_fingerprint(network, other)
        before.append(fingerprint)
    inputs = network.wiring.reads[name]
    tensors = own_tensors(network, place)
    return digest(described, inputs, before, tensors)


class WatchedTensors:
    """Weights and buffers of places in a network, of which is noticed when somebody changes or replaces them."""

    def __init__(self, network: HybridNetwork, places: Iterable[str]) -> None:
        self._network, self._places = network, list(places)
        self._look()
        self._digest = digest(self.tensors)

    def _look(self) -> None:
        """Finds them, and notes what they and the modules of the network are now."""
        self.tensors = tensors_of(self._network, self._places)
        self._parameters = [tensor for tensor in self.tensors if isinstance(tensor, nn.Parameter)]
        self._written = _writes(self.tensors)
        self._holders: list[dict[str, Any]] = []
        for module in self._network.modules():
            self._holders += holders(module)
        self._held = self._now_held()

    def _now_held(self) -> list[Any]:
        """All parameters, buffers and modules of the modules that were there; several times as fast as a walk."""
        held = map(dict.values, self._holders)
        return list(chain.from_iterable(held))

    def any_trains(self) -> bool:
        """Whether one of the weights trains by now."""
        # asked at each step, so that it runs over them without Python's own loop
        return any(map(_TRAINS, self._parameters))

    def have_same_values(self) -> bool:
        """Whether those that the network has now hold what they did at first."""
        written = self._written
        now = self._now_held()
        is_same = len(now) == len(self._held) and all(map(operator.is_, now, self._held))
        if is_same and _writes(self.tensors) == written:
            return True
        self._look()
        # written in place such as by DDP, which sends buffers in every step
        return self._written == written or digest(self.tensors) == self._digest


def _writes(tensors: list[Tensor]) -> list[int]:
    """Numbers that another write changes."""
    shares = own_shares(tensors)
    return [*map(Tensor.data_ptr, shares), *map(write_count, shares)]


def random_state() -> str:
    """A hash of the states of the three global generators of the CPU; another one after each draw."""
    of_torch = torch.get_rng_state()
    of_numpy = np.random.get_state(legacy=False)
    of_python = random.getstate()
    return digest(of_torch, of_numpy, of_python)


def same_values(one: Any, other: Any) -> bool:
    """Whether two values are equal; faster than their digests where both hold tensors."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return list(one) == list(other) and all(same_values(one[key], other[key]) for key in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other):
        return True
    # also of numbers that are not equal to themselves
    return digest(one) == digest(other)
