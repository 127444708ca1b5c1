"""The sections of a report: figures, tables or samples under a title and a caption."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybrid_lightning.report import figures, row_figures
from hybrid_lightning.report.captions import CAPTIONS
from hybrid_lightning.report.figures import Figure
from hybrid_lightning.report.runs import Run

_MOST_METRICS = 12
_MOST_DIFFERENCES = 60


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
    figures: list[Figure] = field(default_factory=list)
    table: Table | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""  # shown as it is, folded
    title: str = ""
    caption: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to see."""
        has_rows = self.table is not None and self.table.rows
        return not (has_rows or self.samples or self.text or any(drawn["data"] for drawn in self.figures))


def sections(runs: Sequence[Run]) -> list[Section]:
    """Those that the runs have something for."""
    record = runs[0].record
    split = "test" if record.split == "test" else "validation"
    rows = f"{record.rows:,} {split} rows"
    measured = figures.metrics(runs[0]) if len(runs) == 1 else figures.main_metrics(runs)
    shared = [scores(runs), Section("curves", [figures.losses(runs), measured])]
    shared.append(Section("timeline", [figures.timeline(runs)]))
    own = _of_one(runs[0]) if len(runs) == 1 else [Section("differences", table=differences(runs))]
    found = []
    for section in (*shared, *own):
        if not section.is_empty:
            section.title, caption = CAPTIONS[section.key]
            section.caption = caption.replace("{rows}", rows)
            found.append(section)
    return found


def _of_one(run: Run) -> Iterator[Section]:
    """The sections of a single run."""
    record = run.record
    yield Section("parts", [row_figures.part_scores(run)], parts(run))
    if record.confusion["names"]:
        yield Section("confusion", [row_figures.confusion(record.confusion)])
    roc = row_figures.ranking(record.roc, "false positive rate", "true positive rate", diagonal=True)
    precision = row_figures.ranking(record.precision_recall, "recall", "precision", diagonal=False)
    yield Section("ranking", [roc, precision])
    if record.reliability["rows"]:
        yield Section("reliability", [row_figures.reliability(record.reliability)])
    if any(column["true"] for column in record.numbers):
        yield Section("residuals", [row_figures.scatter(record.numbers), row_figures.residuals(record.numbers)])
    yield Section("samples", samples=record.worst)
    yield Section("data", [row_figures.classes(record.data["classes"], record.names)], data(run))
    yield Section("rates", [figures.rates(run)])
    yield Section("gradients", [figures.gradient_norms(run)])
    yield Section("updates", [figures.per_part(run, "update_ratio/", "‖Δw‖ / ‖w‖ of a step")])
    drift = figures.per_part(run, "drift/", "distance from the start")
    yield Section("drift", [drift, figures.per_part(run, "similarity/", "similarity (CKA)")])
    machine = [[name, value] for name, value in record.machine.items()]
    yield Section("machine", table=Table(("", ""), machine, holds_numbers=False))
    yield Section("config", text=run.config_text)


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
    return Table(columns, rows)


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
