"""Series of different lengths: a file per sample → steps with a mask, or channels of one length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.inputs.base import Value, check_count, check_name, collate_padded
from hybrid_lightning.data.inputs.numpy_files import NumpyInput, is_numpy, read_array, stated_shape, without_gaps
from hybrid_lightning.data.inputs.series_text import read_text
from hybrid_lightning.data.rounding import as_float32
from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import ConfigError, check_choice


class SeriesInput(NumpyInput):
    """A series per sample: ``.npy`` or ``.npz`` `(T,)` or `(T, C)`, or text with a step a line, with or without names.

    Each channel is standardized with mean and standard deviation over the steps of the training series; of more than
    1000 series, of 1000 at equal distances in the manifest. A channel that is constant there is only centered.

    Args:
        series: Name of the column of paths. Text is separated by commas (``.csv``), tabs (``.tsv``) or spaces
            (``.txt``); empty lines, and lines before the first that begin with #, are left out. NA is an empty field.
        length: Most steps of a series, of which the first are kept. None keeps all.
        layout: ``steps``: a dict for ``SequenceTransformer``, ``values`` `(B, T, C)` padded with 0 at the end to the
            longest of the batch, and ``mask`` `(B, T)` bool, False there. ``channels``: a tensor for
            ``ResidualConv1d``, `(B, C, length)`, padded with 0 at the end.
        standardize: Whether to standardize.
        header: Whether the first line of a text names the channels. None decides by the line: words are names, and so
            are 0, 1, ... above numbers with decimals, as pandas writes them; where they may be values it is an error.
            Under a header whose first name is empty, a column 0, 1, ... is pandas's index, and left out.
        name: Which array of ``.npz`` files; None if they hold one.
        gaps: What nan, and an empty field of text, becomes: ``refuse`` stops with an error, ``zero`` makes it 0 after
            standardizing, which is the mean.
        train: Transforms of each training sample, `(T, C)` or `(C, length)`, see `make_steps`.
        eval: Transforms of each sample otherwise.
    """

    def __init__(
        self,
        key: str,
        series: Any,
        length: Any = None,
        layout: Any = "steps",
        standardize: Any = True,
        header: Any = None,
        name: Any = None,
        gaps: Any = "refuse",
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, check_name(series, "series"), name, gaps, train, eval)
        self.length = None if length is None else check_count(length, "length")
        self.layout = check_choice(layout, "layout", ("steps", "channels"))
        self.standardize = check_choice(standardize, "standardize", (False, True))
        self.is_fitted = True  # False in the checks before a run
        self.header = check_choice(header, "header", (None, False, True))
        if self.layout == "channels" and self.length is None:
            raise ConfigError("'layout: channels' needs it; write such as 'length: 512'.", "length")

    @property
    def is_standardized(self) -> bool:
        """As the option says."""
        return bool(self.standardize)

    def steps(self, path: Path) -> Array:
        """`(T, C)` with gaps as nan, in float64 where float32 would lose something."""
        steps = read_array(path, self.name) if is_numpy(path) else read_text(path, self.header).steps
        if steps.ndim not in (1, 2):
            raise ValueError(f"its shape {steps.shape} is neither (T,) nor (T, C)")
        without_gaps(steps, self.gaps)  # only to refuse: gaps become 0 after standardizing
        return steps if steps.ndim == 2 else steps[:, None]

    def load(self, path: Path, training: bool) -> Tensor:
        """`(T, C)`, or `(C, length)`."""
        steps = self.steps(path)
        if self.standardize and self.is_fitted:
            mean = np.asarray(self.statistics["mean"])
            std = np.asarray(self.statistics["std"])
            if len(mean) != steps.shape[1]:
                raise ValueError(f"it has {steps.shape[1]} channels, and the training series have {len(mean)}")
            steps = (steps - mean) / std
        steps = without_gaps(steps, "zero")
        # what float32 would lose before standardizing is not lost after it
        is_final = self.is_fitted or not self.standardize
        value = torch.from_numpy(as_float32(steps) if is_final else steps).float()
        value = value[: self.length]
        if self.layout == "channels":
            assert self.length is not None
            missing = self.length - len(value)
            value = functional.pad(value.T, (0, missing))
        return value

    def read(self, row: int, training: bool) -> Value:
        """A tensor `(C, length)`, or ``values`` `(T, C)` and ``mask`` `(T,)`."""
        value = super().read(row, training)
        assert isinstance(value, Tensor)
        if self.layout == "channels":
            return value
        mask = torch.ones(len(value), dtype=torch.bool)
        return {"values": value, "mask": mask}

    def remarks(self, path: Path, value: Value) -> list[str]:
        """Lines that are left out, beside what is odd of any file."""
        remarks = super().remarks(path, value)
        if not is_numpy(path):
            text = read_text(path, self.header)
            if text.header and self.header is None:
                shown = repr(text.header[:60])
                remarks.append(f"begin with a line that is not a step, such as {shown}, which 'header: true' confirms")
            if text.has_index:
                remarks.append("begin with a column that counts the steps, and is left out")
        return remarks

    def collate(self, values: Sequence[Value | None], placeholder: Value) -> Value:
        """Pads steps to the longest of the batch."""
        if self.layout == "channels":
            return super().collate(values, placeholder)
        known = [value for value in values if isinstance(value, dict)]
        channels = {value["values"].shape[1] for value in known}
        if len(channels) > 1:
            raise ConfigError(
                f"series of one batch have {sorted(channels)} channels; give them equal ones.", self.where
            )
        return collate_padded(values, placeholder, {})

    def stated_shape(self, path: Path) -> tuple[int, ...]:
        """The array's shape; nothing for text."""
        if is_numpy(path):
            return stated_shape(path, self.name)
        with path.open("rb") as file:
            if not file.read(1):
                raise ValueError("it is empty")
        return ()
