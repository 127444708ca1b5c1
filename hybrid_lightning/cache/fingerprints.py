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
        hasher.update(f"{value.dtype}{tuple(value.shape)}".encode())
        hasher.update(bytes_of(value))
    elif isinstance(value, np.ndarray) and value.dtype != object:
        hasher.update(f"{value.dtype}{value.shape}".encode())
        hasher.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, str | bytes | int | float | bool | None):
        hasher.update(repr(value).encode())
    else:
        # such as an image that the collation turns into a tensor
        hasher.update(pickle.dumps(value))


def bytes_of(tensor: Tensor) -> Any:
    """The values of a tensor as bytes, without a copy if it is contiguous and on the CPU."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def part_tensors(network: HybridNetwork, name: str) -> dict[str, Tensor]:
    """The parameters and buffers that a part's output depends on, its scale included."""
    found: dict[str, Tensor] = dict(network.parts[name].named_parameters())
    found.update(network.parts[name].named_buffers())
    if name in network.scales:
        for own, buffer in network.scales[name].named_buffers():
            found[f"scale.{own}"] = buffer
    return found


def part_fingerprint(network: HybridNetwork, name: str) -> str:
    """The hash of a part's options, module, weights and buffers, and of the parts that it reads."""
    options, record = network.options[name], network.record.parts[name]
    module = network.parts[name]
    described = [type(module).__qualname__, str(module), repr(options.plain()), record.output, record.pool]
    before = [part_fingerprint(network, other) for other in network.wiring.parts_read(name)]
    return digest(described, network.wiring.reads[name], before, part_tensors(network, name))


def random_state() -> str:
    """A hash of the states of the three global generators of the CPU; another one after each draw."""
    return digest(torch.get_rng_state(), np.random.get_state(legacy=False), random.getstate())
