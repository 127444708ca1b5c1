"""Figures of predictions, parts and data: one function each, data in, a figure of plotly as plain data out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_lightning.report.figures import COLORS, GRAY, Figure, colors_of, digits, figure, line, named_axis, plain
from hybrid_lightning.report.runs import Run

_BLUES = [[0, "rgba(78,121,212,0)"], [1, "rgba(78,121,212,0.95)"]]  # on the color of the page, be it light or dark
_MOST_NUMBERED = 15  # classes, beyond which the cells of a confusion matrix are too small for numbers
_MOST_CLASSES = 40


def part_scores(run: Run) -> Figure:
    """Bars: the score of each part alone, and what is left without it."""
    parts = [part for part in run.record.parts if part["alone"] is not None or part["without"] is not None]
    parts = parts[:_MOST_CLASSES]
    colors = colors_of(run.parts)
    own = [colors.get(part["part"], GRAY) for part in parts]
    traces = []
    for key, name, opacity in (("alone", "the part alone", 1), ("without", "all but the part", 0.4)):
        values = [part[key] for part in parts]
        if any(value is not None for value in values):
            traces.append(_bars(name, values, color=own, opacity=opacity))
    wholes = [part["whole"] for part in parts if part["whole"] is not None]
    shapes = [_level(wholes[0], f"all parts: {wholes[0]:.3f}")] if wholes else []
    xaxis = named_axis([part["part"] for part in parts])
    return figure(traces, "", "score", barmode="group", shapes=shapes, xaxis=xaxis)


def _bars(name: str, values: Sequence[Any], **marker: Any) -> dict[str, Any]:
    """Bars at 0, 1, ..."""
    return {"type": "bar", "name": plain(name), "x": [*range(len(values))], "y": list(values), "marker": marker}


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
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [plain(name) for name in found["names"]]
    said = []
    for true, of_class, of_row in zip(names, counts, shares, strict=True):
        cells = zip(names, of_class, of_row, strict=True)
        said.append([f"{true}<br>as {name}: {int(count):,} ({share:.0%})" for name, count, share in cells])
    trace = {
        "type": "heatmap",
        "z": np.round(shares, 3).tolist(),
        "zmin": 0,
        "zmax": 1,
        "colorscale": _BLUES,
        "showscale": False,
        "xgap": 2,  # pixels
        "ygap": 2,
        "hovertext": said,
        "hoverinfo": "text",
    }
    if len(names) <= _MOST_NUMBERED:
        trace["text"] = [[int(count) for count in row] for row in counts]
        trace["texttemplate"] = "%{text}"
    xaxis = {**named_axis(found["names"], 16), "showgrid": False}
    # the first class stands at the top
    yaxis = {**xaxis, "autorange": "reversed"}
    height = max(360, 120 + 24 * len(names))
    return figure([trace], "predicted", "true", xaxis=xaxis, yaxis=yaxis, height=height)


def ranking(curves: Sequence[Mapping[str, Any]], x: str, y: str, diagonal: bool) -> Figure:
    """ROC or precision–recall curves, with the area below each."""
    colors = colors_of([curve["name"] for curve in curves])
    traces = []
    for curve in curves:
        label = f"{curve['name']} ({curve['value']:.3f})"
        traces.append(line(label, curve["x"], curve["y"], colors[curve["name"]]))
    shapes = [_diagonal(0, 1)] if diagonal else []
    axis = {"range": [-0.02, 1.02]}
    return figure(traces, x, y, xaxis=axis, yaxis=axis, shapes=shapes, showlegend=True)


def reliability(found: Mapping[str, Any]) -> Figure:
    """How often predictions of each confidence are right; the area of a point grows with its rows."""
    rows = np.asarray(found["rows"], dtype=float)
    trace = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": digits(np.asarray(found["confidence"])),
        "y": digits(np.asarray(found["correct"])),
        "text": [f"{count:,} rows" for count in found["rows"]],
        "marker": {"size": digits(6 + 20 * np.sqrt(rows / max(rows.max(initial=0), 1)))},
        "line": {"color": COLORS[0]},
        "hovertemplate": "said %{x:.0%}, right %{y:.0%}<br>%{text}<extra></extra>",
        "showlegend": False,
    }
    axis = {"range": [-0.02, 1.02], "tickformat": ".0%"}
    x, y = "probability that is said", "share that is right"
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
            "marker": {"color": COLORS[index % len(COLORS)], "size": 5, "opacity": 0.6},
        }
        traces.append(trace)
        ends += [*column["true"], *column["predicted"]]
    return figure(traces, "true", "predicted", shapes=[_diagonal(min(ends), max(ends))])


def residuals(columns: Sequence[Mapping[str, Any]]) -> Figure:
    """How often predictions are off by how much."""
    traces = []
    for index, column in enumerate(columns):
        off = np.asarray(column["predicted"]) - np.asarray(column["true"])
        counts, edges = np.histogram(off, bins=30)
        middles = (edges[1:] + edges[:-1]) / 2
        bars = _bars(column["name"], digits(counts), color=COLORS[index % len(COLORS)], opacity=0.75)
        traces.append({**bars, "x": digits(middles)})
    return figure(traces, "predicted minus true", "rows", barmode="overlay", bargap=0.03)


def classes(counts: Mapping[str, Sequence[int]], names: Sequence[str]) -> Figure:
    """Rows of each class in each split, as shares of the split; of many classes the first ones."""
    kept = names[:_MOST_CLASSES]
    traces = []
    for index, (split, own) in enumerate(counts.items()):
        if not sum(own):
            continue
        padding = [0] * len(kept)  # for classes that a split lacks
        filled = [*own, *padding][: len(kept)]
        shares = digits(np.asarray(filled, dtype=float) / sum(own))
        bars = _bars(split, shares, color=COLORS[index % len(COLORS)])
        traces.append({**bars, "text": [f"{count:,}" for count in filled]})
    xaxis = named_axis(kept)
    yaxis = {"tickformat": ".0%"}
    return figure(traces, "", "share of the split", xaxis=xaxis, yaxis=yaxis, barmode="group")
