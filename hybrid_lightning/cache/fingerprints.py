"""Hashes of what features depend on: a part's weights and options, and raw samples."""

import hashlib
import pickle
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.network.hybrid_network import HybridNetwork


def digest(*values: Any) -> str:
    """A stable hash of tensors, arrays, numbers, texts, and containers of them."""
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
        shape = tuple(value.shape)
        hasher.update(f"{value.dtype}{shape}".encode())
        hasher.update(bytes_of(value))
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


def part_tensors(network: HybridNetwork, name: str) -> dict[str, Tensor]:
    """The parameters and buffers that a part's output depends on, its scale included."""
    module = network.parts[name]
    found: dict[str, Tensor] = dict(module.named_parameters())
    found.update(module.named_buffers())
    if name in network.scales:
        scale = network.scales[name]
        for own, buffer in scale.named_buffers():
            found[f"scale.{own}"] = buffer
    return found


def part_fingerprint(network: HybridNetwork, name: str) -> str:
    """The hash of a part's options, module, weights and buffers, and of the parts that it reads."""
    record = network.record.parts[name]
    module = network.parts[name]
    kind = type(module).__qualname__
    options = network.options[name].plain()
    described = [kind, str(module), repr(options), record.output, record.pool]
    before = []
    for other in network.wiring.parts_read(name):
        fingerprint = part_fingerprint(network, other)
        before.append(fingerprint)
    inputs = network.wiring.reads[name]
    tensors = part_tensors(network, name)
    return digest(described, inputs, before, tensors)


def random_state() -> str:
    """A hash of the states of the three global generators of the CPU; another one after each draw."""
    of_torch = torch.get_rng_state()
    of_numpy = np.random.get_state(legacy=False)
    of_python = random.getstate()
    return digest(of_torch, of_numpy, of_python)
