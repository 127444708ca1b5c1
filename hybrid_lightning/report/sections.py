"""The sections of a report: figures, tables or samples under a title and a caption."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hybrid_lightning.report import figures, row_figures, timeline
from hybrid_lightning.report.captions import CAPTIONS
from hybrid_lightning.report.curves import mean_curve
from hybrid_lightning.report.record import Record
from hybrid_lightning.report.runs import Run
from hybrid_lightning.report.traces import Figure

_ROC = ("false positive rate", "true positive rate")
_PRECISION_RECALL = ("recall", "precision")
_MOST_METRICS = 12
_MOST_DIFFERENCES = 60
MOST_PREDICTED = 6
"""Records whose predictions are shown; each may be as large as a page of its own."""


@dataclass
class Table:
    """Texts in rows and columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    holds_numbers: bool = True  # in all columns but the first


@dataclass
class Section:
    """A part of the page; its title and caption are those of `CAPTIONS`."""

    key: str
    figures: dict[str, Figure] = field(default_factory=dict)  # by the names that loggers know them by
    table: Table | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""  # shown as it is, folded
    title: str = ""
    caption: str = ""
    of_each: list["Section"] = field(default_factory=list)  # the same of several, each with a title

    @property
    def drawn(self) -> list[Figure]:
        """The figures that have something to draw, in the order of the page."""
        found = [figure for figure in self.figures.values() if figure["data"]]
        for one in self.of_each:
            found += one.drawn
        return found

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to see."""
        has_rows = self.table is not None and self.table.rows
        return not (has_rows or self.samples or self.text or self.of_each or self.drawn)


class Predicted(NamedTuple):
    """The record of some rows, and what they are called."""

    title: str
    record: Record


def sections(runs: Sequence[Run]) -> list[Section]:
    """Those that the runs have something for."""
    predicted = predicted_of(runs)[:MOST_PREDICTED]
    found = list(_of_all(runs))
    if len(runs) == 1:
        found.append(Section("parts", {"parts": row_figures.part_scores(runs[0])}, parts(runs[0])))
        found += _of_rows(predicted)
        found += _of_training(runs[0])
    else:
        found.append(Section("differences", table=differences(runs)))
        found += _of_rows(predicted)
    found = [section for section in found if not section.is_empty]
    of_rows = predicted[0].title if len(predicted) == 1 else "the rows named below"
    for section in found:
        section.title, caption = CAPTIONS[section.key]
        rows = rows_of(runs[0].record) if section.key == "parts" else of_rows
        section.caption = caption.replace("{rows}", rows)
    return found


def _of_all(runs: Sequence[Run]) -> Iterator[Section]:
    """What one run has, or several have side by side."""
    yield scores(runs)
    yield Section("evaluations", table=evaluations(runs))
    measured = figures.metrics(runs[0]) if len(runs) == 1 else figures.main_metrics(runs)
    yield Section("curves", {"losses": figures.losses(runs), "metrics": measured})
    yield Section("timeline", {"timeline": timeline.timeline(runs)})


def predicted_of(runs: Sequence[Run]) -> list[Predicted]:
    """What was predicted in each run, beside each other, and then on new tables."""
    found: list[Predicted] = []
    new: list[Predicted] = []
    for run in runs:
        of_run = f"{run.title}: " if len(runs) > 1 else ""
        if run.record.rows:
            found.append(Predicted(f"{of_run}{rows_of(run.record)}", run.record))
        new += [Predicted(f"{of_run}{one.title}, {rows_of(one.record)}", one.record) for one in run.evaluations]
    return found + new


def rows_of(record: Record) -> str:
    """Such as ``120 validation rows``, or ``validation rows`` where none were predicted."""
    split = {"val": "validation ", "test": "test "}.get(record.split, "")
    count = f"{record.rows:,} " if record.rows else ""
    return f"{count}{split}row{'' if record.rows == 1 else 's'}"


def _of_rows(predicted: Sequence[Predicted]) -> Iterator[Section]:
    """The pages of predicted rows; of several side by side, each under its title."""
    for key, build in _PAGES.items():
        built = [build(one.record) for one in predicted]
        if len(built) == 1:
            yield built[0]
            continue
        for one, section in zip(predicted, built, strict=True):
            section.title = one.title
            section.samples = _with_others(section.samples, one, predicted)
        together = _rankings(predicted) if key == "ranking" else {}
        yield Section(key, together, of_each=[section for section in built if not section.is_empty])


def _confusion(record: Record) -> Section:
    if not record.confusion["names"]:
        return Section("confusion")
    return Section("confusion", {"confusion": row_figures.confusion(record.confusion)})


def _ranking(record: Record) -> Section:
    roc = row_figures.ranking(record.roc, *_ROC, diagonal=True)
    precision_recall = row_figures.ranking(record.precision_recall, *_PRECISION_RECALL, diagonal=False)
    return Section("ranking", {"roc": roc, "precision_recall": precision_recall})


def _rankings(predicted: Sequence[Predicted]) -> dict[str, Figure]:
    """A curve for each of several records, the mean over its classes, in one figure of each kind."""
    found = {}
    for key, x, y in (("roc", *_ROC), ("precision_recall", *_PRECISION_RECALL)):
        means = []
        is_mean = False
        for one in predicted:
            curves = [curve for curve in getattr(one.record, key) if curve["x"]]
            is_mean = is_mean or len(curves) > 1
            if curves:
                means.append(mean_curve(one.title, curves))
        if len(means) > 1:
            found[key] = row_figures.ranking(means, x, f"{y}, mean over classes" if is_mean else y, key == "roc")
    return found


def _reliability(record: Record) -> Section:
    if not record.reliability["rows"]:
        return Section("reliability")
    return Section("reliability", {"reliability": row_figures.reliability(record.reliability)})


def _residuals(record: Record) -> Section:
    if not any(column["true"] for column in record.numbers):
        return Section("residuals")
    scatter = row_figures.scatter(record.numbers)
    return Section("residuals", {"scatter": scatter, "residuals": row_figures.residuals(record.numbers)})


_PAGES: dict[str, Callable[[Record], Section]] = {
    "confusion": _confusion,
    "ranking": _ranking,
    "reliability": _reliability,
    "residuals": _residuals,
    "samples": lambda record: Section("samples", samples=record.worst),
}


def _with_others(
    samples: Sequence[dict[str, Any]], own: Predicted, predicted: Sequence[Predicted]
) -> list[dict[str, Any]]:
    """The samples; each says which others of the same rows have it among their largest losses."""
    others = []
    for other in predicted:
        is_of_same_rows = (other.record.split, other.record.rows) == (own.record.split, own.record.rows)
        if other is not own and own.record.split != "table" and is_of_same_rows:
            others.append(other)
    found = []
    for sample in samples:
        also = [other.title.partition(":")[0] for other in others if _has(other.record, sample)]
        found.append({**sample, "also": ", ".join(also)})
    return found


def _has(record: Record, sample: Mapping[str, Any]) -> bool:
    return any((one["row"], one["truth"]) == (sample["row"], sample["truth"]) for one in record.worst)


def _of_training(run: Run) -> Iterator[Section]:
    """What a single run logged and wrote."""
    classes = row_figures.classes(run.record.data["classes"], run.record.names)
    yield Section("data", {"classes": classes}, data(run))
    yield Section("rates", {"rates": figures.rates(run)})
    yield Section("gradients", {"gradient_norms": figures.gradient_norms(run)})
    yield Section("updates", {"updates": figures.per_part(run, "update_ratio/", "‖Δw‖ / ‖w‖ of a step")})
    drift = figures.per_part(run, "drift/", "distance from the start")
    similarity = figures.per_part(run, "similarity/", "similarity (CKA)")
    yield Section("drift", {"drift": drift, "similarity": similarity})
    machine = [[name, value] for name, value in run.record.machine.items()]
    yield Section("machine", table=Table(("", ""), machine, holds_numbers=False))
    yield Section("config", text=run.config_text)


def evaluations(runs: Sequence[Run]) -> Table:
    """The metrics on new tables, with their intervals."""
    names: dict[str, None] = {}
    for run in runs:
        for one in run.evaluations:
            names |= dict.fromkeys(metric["name"] for metric in one.metrics)
    shown = list(names)[:_MOST_METRICS]
    rows = []
    for run in runs:
        for one in run.evaluations:
            cells = {metric["name"]: _with_interval(metric) for metric in one.metrics}
            title = f"{run.title}, {one.title}" if len(runs) > 1 else one.title
            rows.append([title, f"{one.record.rows:,}", *(cells.get(name, "") for name in shown), one.drawn])
    return Table(["", "rows", *shown, "intervals from"], rows)


def _with_interval(metric: Mapping[str, Any]) -> str:
    """Such as ``0.91 (0.85 to 0.95)``."""
    value, low, high = metric["value"], metric["low"], metric["high"]
    if value is None:
        return "undefined"
    return f"{value:.4g}" if low is None or high is None else f"{value:.4g} ({low:.3g} to {high:.3g})"


def scores(runs: Sequence[Run]) -> Section:
    """The best validation and the test of each run."""
    names: dict[str, None] = {}
    for run in runs:
        names[run.main] = None
        for prefix in ("val/", "test/"):
            names |= dict.fromkeys(name for name in run.with_prefix(prefix) if "/" not in name)
    shown = list(names)[:_MOST_METRICS]
    rows = []
    for run in runs:
        for prefix, label in (("val/", "validation"), ("test/", "test")):
            own = run.with_prefix(prefix)
            if own:
                cells = [_score(own, name, run.best_place if prefix == "val/" else -1) for name in shown]
                rows.append([f"{run.title}, {label}" if len(runs) > 1 else label, *cells])
    return Section("scores", table=Table(["", *shown], rows))


def _score(own: Mapping[str, Any], name: str, place: int) -> str:
    """A metric at a validation; an undefined one may have been logged less often."""
    if name not in own:
        return ""
    values = own[name].values
    return f"{values[min(place, len(values) - 1)]:.4g}"


def parts(run: Run) -> Table:
    """What each part is, knows alone and adds."""
    rows = []
    for part in run.record.parts:
        alone = "" if part["alone"] is None else f"{part['alone']:.3f} ± {part['error'] or 0:.3f}"
        values = sum(stage["values"] for stage in part["stages"])
        numbers = [part["without"], part["contribution"], part["share"]]
        texts = ["" if number is None else f"{number:.3f}" for number in numbers]
        drift = run.series.get(f"drift/{part['part']}")
        moved = "" if drift is None else f"{drift.last:.1%}"
        rows.append([part["part"], part["origin"], f"{values:,}", alone, *texts, moved])
    columns = ("part", "origin", "values", "alone", "without it", "changes predictions by", "share of blend", "moved")
    # without predictions or drift, their columns would be empty
    filled = [place for place in range(len(columns)) if any(row[place] for row in rows)]
    return Table(_at(columns, filled), [_at(row, filled) for row in rows])


def _at(cells: Sequence[str], places: Sequence[int]) -> list[str]:
    return [cells[place] for place in places]


def data(run: Run) -> Table:
    """Rows of each split, and how many lack a modality."""
    found = run.record.data
    rows = []
    for split, count in found["rows"].items():
        if not count:
            continue
        gaps = [f"{of_split.get(split, 0):,}" for of_split in found["missing"].values()]
        rows.append([split, f"{count:,}", *gaps])
    return Table(["split", "rows", *(f"without {key}" for key in found["missing"])], rows)


def differences(runs: Sequence[Run]) -> Table:
    """Dotted settings with their value in each run, of those that differ."""
    flat = [dict(_flattened(run.config, "")) for run in runs]
    keys: dict[str, None] = {}
    for one in flat:
        keys |= dict.fromkeys(one)
    rows = []
    for key in keys:
        values = [one.get(key, "") for one in flat]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return Table(["setting", *(run.title for run in runs)], rows[:_MOST_DIFFERENCES], holds_numbers=False)


def _flattened(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _flattened(entry, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)
