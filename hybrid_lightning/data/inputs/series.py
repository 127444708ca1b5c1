"""Series of different lengths: a file per sample → steps with a mask, or channels of one length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.inputs.base import Value, collate_padded
from hybrid_lightning.data.inputs.checks import check_choice, check_column, check_count
from hybrid_lightning.data.inputs.files import FileInput, spread
from hybrid_lightning.data.inputs.numpy_files import Array, is_numpy, read_array, stated_shape
from hybrid_lightning.data.inputs.volumes import GAPS, without_gaps
from hybrid_lightning.data.table import Table
from hybrid_lightning.errors import ConfigError

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": r"\s+"}
_GAPS = {"", "NA", "N/A", "NULL", "null"}
_MOST_FITTED = 1000


class SeriesInput(FileInput):
    """A series per sample: ``.npy`` or ``.npz`` `(T,)` or `(T, C)`, or text with a step a line, with or without names.

    Each channel is standardized with mean and standard deviation over the steps of the training series; of more than
    1000 series, of 1000 at equal distances in the manifest. A channel that is constant there is only centered.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        series: Name of the column of paths. Text is separated by commas (``.csv``), tabs (``.tsv``) or spaces
            (``.txt``); a first line that is no numbers is left out, and so are empty lines. NA is an empty field.
        length: Most steps of a series. None keeps all.
        layout: ``steps``: a dict for ``SequenceTransformer``, ``values`` `(B, T, C)` padded with 0 at the end to the
            longest of the batch, and ``mask`` `(B, T)` bool, False there. ``channels``: a tensor for
            ``ResidualConv1d``, `(B, C, length)`, padded with 0 at the end.
        crop: Which part of a longer series is kept: ``start``, ``end``, or ``random``, which is the middle unless
            training.
        standardize: Whether to standardize.
        name: Which array of ``.npz`` files; None if they hold one.
        gaps: What nan, and an empty field of text, becomes: ``refuse`` stops with an error, ``zero`` makes it 0 after
            standardizing, which is the mean.
        train: Transforms of each training sample, `(T, C)` or `(C, length)`, see `make_transforms`.
        eval: Transforms of each sample otherwise.
    """

    def __init__(
        self,
        key: str,
        where: str,
        series: Any,
        length: Any = None,
        layout: Any = "steps",
        crop: Any = "start",
        standardize: Any = True,
        name: Any = None,
        gaps: Any = "refuse",
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, where, check_column(series, f"{where}.series"), train, eval)
        self.length = None if length is None else check_count(length, f"{where}.length")
        self.layout = check_choice(layout, f"{where}.layout", ("steps", "channels"))
        self.crop = check_choice(crop, f"{where}.crop", ("start", "end", "random"))
        self.standardize = check_choice(standardize, f"{where}.standardize", (False, True))
        self.name = None if name is None else check_column(name, f"{where}.name")
        self.gaps = check_choice(gaps, f"{where}.gaps", GAPS)
        if self.layout == "channels" and self.length is None:
            raise ConfigError(f"{where}.length: 'layout: channels' needs it; write such as 'length: 512'.")

    def fit(self, table: Table, rows: np.ndarray[Any, Any]) -> dict[str, Any]:
        """``mean`` and ``std`` of each channel; files are looked up from `folder`."""
        if not self.standardize:
            return {}
        self.bind(table, self.folder)
        return self._moments(spread(rows[~self.empty(table)[rows]], _MOST_FITTED))

    def _moments(self, rows: Sequence[int]) -> dict[str, Any]:
        """Joins the series one by one, as Chan et al. (1979) join means and sums of squares."""
        count = mean = squares = np.zeros(())
        for row in rows:
            with self.telling(row) as path:
                steps = self._steps(path).astype(np.float64)
                if mean.ndim and mean.shape != steps.shape[1:]:
                    raise ValueError(f"it has {steps.shape[1]} channels, and those before it {len(mean)}")
            known = ~np.isnan(steps)
            own = known.sum(0)
            own_mean = np.where(known, steps, 0).sum(0) / np.maximum(own, 1)
            own_squares = (np.where(known, steps - own_mean, 0) ** 2).sum(0)
            total, gap = np.maximum(count + own, 1), own_mean - mean
            squares = squares + own_squares + gap**2 * count * own / total
            mean, count = mean + gap * own / total, count + own
        if not np.all(count):
            raise ConfigError(f"{self.where}: there is a channel without any value in the {len(rows)} training series.")
        std = np.sqrt(squares / count)
        return {"mean": mean.tolist(), "std": np.where(std > 1e-9 * np.abs(mean), std, 1.0).tolist()}

    def _steps(self, path: Path) -> Array:
        """`(T, C)` float32 with gaps as nan."""
        steps = read_array(path, self.name) if is_numpy(path) else read_text(path)
        if steps.ndim not in (1, 2):
            raise ValueError(f"its shape {steps.shape} is neither (T,) nor (T, C)")
        without_gaps(steps, self.gaps)
        return steps if steps.ndim == 2 else steps[:, None]

    def load(self, path: Path, training: bool) -> Tensor:
        """`(T, C)`, or `(C, length)`."""
        steps = self._steps(path)
        if self.standardize:
            mean, std = (np.asarray(self.statistics[name]) for name in ("mean", "std"))
            if len(mean) != steps.shape[1]:
                raise ValueError(f"it has {steps.shape[1]} channels, and the training series have {len(mean)}")
            steps = ((steps - mean) / std).astype(np.float32)
        value = torch.from_numpy(without_gaps(steps, "zero"))
        if self.length is not None:
            start = window_start(len(value), self.length, self.crop, training)
            value = value[start : start + self.length]
        if self.layout == "channels":
            value = functional.pad(value.T, (0, (self.length or 0) - len(value)))
        return value

    def read(self, row: int, training: bool) -> Value:
        """A tensor `(C, length)`, or ``values`` `(T, C)` and ``mask`` `(T,)`."""
        value = super().read(row, training)
        assert isinstance(value, Tensor)
        if self.layout == "channels":
            return value
        return {"values": value, "mask": torch.ones(len(value), dtype=torch.bool)}

    def collate(self, values: Sequence[Value | None], placeholder: Value) -> Value:
        """Pads steps to the longest of the batch."""
        if self.layout == "channels":
            return super().collate(values, placeholder)
        channels = {value["values"].shape[1] for value in values if isinstance(value, dict)}
        if len(channels) > 1:
            raise ConfigError(
                f"{self.where}: series of one batch have {sorted(channels)} channels; give them equal ones."
            )
        return collate_padded(values, placeholder)

    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """The array's shape; nothing for text."""
        if is_numpy(path):
            return stated_shape(path, self.name)
        with path.open("rb") as file:
            if not file.read(1):
                raise ValueError("it is empty")
        return ()


