"""Tables of arrays as files: CSV, Parquet or npz."""

import zipfile
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid_lightning.errors import ConfigError, at, writing
from hybrid_lightning.files import whole_file, write_csv

ELSEWHERE = "Make room, or write to another place."
Columns = dict[str, Any]  # name → a value per row: an array `(rows,)` or `(rows, numbers)`, or a list


def as_array(values: Any) -> Any:
    """A tensor as an array, in a precision that numpy has; anything else as it is."""
    if not isinstance(values, Tensor):
        return values
    if values.is_floating_point() and values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return values.numpy()


def check_output(path: str, formats: Collection[str], option: str = "output", read: Iterable[str] = ()) -> None:
    """Raises `ConfigError` unless a table or page can be written under this name, which is none of the tables read."""
    place = Path(path)
    if place.suffix not in formats:
        raise ConfigError(f"{path!r} does not end in {' or '.join(formats)}. Name such a file.", option)
    if place.suffix == ".parquet" and not find_spec("pyarrow"):
        others = [suffix for suffix in formats if suffix != ".parquet"]
        raise ConfigError(
            f"Parquet is written with pyarrow, which is missing. Install it with: pip install "
            f"'hybrid_lightning[data]'; or write a {others[0]} file.",
            option,
        )
    if place.is_dir():
        raise ConfigError(f"{path!r} is a folder. Name a file in it.", option)
    if any(place.resolve() == Path(table).resolve() for table in read):
        raise ConfigError(f"{path!r} is a table that is read, and would be lost. Name another file.", option)
    above = next(folder for folder in place.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"{path!r} cannot be written: {str(above)!r} is not a folder.", option)


def refuse_named_file(path: str, data: Any, option: str = "output") -> None:
    """Raises `ConfigError` for a file that cells of a manifest name, which would be lost."""
    names_file = getattr(data, "names_file", None)
    # most outputs are new, so that no cell is looked at
    if callable(names_file) and Path(path).is_file() and names_file(Path(path)):
        raise ConfigError(f"{path!r} is a file that the data name, and would be lost. Name another file.", option)


def write_table(columns: Columns, path: str | Path) -> None:
    """Writes columns by the suffix, and makes its folder; the file appears whole or not at all."""
    place = Path(path)
    with at("output"), writing(place, ELSEWHERE):
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix == ".csv":
            # numpy's text is the shortest number that reads back as the same
            texts = [values.astype(str) if isinstance(values, np.ndarray) else values for values in columns.values()]
            write_csv(place, columns, zip(*texts, strict=True))
            return
        with whole_file(place) as temporary:
            if place.suffix == ".npz":
                _write_npz(columns, temporary)
            else:
                _write_parquet(columns, temporary)


def _write_npz(columns: Columns, path: Path) -> None:
    """As `numpy.savez`, which takes the names for arguments of its own, such as ``file``."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)


def _write_parquet(columns: Columns, path: Path) -> None:
    """Writes columns of one dimension, and lists of one length for those of two."""
    import pyarrow
    from pyarrow import parquet

    arrays = {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim == 2:
            numbers = pyarrow.array(values.reshape(-1))
            arrays[name] = pyarrow.FixedSizeListArray.from_arrays(numbers, values.shape[1])
        else:
            arrays[name] = values
    parquet.write_table(pyarrow.table(arrays), path)
