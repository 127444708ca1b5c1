"""One function per figure: data in, a figure of plotly as plain data out."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import printable
from hybrid_lightning.report.curves import spread
from hybrid_lightning.report.runs import Run, Series

Figure = dict[str, Any]
COLORS = ("#4e79d4", "#f28e2b", "#2fa87a", "#e15759", "#9d6bd0", "#17a2b8", "#d9a400", "#a0725c", "#e377a8", "#7a8b99")
"""Told apart on white and on black, also by most who see few colors."""
GRAY = "#8a929c"
_POINTS = 8000  # of all lines of a figure
_FEWEST_POINTS = 40
_MOST_LINES = 40
_LONGEST = 40  # characters of a name
_FEW = 30  # values, which are told apart by dots
_DOTTED = {"mode": "lines+markers"}


def plain(text: Any, longest: int = _LONGEST) -> str:
    """A text of the data for plotly, which takes ``<b>`` and its like for markup."""
    shown = printable(str(text)).replace("\n", " ")
    shown = shown if len(shown) <= longest else f"{shown[: longest - 1]}…"
    return html.escape(shown, quote=False)


def named_axis(names: Sequence[str], longest: int = 22) -> dict[str, Any]:
    """An axis with a name at 0, 1, ...; names as categories would be one where they are cut to the same text."""
    shown = [plain(name, longest) for name in names]
    return {"tickmode": "array", "tickvals": [*range(len(names))], "ticktext": shown, "zeroline": False}


def colors_of(names: Sequence[str]) -> dict[str, str]:
    """Part or run → its color, the same in all figures."""
    return {name: COLORS[index % len(COLORS)] for index, name in enumerate(names)}


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


def digits(values: Array) -> list[Any]:
    """Numbers with five digits, which is more than a screen has."""
    if values.dtype.kind in "iu":
        return [int(value) for value in values]
    return [float(f"{value:.5g}") for value in values]


def marks(run: Run) -> Figure:
    """Dashed lines where parts unfreeze, as settings of a layout."""
    colors = colors_of(run.parts)
    shapes = []
    for part, step in unfreezings(run):
        mark = {
            "type": "line",
            "x0": step,
            "x1": step,
            "yref": "paper",  # from the bottom to the top, whatever the values
            "y0": 0,
            "y1": 1,
            "line": {"color": colors.get(part, GRAY), "dash": "dash", "width": 1.5},
            "label": {
                "text": plain(part),
                "textposition": "end",
                "textangle": -90,
                "xanchor": "right",
                "yanchor": "top",
            },
        }
        shapes.append(mark)
    return {"shapes": shapes[:_MOST_LINES]}


def unfreezings(run: Run) -> list[tuple[str, int]]:
    """Part and step of each first unfreezing after the start."""
    found = {part: bars[0][1] for part, bars in spans(run).items() if bars and bars[0][1] > 0}
    return list(found.items())


def spans(run: Run) -> dict[str, list[tuple[str, int, int]]]:
    """Part → stage, first and last step of what trained; of folders without a record by the log, per part."""
    end = run.last_step + 1
    found: dict[str, list[tuple[str, int, int]]] = {}
    for known in run.record.parts[: len(run.parts)]:
        begun = [stage for stage in known["stages"] if stage["start"] is not None]
        own = [(stage["stage"], stage["start"], max(end, stage["start"])) for stage in begun]
        found[known["part"]] = sorted(own, key=lambda bar: bar[1])
    if any(found.values()):
        return found
    logged = run.with_prefix("trainable/")
    for part in run.parts:
        if part not in logged:
            continue
        steps = logged[part].steps
        trains = steps[logged[part].values > 0]
        found[part] = []
        if len(trains):
            # the log begins with its first interval
            start = 0 if trains[0] == steps[0] else int(trains[0])
            found[part].append(("", start, end))
    return found


def losses(runs: Sequence[Run]) -> Figure:
    """Training and validation losses; of several runs each in its color, dotted for training."""
    colors = colors_of([run.title for run in runs])
    traces = []
    for run in runs:
        for number, (key, name) in enumerate((("train/loss", "training"), ("val/loss", "validation"))):
            own = run.series.get(key)
            if own is None:
                continue
            mode = "lines+markers" if len(own.steps) < _FEW else "lines"
            points = _POINTS // (2 * len(runs))
            if len(runs) == 1:
                traces.append(line(name, own.steps, own.values, COLORS[number], points, mode=mode))
            else:
                style = {"dash": ("dot", "solid")[number]}
                label = f"{run.title}, {name}"
                traces.append(line(label, own.steps, own.values, colors[run.title], points, mode=mode, line=style))
    return figure(traces, "optimizer step", "loss", **(marks(runs[0]) if len(runs) == 1 else {}))


def metrics(run: Run) -> Figure:
    """The validation metrics of a run, the main one first; those on another scale are a click on the legend away."""
    found = {name: one for name, one in run.with_prefix("val/").items() if "loss" not in name and "/" not in name}
    names = sorted(found, key=lambda name: name != run.main)
    traces = []
    for index, name in enumerate(names[:_MOST_LINES]):
        own = found[name]
        is_shown = _is_share(own) == _is_share(found[names[0]])
        trace = line(name, own.steps, own.values, COLORS[index % len(COLORS)], _POINTS // len(names), **_DOTTED)
        traces.append({**trace, "visible": True if is_shown else "legendonly"})
    return figure(traces, "optimizer step", "validation", **marks(run))


def _is_share(series: Series) -> bool:
    return bool(series.values.min() >= 0 and series.values.max() <= 1)


def main_metrics(runs: Sequence[Run]) -> Figure:
    """The main metric of each of several runs."""
    colors = colors_of([run.title for run in runs])
    traces = []
    for run in runs:
        own = run.series.get(f"val/{run.main}")
        if own is not None:
            points = _POINTS // len(runs)
            traces.append(line(run.title, own.steps, own.values, colors[run.title], points, **_DOTTED))
    names = {run.main for run in runs}
    return figure(traces, "optimizer step", plain(names.pop()) if len(names) == 1 else "main metric")


def timeline(runs: Sequence[Run]) -> Figure:
    """A bar for each stage from the step on from which it trained, in the color of its part."""
    bars: list[dict[str, Any]] = []
    labels: list[str] = []
    for run in reversed(runs):  # the axis goes upward, the page downward
        colors = colors_of(run.parts)
        prefix = f"{run.title} · " if len(runs) > 1 else ""
        for part, own in reversed(list(spans(run).items())):
            if not own:
                labels.append(f"{prefix}{part} (frozen)")
            shown = own[:_MOST_LINES] if len(runs) == 1 else own[:1]
            for stage, start, end in reversed(shown):
                bars.append(_bar(len(labels), start, end, colors.get(part, GRAY)))
                labels.append(f"{prefix}{part} · {stage}" if len(shown) > 1 else f"{prefix}{part}")
    end = max([run.last_step + 1 for run in runs])
    xaxis = {"range": [0, end]}
    yaxis = {**named_axis(labels, 32), "range": [-0.6, len(labels) - 0.4], "showgrid": False}
    height = 110 + 26 * len(labels)
    return figure(bars, "optimizer step", "", xaxis=xaxis, yaxis=yaxis, height=height, barmode="overlay")


def _bar(place: int, start: int, end: int, color: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "y": [place],
        "base": [start],
        "x": [end - start],
        "width": 0.62,
        "marker": {"color": color},
        "hovertext": f"trains from step {start} on",
        "hoverinfo": "text",
        "showlegend": False,
    }


def rates(run: Run) -> Figure:
    """The learning rate of each group, those without weight decay only where they differ."""
    found = run.with_prefix("lr/")
    colors = colors_of(run.parts)
    kept = {}
    for name, series in found.items():
        twin = found.get(name.removesuffix("-no_decay").removesuffix("/no_decay"))
        is_same = twin is not None and twin is not series and np.array_equal(twin.values, series.values)
        if not is_same:
            kept[name] = series
    traces = []
    seen: dict[str, int] = {}
    for name, series in list(kept.items())[:_MOST_LINES]:
        part = name.partition(".")[0].partition("-no_decay")[0]
        seen[part] = seen.get(part, 0) + 1
        # stages of a part are told apart by their dashes
        dash = ("solid", "dash", "dot", "dashdot")[(seen[part] - 1) % 4]
        color, points = colors.get(part, GRAY), _POINTS // len(kept)
        traces.append(line(name, series.steps, series.values, color, points, line={"dash": dash}))
    return figure(traces, "optimizer step", "learning rate", yaxis=_logarithmic(traces), **marks(run))


def _logarithmic(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A logarithmic axis, unless it would hide values that are 0."""
    values = [value for trace in traces for value in trace["y"]]
    is_positive = bool(values) and min(values) > 0
    return {"exponentformat": "power", **({"type": "log", "dtick": "D2"} if is_positive else {})}