def window_start(length: int, wanted: int, crop: str, training: bool) -> int:
    """Where a window of so many steps starts, see the option ``crop``."""
    room = max(0, length - wanted)
    if crop == "random":
        return int(torch.randint(room + 1, ())) if training else room // 2
    return room if crop == "end" else 0


def read_text(path: Path) -> Array:
    """Lines of numbers as `(T, C)` float32, nan in empty fields; a first line with a word in it is left out.

    Raises:
        ValueError: If it holds something else.
    """
    separator = _SEPARATORS.get(path.suffix)
    if separator is None:
        raise ValueError(f"its name ends in none of .npy, .npz, .csv, .tsv and .txt, but in {path.suffix!r}")
    lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()] or [""]
    spaces = path.suffix == ".txt"
    if not all(map(_is_number, lines[0].split(None if spaces else separator))):
        lines = lines[1:]
    if not any(map(str.strip, lines)):
        raise ValueError("it holds no numbers")
    if not spaces:
        lines = [_without_empty_fields(line, separator) for line in lines]
    return np.loadtxt(lines, np.float32, comments=None, delimiter=None if spaces else separator, ndmin=2)


def _without_empty_fields(line: str, separator: str) -> str:
    fields = [field.strip() for field in line.split(separator)]
    return line if _GAPS.isdisjoint(fields) else separator.join("nan" if field in _GAPS else field for field in fields)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return field.strip() in _GAPS
    return True
