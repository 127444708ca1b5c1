"""Entries over a manifest of a few rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas

from hybrid_lightning.data.inputs import parse_inputs
from hybrid_lightning.data.inputs.base import Input
from hybrid_lightning.data.table import Table


def table(folder: Path, columns: dict[str, list[Any]]) -> Table:
    """A manifest that was written and read; None is an empty cell."""
    path = folder / "manifest.csv"
    pandas.DataFrame(columns).to_csv(path, index=False)
    return Table.read(path)


def bound(folder: Path, columns: dict[str, list[Any]], fit_rows: list[int] | None = None, **given: Any) -> Input:
    """The entry ``x`` over a manifest, fitted on the rows `fit_rows`, by default all."""
    manifest = table(folder, columns)
    entry = parse_inputs({"x": given})["x"]
    entry.folder = str(folder)
    rows = np.arange(len(manifest)) if fit_rows is None else np.array(fit_rows)
    entry.statistics = entry.fit(manifest, rows)
    entry.bind(manifest)
    return entry
