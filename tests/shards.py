"""Tar shards, written with Python's tarfile alone, as other programs write them."""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hybrid_lightning import ManifestDataModule


def write_shard(path: str | Path, samples: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes key → extension → content: bytes, text, an array for .npy and .png, a dict for .json."""
    members = [(f"{key}.{extension}", content) for key, own in samples.items() for extension, content in own.items()]
    write_members(path, members)


def write_members(path: str | Path, members: Sequence[tuple[str, Any]]) -> None:
    """Writes names and contents, in their order."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            encoded = as_bytes(name, content)
            info.size = len(encoded)
            archive.addfile(info, io.BytesIO(encoded))


def as_bytes(name: str, content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    stream = io.BytesIO()
    if name.endswith(".npy"):
        np.save(stream, content)
    elif name.endswith(".png"):
        Image.fromarray(content).save(stream, "PNG")
    else:
        return (json.dumps(content) if name.endswith(".json") else str(content)).encode()
    return stream.getvalue()


def picture(row: int) -> np.ndarray:
    """An image that differs from those of other rows, 8 × 8."""
    image = np.full((8, 8, 3), 40 + 60 * (row % 3), np.uint8)
    image[row % 8, row // 8 % 8] = row % 256
    return image


def write_splits(folder: str | Path = "shards", train: int = 4, samples: int = 10) -> dict[str, str]:
    """Shards of images, classes and a table, for training, and one each to validate and to test; their patterns."""
    row = 0
    for split, count in (("train", train), ("val", 1), ("test", 1)):
        for number in range(count):
            own = {}
            for _ in range(samples):
                fields = {"age": row % 7 + 0.5, "site": "ab"[row % 2]}
                own[f"{row:04}"] = {"png": picture(row), "cls": row % 3, "json": fields}
                row += 1
            write_shard(Path(folder) / f"{split}-{number:03}.tar", own)
    return {split: f"{folder}/{split}-*.tar" for split in ("train", "val", "test")}


def write_tower_shards(folder: str | Path, shards: int, samples: int) -> None:
    """Shards of what the model of `tests.tiny` reads: four numbers twice, and one of two classes."""
    random = np.random.default_rng(0)
    for number in range(shards):
        own = {}
        for sample in range(samples):
            content = {f"{name}.npy": random.standard_normal(4).astype(np.float32) for name in ("old", "new")}
            own[f"{sample:04}"] = {**content, "cls": (number + sample) % 2}
        write_shard(Path(folder) / f"tower-{number:03}.tar", own)


def tower_shards(folder: str | Path, batch_size: int, workers: int = 0) -> Any:
    """The training loader of all of them, two shuffled at a time, with a random transform of single samples."""
    inputs = {"old": {"array": "old.npy", "train": ["RandomFlip"]}, "new": {"array": "new.npy"}}
    data = ManifestDataModule(
        f"{folder}/tower-*.tar",
        inputs,
        "cls",
        fractions={"val": 0, "test": 0},
        sampling={"shards": 2},
        batch_size=batch_size,
        workers=workers,
    )
    data.setup("fit")
    return data.train_dataloader()
