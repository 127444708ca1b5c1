"""What all figures are made of: traces, axes and colors of plotly as plain data."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import printable
from hybrid_lightning.report.curves import spread

Figure = dict[str, Any]
COLORS = ("#4e79d4", "#f28e2b", "#2fa87a", "#e15759", "#9d6bd0", "#17a2b8", "#d9a400", "#a0725c", "#e377a8", "#7a8b99")
"""Told apart on white and on black, also by most who see few colors."""
GRAY = "#8a929c"
_LONGEST = 40  # characters of a name
_FEWEST_POINTS = 40


def plain(text: Any, longest: int = _LONGEST) -> str:
    """A text of the data for plotly, which takes ``<b>`` and its like for markup."""
    shown = printable(str(text)).replace("\n", " ")
    if len(shown) > longest:
        shown = f"{shown[: longest - 1]}…"
    return html.escape(shown, quote=False)


def named_axis(names: Sequence[str], longest: int = 22) -> dict[str, Any]:
    """An axis with a name at 0, 1, ...; names as categories would be one where they are cut to the same text."""
    return {
        "tickmode": "array",
        "tickvals": [*range(len(names))],
        "ticktext": [plain(name, longest) for name in names],
        "zeroline": False,
    }


def color_at(index: int) -> str:
    """The color of a line or bar by its place."""
    return COLORS[index % len(COLORS)]


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Part or run → its color, the same in all figures."""
    return {name: color_at(index) for index, name in enumerate(names)}


def figure(traces: Sequence[Mapping[str, Any]], x: str, y: str, **layout: Any) -> Figure:
    """A figure with titles of its axes; `layout` has further settings of ``xaxis``, ``yaxis`` and others."""
    xaxis = {"title": {"text": x}, **layout.pop("xaxis", {})}
    yaxis = {"title": {"text": y}, **layout.pop("yaxis", {})}
    return {"data": list(traces), "layout": {"xaxis": xaxis, "yaxis": yaxis, **layout}}


def line(name: str, x: Any, y: Any, color: str, points: int = 1000, **options: Any) -> dict[str, Any]:
    """A line of at most so many points."""
    chosen = spread(len(x), max(points, _FEWEST_POINTS))
    style = {"color": color, **options.pop("line", {})}
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": digits(np.asarray(x)[chosen]),
        "y": digits(np.asarray(y)[chosen]),
        "line": style,
        **options,
    }


def bars(name: str, values: Sequence[Any], **marker: Any) -> dict[str, Any]:
    """Bars at 0, 1, ..."""
    return {
        "type": "bar",
        "name": plain(name),
        "x": [*range(len(values))],
        "y": list(values),
        "marker": marker,
    }


def digits(values: Array) -> list[Any]:
    """Numbers with five digits, which is more than a screen has."""
    if values.dtype.kind in "iu":
        return [int(value) for value in values]
    return [float(f"{value:.5g}") for value in values]
