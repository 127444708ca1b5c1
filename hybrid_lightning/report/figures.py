"""Figures of training: one function each, data in, a figure of plotly as plain data out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hybrid_lightning.report.runs import Run, Series
from hybrid_lightning.report.timeline import unfreezings
from hybrid_lightning.report.traces import COLORS, GRAY, Figure, color_at, colors_of, figure, line, plain

_POINTS = 8000  # of all lines of a figure
_MOST_LINES = 40
_FEW = 30  # values, which are told apart by dots
_DOTTED = {"mode": "lines+markers"}
_DASHES = ("solid", "dash", "dot", "dashdot")
_STEP = "optimizer step"
_LOSSES = (("train/loss", "training", "dot"), ("val/loss", "validation", "solid"))


def marks(run: Run) -> Figure:
    """Dashed lines where parts unfreeze, as settings of a layout."""
    colors = colors_of(run.parts)
    shapes = [_mark(part, step, colors.get(part, GRAY)) for part, step in unfreezings(run)]
    return {"shapes": shapes[:_MOST_LINES]}


def _mark(part: str, step: int, color: str) -> dict[str, Any]:
    """A dashed line at a step, with the name of a part."""
    return {
        "type": "line",
        "x0": step,
        "x1": step,
        "yref": "paper",  # from the bottom to the top, whatever the values
        "y0": 0,
        "y1": 1,
        "line": {"color": color, "dash": "dash", "width": 1.5},
        "label": {
            "text": plain(part),
            "textposition": "end",
            "textangle": -90,
            "xanchor": "right",
            "yanchor": "top",
            "padding": 0,  # any would move the name onto the line
        },
    }


def losses(runs: Sequence[Run]) -> Figure:
    """Training and validation losses; of several runs each in its color, dotted for training."""
    if len(runs) == 1:
        return figure(_own_losses(runs[0]), _STEP, "loss", **marks(runs[0]))
    colors = colors_of([run.title for run in runs])
    points = _POINTS // (2 * len(runs))
    traces = []
    for run in runs:
        for key, name, dash in _LOSSES:
            own = run.series.get(key)
            if own is not None:
                label = f"{run.title}, {name}"
                style = {"mode": _loss_mode(own), "line": {"dash": dash}}
                traces.append(line(label, own.steps, own.values, colors[run.title], points, **style))
    return figure(traces, _STEP, "loss")


def _own_losses(run: Run) -> list[dict[str, Any]]:
    """The two losses of a run, each in a color of its own."""
    traces = []
    for number, (key, name, _) in enumerate(_LOSSES):
        own = run.series.get(key)
        if own is not None:
            mode = _loss_mode(own)
            traces.append(line(name, own.steps, own.values, COLORS[number], _POINTS // 2, mode=mode))
    return traces


def _loss_mode(series: Series) -> str:
    return "lines+markers" if len(series.steps) < _FEW else "lines"


def metrics(run: Run) -> Figure:
    """The validation metrics of a run, the main one first; those on another scale are a click on the legend away."""
    found = run.with_prefix("val/")
    metrics_alone = [name for name in found if "loss" not in name and "/" not in name]
    names = sorted(metrics_alone, key=lambda name: name != run.main)
    traces = []
    for index, name in enumerate(names[:_MOST_LINES]):
        own = found[name]
        is_shown = _is_share(own) == _is_share(found[names[0]])
        trace = line(name, own.steps, own.values, color_at(index), _POINTS // len(names), **_DOTTED)
        trace["visible"] = True if is_shown else "legendonly"
        traces.append(trace)
    return figure(traces, _STEP, "validation", **marks(run))


def _is_share(series: Series) -> bool:
    return bool(series.values.min() >= 0 and series.values.max() <= 1)


def main_metrics(runs: Sequence[Run]) -> Figure:
    """The main metric of each of several runs."""
    colors = colors_of([run.title for run in runs])
    points = _POINTS // len(runs)
    traces = []
    for run in runs:
        own = run.series.get(f"val/{run.main}")
        if own is not None:
            traces.append(line(run.title, own.steps, own.values, colors[run.title], points, **_DOTTED))
    names = {run.main for run in runs}
    label = plain(names.pop()) if len(names) == 1 else "main metric"
    return figure(traces, _STEP, label)


def rates(run: Run) -> Figure:
    """The learning rate of each group, those without weight decay only where they differ."""
    colors = colors_of(run.parts)
    kept = _rates_that_differ(run)
    traces = []
    seen: dict[str, int] = {}
    for name, series in list(kept.items())[:_MOST_LINES]:
        part = name.partition(".")[0].partition("-no_decay")[0]
        # stages of a part are told apart by their dashes
        dash = _DASHES[seen.get(part, 0) % len(_DASHES)]
        seen[part] = seen.get(part, 0) + 1
        color = colors.get(part, GRAY)
        traces.append(line(name, series.steps, series.values, color, _POINTS // len(kept), line={"dash": dash}))
    return figure(traces, _STEP, "learning rate", yaxis=_logarithmic(traces), **marks(run))


def _rates_that_differ(run: Run) -> dict[str, Series]:
    """Group → its rates, without the groups that have those of their twin with weight decay."""
    found = run.with_prefix("lr/")
    kept = {}
    for name, series in found.items():
        twin = found.get(name.removesuffix("-no_decay").removesuffix("/no_decay"))
        is_same = twin is not None and twin is not series and np.array_equal(twin.values, series.values)
        if not is_same:
            kept[name] = series
    return kept


def _logarithmic(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A logarithmic axis, unless it would hide values that are 0."""
    axis: dict[str, Any] = {"exponentformat": "power"}
    lowest = [min(trace["y"]) for trace in traces if trace["y"]]
    if lowest and min(lowest) > 0:
        axis |= {"type": "log", "dtick": "D2"}
    return axis


def gradient_norms(run: Run) -> Figure:
    """Norms per part before clipping, and dotted after it."""
    colors = {**colors_of(run.parts), "total": GRAY}
    before = run.with_prefix("grad_norm/")
    after = run.with_prefix("grad_norm_clipped/")
    names = [name for name in before if "." not in name]
    names = names[: _MOST_LINES // 2]
    traces = []
    for name in names:
        color = colors.get(name, GRAY)
        traces += _norms(name, before[name], color, "solid", len(names))
        clipped = after.get(name)
        if clipped is not None and not np.array_equal(clipped.values, before[name].values):
            traces += _norms(f"{name}, clipped", clipped, color, "dot", len(names))
    return figure(traces, _STEP, "norm of the gradient", yaxis=_logarithmic(traces), **marks(run))


def _norms(label: str, series: Series, color: str, dash: str, parts: int) -> list[dict[str, Any]]:
    """A line without the zeros of a frozen part, which a logarithmic axis has no place for; none if all are."""
    moving = series.values > 0
    if not moving.any():
        return []
    steps = series.steps[moving]
    values = series.values[moving]
    return [line(label, steps, values, color, _POINTS // (2 * parts), line={"dash": dash})]


def per_part(run: Run, prefix: str, y: str) -> Figure:
    """A logged value of each part, such as its drift."""
    colors = {**colors_of(run.parts), "total": GRAY}
    found = run.with_prefix(prefix)
    names = [name for name in found if "." not in name]
    traces = []
    for name in names[:_MOST_LINES]:
        series = found[name]
        color = colors.get(name, GRAY)
        traces.append(line(name, series.steps, series.values, color, _POINTS // len(names)))
    # shares as small as 0.0002, which plotly would write as 200μ
    return figure(traces, _STEP, y, showlegend=True, yaxis={"tickformat": "~g"}, **marks(run))
