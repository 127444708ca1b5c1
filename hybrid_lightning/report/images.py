"""Figures of the report as images by matplotlib, for what cannot show those of plotly."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas

from hybrid_lightning.data.table import Array
from hybrid_lightning.report.traces import Figure

_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
_PIXELS = 100  # of an inch
_WIDTH = 760  # pixels
_HEIGHT = 420
_GROUP = 0.8  # of the distance between two groups of bars
_MOST_NAMES = 12  # in a legend, which would else cover the figure


def image(figure: Figure) -> Array:
    """A figure as pixels `(H, W, 3)`."""
    layout = figure["layout"]
    height = layout.get("height", _HEIGHT)
    canvas = Canvas((_WIDTH / _PIXELS, height / _PIXELS), dpi=_PIXELS, layout="constrained")
    agg: Any = FigureCanvasAgg(canvas)  # parts of it have no types
    axes = canvas.add_subplot()
    traces = [trace for trace in figure["data"] if trace.get("visible", True) is True]
    for place, trace in enumerate(traces):
        if trace["type"] == "heatmap":
            _heatmap(axes, trace)
        elif trace["type"] == "scatter":
            _line(axes, trace)
        else:
            _bars(axes, trace, place, len(traces) if layout.get("barmode") == "group" else 1)
    for shape in layout.get("shapes", ()):
        _shape(axes, shape)
    _lay_out(axes, layout)
    if 0 < len(axes.get_legend_handles_labels()[1]) <= _MOST_NAMES:
        axes.legend(fontsize="small")
    agg.draw()
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


def _text(text: str) -> str:
    """A text of plotly for matplotlib, which takes what stands between two dollars for a formula."""
    return html.unescape(text).replace("$", r"\$")


def _label(trace: Mapping[str, Any]) -> str:
    """The name in the legend; one that begins so has none."""
    is_named = trace.get("showlegend", True) and "name" in trace
    return _text(trace["name"]) if is_named else "_"


def _line(axes: Any, trace: Mapping[str, Any]) -> None:
    style = trace.get("line", {})
    marker = trace.get("marker", {})
    color = style.get("color", marker.get("color"))
    if "lines" in trace["mode"]:
        dash = _DASHES[style.get("dash", "solid")]
        axes.plot(trace["x"], trace["y"], dash, color=color, label=_label(trace))
    if "markers" in trace["mode"]:
        areas = np.square(marker.get("size", 5))
        label = "_" if "lines" in trace["mode"] else _label(trace)
        axes.scatter(
            trace["x"], trace["y"], areas, color=color, alpha=marker.get("opacity", 1), label=label, clip_on=False
        )


def _bars(axes: Any, trace: Mapping[str, Any], place: int, groups: int) -> None:
    """Bars, of several groups beside each other."""
    style = {"color": trace["marker"]["color"], "alpha": trace["marker"].get("opacity", 1), "label": _label(trace)}
    if trace.get("orientation") == "h":
        axes.barh(trace["y"], trace["x"], trace["width"], left=trace["base"], **style)
        return
    x = np.asarray(trace["x"], dtype=float)
    distance = float(np.diff(x).min()) if len(x) > 1 else 1.0
    width = _GROUP * distance / groups
    offset = (place - (groups - 1) / 2) * width
    heights = [np.nan if value is None else value for value in trace["y"]]
    axes.bar(x + offset, heights, width, **style)


def _heatmap(axes: Any, trace: Mapping[str, Any]) -> None:
    axes.imshow(trace["z"], cmap="Blues", vmin=trace["zmin"], vmax=trace["zmax"], aspect="auto")
    for row, texts in enumerate(trace.get("text", ())):
        for column, text in enumerate(texts):
            is_dark = trace["z"][row][column] > 0.6  # on which black is not read
            axes.text(column, row, text, ha="center", va="center", color="white" if is_dark else "black")


def _shape(axes: Any, shape: Mapping[str, Any]) -> None:
    """A dashed line between two points, or across the figure."""
    style = {"color": shape["line"]["color"], "linestyle": "--", "linewidth": shape["line"]["width"]}
    text = _text(shape.get("label", {}).get("text", ""))
    if shape.get("yref") == "paper":
        axes.axvline(shape["x0"], **style)
        axes.text(shape["x0"], 0.98, text, rotation=90, ha="right", va="top", transform=axes.get_xaxis_transform())
    elif shape.get("xref") == "paper":
        axes.axhline(shape["y0"], **style)
        axes.text(0.01, shape["y0"], text, va="bottom", transform=axes.get_yaxis_transform())
    else:
        axes.plot([shape["x0"], shape["x1"]], [shape["y0"], shape["y1"]], zorder=0, **style)


def _lay_out(axes: Any, layout: Mapping[str, Any]) -> None:
    """Titles, ticks, ranges and scales."""
    axes.set_title(_text(layout["title"]["text"]), loc="left")
    for side, axis in (("x", layout["xaxis"]), ("y", layout["yaxis"])):
        axes.set(**{f"{side}label": _text(axis["title"]["text"])})
        if axis.get("type") == "log":
            axes.set(**{f"{side}scale": "log"})
        if "ticktext" in axis:
            names: Sequence[str] = [_text(name) for name in axis["ticktext"]]
            axes.set(**{f"{side}ticks": axis["tickvals"], f"{side}ticklabels": names})
        if "range" in axis:
            axes.set(**{f"{side}lim": axis["range"]})
    if len(layout["xaxis"].get("ticktext", ())) > _MOST_NAMES:
        axes.tick_params("x", rotation=90)
