"""Single samples given in Python, as the table and the files that a manifest's inputs read."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from hybrid_lightning.data.inputs import members_of, parse_inputs
from hybrid_lightning.data.inputs.audio import AudioInput
from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.inputs.files import FileInput
from hybrid_lightning.data.inputs.images import ImageInput
from hybrid_lightning.data.manifest import ManifestDataModule
from hybrid_lightning.data.prepared import State, check_version
from hybrid_lightning.data.transforms import TRANSFORMS
from hybrid_lightning.errors import ConfigError, at, check_keys, listing
from hybrid_lightning.importing import import_extra

Sample = Mapping[str, Any]
_MODES = ("1", "L", "LA", "I;16", "RGB", "RGBA", "P")  # of images that PNG keeps as they are


def stored_inputs(state: State) -> dict[str, Any]:
    """The options of each input that a checkpoint keeps, as ``data.inputs`` takes them; its code is not imported."""
    found = {}
    for key, known in state["inputs"].items():
        options = known.get("options")
        if options is None:
            raise ConfigError(
                f"the checkpoint does not hold the options of input {key!r}: an earlier version wrote it, or they "
                f"were no plain data. Give the inputs of its config: inputs={{{key!r}: {{...}}, ...}}."
            )
        foreign = [
            path for path in _named(options.get("eval", [])) if not (isinstance(path, str) and path in TRANSFORMS)
        ]
        if foreign:
            raise ConfigError(
                f"the transform {foreign[0]!r} is code, which a file may not name. Give the inputs of the config "
                f"yourself: inputs={{{key!r}: {{...}}, ...}}.",
                f"inputs.{key}.eval",
            )
        found[key] = options
    return found


def _named(value: Any, is_step: bool = True) -> Iterator[Any]:
    """What a list of transforms names at any depth, as a transform may be an argument of another one."""
    if isinstance(value, list):
        for one in value:
            yield from _named(one, is_step)
    elif isinstance(value, Mapping):
        yield value.get("class_path")
        arguments = value.get("init_args")
        for one in arguments.values() if isinstance(arguments, Mapping) else ():
            yield from _named(one, is_step=False)
    elif is_step:
        yield value


@contextmanager
def manifest_of(samples: Sequence[Sample], state: State, inputs: Mapping[str, Any] | None) -> Iterator[Any]:
    """A DataModule that predicts samples with the statistics of `state`; while it is open its files are there."""
    state = check_version(state)
    specs = stored_inputs(state) if inputs is None else inputs
    entries = parse_inputs(specs)
    pyarrow = import_extra("pyarrow", "data", "a sample")
    parquet = import_extra("pyarrow.parquet", "data", "a sample")
    with TemporaryDirectory() as folder:
        columns = {}
        for name, entry in _by_column(entries).items():
            cells = []
            for number, sample in enumerate(samples):
                with at(f"sample {number}" if len(samples) > 1 else "sample"):
                    cells.append(_cell(name, entry, _value(name, sample, entries, state), folder))
            kind = pyarrow.string() if name in entry.text_columns else pyarrow.float64()
            has_several = isinstance(entry, FileInput) and entry.separator is not None
            columns[name] = pyarrow.array(cells, pyarrow.list_(kind) if has_several else kind)
        path = Path(folder) / "samples.parquet"
        parquet.write_table(pyarrow.table(columns), path)
        data = ManifestDataModule(str(path), dict(specs), predict_path=str(path), checks=False, workers=0)
        data.load_state_dict(state)
        data.setup("predict")
        yield data


def _by_column(entries: Mapping[str, Input]) -> dict[str, Input]:
    """Column → the input that reads it; of several the first, of which each reads the same cell."""
    found: dict[str, Input] = {}
    for entry in members_of(entries).values():
        for column in entry.columns:
            found.setdefault(column, entry)
    return found


def _value(column: str, sample: Sample, entries: Mapping[str, Input], state: State) -> Any:
    """What a sample gives for a column, under its name or under the key of the input that reads it alone."""
    keys = {entry.columns[0]: key for key, entry in entries.items() if len(entry.columns) == 1}
    others = (*((state.get("target") or {}).get("columns") or ()), state.get("id"), state.get("groups"))
    columns = [name for entry in entries.values() for name in entry.columns]
    check_keys([name for name in sample if name not in others], dict.fromkeys((*keys.values(), *columns)))
    for name in (keys.get(column, column), column):
        if name in sample:
            return sample[name]
    for key, entry in entries.items():
        if column not in entry.columns:
            continue
        is_whole = not any(name in sample for name in entry.columns)
        if not is_whole or key not in state["incomplete"]:
            raise ConfigError(
                f"{column!r} is missing; given are {listing(sample)}. If the sample does not have it, write "
                f"{column!r}: None."
            )
    return None


def _cell(name: str, entry: Input, value: Any, folder: str) -> Any:
    """A value as a cell of the table; of several files a list."""
    if value is None:
        return None
    if isinstance(entry, FileInput) and entry.separator is not None:
        values = value if isinstance(value, list | tuple) else [value]
        return [_file(name, entry, one, folder) for one in values if one is not None]
    if isinstance(value, np.generic):
        value = value.item()
    return _file(name, entry, value, folder) if isinstance(entry, FileInput) else _plain(name, entry, value)


def _file(name: str, entry: FileInput, value: Any, folder: str) -> str:
    """The path of a value's file, which is written unless the value is a path."""
    if isinstance(value, str | Path):
        return str(Path(value).expanduser().absolute())
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    place = Path(folder) / f"{len(list(Path(folder).iterdir()))}"
    if isinstance(entry, ImageInput):
        return _image_file(name, value, place)
    if isinstance(entry, AudioInput) or not isinstance(value, np.ndarray):
        possible = "the path of a file" if isinstance(entry, AudioInput) else "a path, an array or a tensor"
        raise ConfigError(f"a value of type {type(value).__name__} is not {possible}.", name)
    path = place.with_suffix(".npy")
    np.save(path, value)
    return str(path)


def _plain(name: str, entry: Input, value: Any) -> Any:
    """A text, or a number where the input reads numbers."""
    is_number = name not in entry.text_columns
    if isinstance(value, str) and not is_number:
        return value
    if not isinstance(value, int | float | str):
        raise ConfigError(f"a value of type {type(value).__name__} is neither text nor a number.", name)
    try:
        return float(value) if is_number else str(value)
    except ValueError:
        raise ConfigError(f"{value!r} is not a number.", name) from None


def _image_file(name: str, value: Any, place: Path) -> str:
    """An image, or an array `(H, W)` or `(H, W, C)` of 8 bits, as a file that loses nothing."""
    from PIL import Image, ImageOps

    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim not in (2, 3):
            raise ConfigError(
                f"an array {value.shape} of {value.dtype} is not an image. Give uint8 of (height, width) or (height, "
                f"width, channels), an image of Pillow, or a path.",
                name,
            )
        value = Image.fromarray(value)
    if not isinstance(value, Image.Image):
        raise ConfigError(
            f"a value of type {type(value).__name__} is not a path, an image of Pillow or an array.", name
        )
    turned = ImageOps.exif_transpose(value)
    path = place.with_suffix(".png" if turned.mode in _MODES else ".tiff")
    turned.save(path)
    return str(path)
