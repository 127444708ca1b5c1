"""Figures of predictions, parts and data: one function each, data in, a figure of plotly as plain data out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_lightning.data.table import Array
from hybrid_lightning.report.runs import Run
from hybrid_lightning.report.traces import (
    COLORS,
    GRAY,
    Figure,
    bars,
    color_at,
    colors_of,
    digits,
    figure,
    line,
    named_axis,
    plain,
)

_BLUES = [[0, "rgba(78,121,212,0)"], [1, "rgba(78,121,212,0.95)"]]  # on the color of the page, be it light or dark
_MOST_NUMBERED = 15  # classes, beyond which the cells of a confusion matrix are too small for numbers
_MOST_CLASSES = 40
_LONGEST_LABEL = 32  # characters, so that the number after them is seen
_SHARE_RANGE = [-0.02, 1.02]  # so that a line at 0 or 1 is seen whole
_SCORES = (("alone", "the part alone", 1), ("without", "all but the part", 0.4))


def part_scores(run: Run) -> Figure:
    """Bars: the score of each part alone, and what is left without it."""
    known = [part for part in run.record.parts if part["alone"] is not None or part["without"] is not None]
    parts = known[:_MOST_CLASSES]
    names = [part["part"] for part in parts]
    colors = colors_of(run.parts)
    own = [colors.get(name, GRAY) for name in names]
    wholes = [part["whole"] for part in parts if part["whole"] is not None]
    heights = [0.0, *wholes]
    traces = []
    for key, label, opacity in _SCORES:
        values = [part[key] for part in parts]
        if any(value is not None for value in values):
            traces.append(bars(label, values, color=own, opacity=opacity))
            heights += [value for value in values if value is not None]
    shapes = [_level(wholes[0], f"all parts: {wholes[0]:.3f}")] if wholes else []
    # room for the words on the line of all parts
    yaxis = {"range": [min(heights), min(heights) + 1.08 * (max(heights) - min(heights))]} if any(heights) else {}
    return figure(traces, "", "score", barmode="group", shapes=shapes, xaxis=named_axis(names), yaxis=yaxis)


def _level(height: float, text: str) -> dict[str, Any]:
    """A dashed line across a figure."""
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": height,
        "y1": height,
        "line": {"color": GRAY, "dash": "dash", "width": 1.5},
        "label": {"text": text, "textposition": "start"},
    }


def _diagonal(low: float, high: float) -> dict[str, Any]:
    """A dashed line of equal values."""
    return {
        "type": "line",
        "x0": low,
        "y0": low,
        "x1": high,
        "y1": high,
        "line": {"color": GRAY, "dash": "dash", "width": 1},
        "layer": "below",
    }


def confusion(found: Mapping[str, Any]) -> Figure:
    """Counts as numbers; colors by the share of each true class."""
    counts = np.asarray(found["counts"], dtype=float)
    rows_of_class = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(rows_of_class, 1)
    names = [plain(name) for name in found["names"]]
    trace = {
        "type": "heatmap",
        "z": np.round(shares, 3).tolist(),
        "zmin": 0,
        "zmax": 1,
        "colorscale": _BLUES,
        "showscale": False,
        "xgap": 2,  # pixels
        "ygap": 2,
        "hovertext": _cells_in_words(names, counts, shares),
        "hoverinfo": "text",
    }
    if len(names) <= _MOST_NUMBERED:
        trace["text"] = counts.astype(int).tolist()
        trace["texttemplate"] = "%{text}"
    xaxis = {**named_axis(found["names"], 16), "showgrid": False}
    # the first class stands at the top
    yaxis = {**xaxis, "autorange": "reversed"}
    height = max(360, 120 + 24 * len(names))
    return figure([trace], "predicted", "true", xaxis=xaxis, yaxis=yaxis, height=height)


def _cells_in_words(names: Sequence[str], counts: Array, shares: Array) -> list[list[str]]:
    """What each cell `(true, predicted)` says when it is pointed at."""
    found = []
    for row, true in enumerate(names):
        words = []
        for column, predicted in enumerate(names):
            count = int(counts[row, column])
            words.append(f"{true}<br>as {predicted}: {count:,} ({shares[row, column]:.0%})")
        found.append(words)
    return found


def ranking(curves: Sequence[Mapping[str, Any]], x: str, y: str, diagonal: bool) -> Figure:
    """ROC or precision–recall curves, with the area below each."""
    colors = colors_of([curve["name"] for curve in curves])
    traces = []
    for curve in curves:
        name = str(curve["name"])
        shown = name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…"
        traces.append(line(f"{shown} ({curve['value']:.3f})", curve["x"], curve["y"], colors[curve["name"]]))
    shapes = [_diagonal(0, 1)] if diagonal else []
    axis = {"range": _SHARE_RANGE}
    return figure(traces, x, y, xaxis=axis, yaxis=axis, shapes=shapes, showlegend=True)


def reliability(found: Mapping[str, Any]) -> Figure:
    """How often predictions of each confidence are right; the area of a point grows with its rows."""
    rows = np.asarray(found["rows"], dtype=float)
    most = max(rows.max(initial=0), 1)
    diameters = 6 + 20 * np.sqrt(rows / most)  # pixels
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": digits(np.asarray(found["confidence"])),
        "y": digits(np.asarray(found["correct"])),
        "text": [f"{count:,} rows" for count in found["rows"]],
        "marker": {"size": digits(diameters)},
        "line": {"color": COLORS[0]},
        "cliponaxis": False,  # a large point at the end of an axis is seen whole
        "hovertemplate": "said %{x:.0%}, right %{y:.0%}<br>%{text}<extra></extra>",
        "showlegend": False,
    }
    axis = {"range": _SHARE_RANGE, "tickformat": ".0%"}
    x = "probability that is said"
    y = "share that is right"
    return figure([trace], x, y, xaxis=axis, yaxis=axis, shapes=[_diagonal(0, 1)])


def scatter(columns: Sequence[Mapping[str, Any]]) -> Figure:
    """Predicted against true numbers."""
    traces = []
    ends: list[float] = []
    for index, column in enumerate(columns):
        trace = {
            "type": "scatter",
            "mode": "markers",
            "name": plain(column["name"]),
            "x": digits(np.asarray(column["true"])),
            "y": digits(np.asarray(column["predicted"])),
            "marker": {"color": color_at(index), "size": 5, "opacity": 0.6},
        }
        traces.append(trace)
        ends += column["true"]
        ends += column["predicted"]
    return figure(traces, "true", "predicted", shapes=[_diagonal(min(ends), max(ends))])


def residuals(columns: Sequence[Mapping[str, Any]]) -> Figure:
    """How often predictions are off by how much."""
    traces = []
    for index, column in enumerate(columns):
        off = np.asarray(column["predicted"]) - np.asarray(column["true"])
        counts, edges = np.histogram(off, bins=30)
        middles = (edges[1:] + edges[:-1]) / 2
        trace = bars(column["name"], digits(counts), color=color_at(index), opacity=0.75)
        trace["x"] = digits(middles)
        traces.append(trace)
    return figure(traces, "predicted minus true", "rows", barmode="overlay", bargap=0.03)


def classes(counts: Mapping[str, Sequence[int]], names: Sequence[str]) -> Figure:
    """Rows of each class in each split, as shares of the split; of many classes the first ones."""
    kept = names[:_MOST_CLASSES]
    traces = []
    for index, (split, own) in enumerate(counts.items()):
        rows = sum(own)
        if not rows or not kept:  # without predictions, nobody has told what the classes are called
            continue
        padding = [0] * len(kept)  # for classes that a split lacks
        filled = [*own, *padding][: len(kept)]
        shares = digits(np.asarray(filled, dtype=float) / rows)
        trace = bars(split, shares, color=color_at(index))
        trace["text"] = [f"{count:,}" for count in filled]
        traces.append(trace)
    xaxis = named_axis(kept)
    yaxis = {"tickformat": ".0%"}
    return figure(traces, "", "share of the split", xaxis=xaxis, yaxis=yaxis, barmode="group")