def gradient_norms(run: Run) -> Figure:
    """Norms per part before clipping, and dotted after it."""
    colors = {**colors_of(run.parts), "total": GRAY}
    before = run.with_prefix("grad_norm/")
    after = run.with_prefix("grad_norm_clipped/")
    names = [name for name in before if "." not in name][: _MOST_LINES // 2]
    traces = []
    for name in names:
        color = colors.get(name, GRAY)
        traces += _norms(name, before[name], color, "solid", len(names))
        clipped = after.get(name)
        if clipped is not None and not np.array_equal(clipped.values, before[name].values):
            traces += _norms(f"{name}, clipped", clipped, color, "dot", len(names))
    return figure(traces, "optimizer step", "norm of the gradient", yaxis=_logarithmic(traces), **marks(run))


def _norms(label: str, series: Series, color: str, dash: str, parts: int) -> list[dict[str, Any]]:
    """A line without the zeros of a frozen part, which a logarithmic axis has no place for; none if all are."""
    moving = series.values > 0
    if not moving.any():
        return []
    points = _POINTS // (2 * parts)
    return [line(label, series.steps[moving], series.values[moving], color, points, line={"dash": dash})]


def per_part(run: Run, prefix: str, y: str) -> Figure:
    """A logged value of each part, such as its drift."""
    colors = {**colors_of(run.parts), "total": GRAY}
    found = {name: one for name, one in run.with_prefix(prefix).items() if "." not in name}
    traces = []
    for name, series in list(found.items())[:_MOST_LINES]:
        traces.append(line(name, series.steps, series.values, colors.get(name, GRAY), _POINTS // len(found)))
    return figure(traces, "optimizer step", y, showlegend=True, **marks(run))
