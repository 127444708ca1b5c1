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
_SMALLEST_SIDE = 8
_MOST_POINTS = 96
_LONGEST = 300  # characters
_MOST_PICTURES = 4
_MOST_TEXTS = 8
_SHORTEST_LINE = 12
_META = ("target", "id")
_PNG = b"\x89PNG\r\n\x1a\n"  # with which every file of the format begins


def shown(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Pictures and lines of the entries of a sample."""
    found: list[dict[str, Any]] = []
    for key, value in sample.items():
        if key in _META or key.startswith("present/"):
            continue
        tensor = value.get("values") if isinstance(value, Mapping) else value
        if not isinstance(tensor, Tensor):
            continue
        tensor = tensor.detach().float().cpu().nan_to_num()
        if _is_image(tensor):
            found.append(_entry(key, picture=png(_pixels(tensor))))
        elif _is_series(tensor):
            found.append(_entry(key, line=_line(tensor)))
    return found[:_MOST_PICTURES]


def texts(cells: Mapping[str, str]) -> list[dict[str, Any]]:
    """The cells of a sample in the same form."""
    found = [_entry(column, text=text[:_LONGEST]) for column, text in cells.items()]
    return found[:_MOST_TEXTS]


def _entry(key: str, picture: str = "", text: str = "", line: list[float] | None = None) -> dict[str, Any]:
    """What is shown of one entry, in the form of the record."""
    return {"key": key, "picture": picture, "text": text, "line": line or []}


def _is_image(tensor: Tensor) -> bool:
    """Whether it is `(1 or 3, H, W)`."""
    if tensor.ndim != 3 or len(tensor) not in (1, 3):
        return False
    return min(tensor.shape[1:]) >= _SMALLEST_SIDE


def _is_series(tensor: Tensor) -> bool:
    """Whether it is `(N,)`, `(C, N)` or `(N, C)` of some length."""
    if tensor.ndim not in (1, 2):
        return False
    return max(tensor.shape) >= _SHORTEST_LINE and min(tensor.shape) > 0


def _pixels(image: Tensor) -> Array:
    """An image `(C, H, W)` as bytes `(H, W, C)`, not larger than `_SIDE`; values beyond [0, 1] are stretched to it."""
    scale = min(1.0, _SIDE / max(image.shape[1:]))
    if scale < 1:
        size = [max(1, round(side * scale)) for side in image.shape[1:]]
        image = functional.interpolate(image[None], size, mode="area")[0]
    low = float(image.min())
    high = float(image.max())
    if low < 0 or high > 1:
        image = (image - low) / ((high - low) or 1.0)
    values = (image * 255).round().to(torch.uint8)
    return values.permute(1, 2, 0).contiguous().numpy()


def png(pixels: Array) -> str:
    """A picture `(H, W, 1 or 3)` of bytes as PNG in base64; without a library, because pillow is another extra."""
    height, width, channels = pixels.shape
    bit_depth = 8
    color_type = 0 if channels == 1 else 2  # gray, or red, green and blue
    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    lines = pixels.reshape(height, width * channels)
    unfiltered = np.zeros((height, 1), np.uint8)  # says of each line that its bytes are as they were
    body = np.concatenate([unfiltered, lines], axis=1).tobytes()
    content = _PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(body, 9)) + _chunk(b"IEND", b"")
    return base64.b64encode(content).decode("ascii")


def _chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG: its length, name, data and checksum."""
    length = struct.pack(">I", len(data))
    checksum = struct.pack(">I", zlib.crc32(name + data))
    return length + name + data + checksum


def _line(tensor: Tensor) -> list[float]:
    """The longer axis of a series as at most `_MOST_POINTS` means in [0, 1]; of several channels the first."""
    series = tensor
    if tensor.ndim == 2:
        is_channels_first = tensor.shape[1] >= tensor.shape[0]
        series = tensor[0] if is_channels_first else tensor[:, 0]
    count = min(len(series), _MOST_POINTS)
    points = functional.adaptive_avg_pool1d(series[None], count)[0]
    low = float(points.min())
    high = float(points.max())
    span = (high - low) or 1.0
    scaled: list[float] = ((points - low) / span).tolist()
    return scaled
