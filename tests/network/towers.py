"""Small networks for the tests of this folder."""

import torch

from hybrid_lightning.network import builder
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.part import parse_parts


def build(parts: dict, example: dict, **options) -> HybridNetwork:
    return builder.build(parse_parts(parts), options.pop("outputs", 3), example, **options)


def sizes_of(network: HybridNetwork) -> dict:
    return {name: record.sizes for name, record in network.record.parts.items()}


def two_towers() -> tuple[dict, dict]:
    """A chain of two parts beside a table, listed in the opposite order of their execution."""
    parts = {
        "upper": {"module": "ConvExtractor", "input": "stem"},
        "stem": {"module": "ConvExtractor", "input": "image", "args": {"channels": [4]}},
        "table": {"module": "MLP", "args": {"hidden": [5]}},
    }
    return parts, {"image": torch.randn(2, 1, 8, 8), "table": torch.randn(2, 6)}
