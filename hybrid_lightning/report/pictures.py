"""What a report shows of a sample: a small picture, a line, or texts."""

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.table import Array

_SIDE = 96  # pixels
_MOST_POINTS = 96
_LONGEST = 300  # characters
_MOST_PICTURES = 4
_MOST_TEXTS = 8
_SHORTEST_LINE = 12
_META = ("target", "id")


def shown(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pictures and lines of the entries of a sample."""
    found: list[dict[str, Any]] = []
    for key, value in sample.items():
        tensor = value.get("values") if isinstance(value, Mapping) else value
        if key in _META or key.startswith("present/") or not isinstance(tensor, Tensor):
            continue
        tensor = tensor.detach().float().cpu().nan_to_num()
        if _is_image(tensor):
            found.append({"key": key, "picture": png(_pixels(tensor)), "text": "", "line": []})
        elif tensor.ndim in (1, 2) and max(tensor.shape) >= _SHORTEST_LINE and min(tensor.shape):
            found.append({"key": key, "picture": "", "text": "", "line": _line(tensor)})
    return found[:_MOST_PICTURES]


def texts(cells: Mapping[str, str]) -> list[dict[str, Any]]:
    """The cells of a sample in the same form."""
    found = []
    for column, text in cells.items():
        found.append({"key": column, "picture": "", "text": text[:_LONGEST], "line": []})
    return found[:_MOST_TEXTS]


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 3 and len(tensor) in (1, 3) and min(tensor.shape[1:]) >= 8


def _pixels(image: Tensor) -> Array:
    """An image `(C, H, W)` as bytes `(H, W, C)`, not larger than `_SIDE`; values beyond [0, 1] are stretched to it."""
    scale = min(1.0, _SIDE / max(image.shape[1:]))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        image = functional.interpolate(image[None], size, mode="area")[0]
    low, high = float(image.min()), float(image.max())
    if low < 0 or high > 1:
        image = (image - low) / (high - low)
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def png(pixels: Array) -> str:
    """A picture `(H, W, 1 or 3)` of bytes as PNG in base64; without a library, because pillow is another extra."""
    height, width, channels = pixels.shape
    lines = pixels.reshape(height, width * channels)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), lines], axis=1)  # filter 0: as they are
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    blocks = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in blocks:
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return base64.b64encode(content).decode("ascii")


def _line(tensor: Tensor) -> list[float]:
    """The longer axis of a series as at most `_MOST_POINTS` means in [0, 1]; of several channels the first."""
    series = tensor
    if tensor.ndim == 2:
        series = tensor[0] if tensor.shape[1] >= tensor.shape[0] else tensor[:, 0]
    points = functional.adaptive_avg_pool1d(series[None], min(len(series), _MOST_POINTS))[0]
    low, high = float(points.min()), float(points.max())
    found: list[float] = ((points - low) / ((high - low) or 1.0)).tolist()
    return found
