"""What trained when: from a run to the steps of its stages, and the figure of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hybrid_lightning.report.runs import Run
from hybrid_lightning.report.traces import GRAY, Figure, colors_of, figure, named_axis

_MOST_STAGES = 40
_ROW = 26  # pixels of a bar and the gap below it


class Span(NamedTuple):
    """A stage of a part that trained; the stage has no name where the part has only one."""

    stage: str
    start: int  # the first step
    end: int  # after the last one


def unfreezings(run: Run) -> list[tuple[str, int]]:
    """Part and step of each first unfreezing after the start."""
    found = []
    for part, own in spans(run).items():
        if own and own[0].start > 0:
            found.append((part, own[0].start))
    return found


def spans(run: Run) -> dict[str, list[Span]]:
    """Part → its stages that trained, from when on; of folders without a record by the log, per part."""
    found = _recorded_spans(run)
    if any(found.values()):
        return found
    return found | _logged_spans(run)


def _recorded_spans(run: Run) -> dict[str, list[Span]]:
    """Those of the record, the first to train first."""
    end = run.last_step + 1
    found = {}
    for known in run.record.parts[: len(run.parts)]:
        own = []
        for stage in known["stages"]:
            start = stage["start"]
            if start is not None:
                own.append(Span(stage["stage"], start, max(end, start)))
        found[known["part"]] = sorted(own, key=lambda span: span.start)
    return found


def _logged_spans(run: Run) -> dict[str, list[Span]]:
    """Those of the log, whose parts are not told apart by stage."""
    logged = run.with_prefix("trainable/")
    found: dict[str, list[Span]] = {}
    for part in run.parts:
        if part not in logged:
            continue
        steps = logged[part].steps
        trains = steps[logged[part].values > 0]
        found[part] = []
        if len(trains):
            # the log begins with its first interval
            start = 0 if trains[0] == steps[0] else int(trains[0])
            found[part].append(Span("", start, run.last_step + 1))
    return found


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
            shown = own[:_MOST_STAGES] if len(runs) == 1 else own[:1]
            for span in reversed(shown):
                bars.append(_bar(len(labels), span, colors.get(part, GRAY)))
                stage = f" · {span.stage}" if len(shown) > 1 else ""
                labels.append(f"{prefix}{part}{stage}")
    end = max(run.last_step + 1 for run in runs)
    xaxis = {"range": [0, end]}
    yaxis = {**named_axis(labels, 32), "range": [-0.6, len(labels) - 0.4], "showgrid": False}
    height = 110 + _ROW * len(labels)
    return figure(bars, "optimizer step", "", xaxis=xaxis, yaxis=yaxis, height=height, barmode="overlay")


def _bar(place: int, span: Span, color: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "y": [place],
        "base": [span.start],
        "x": [span.end - span.start],
        "width": 0.62,
        "marker": {"color": color},
        "hovertext": f"trains from step {span.start} on",
        "hoverinfo": "text",
        "showlegend": False,
    }
