"""One HTML page from sections: self-contained, opened offline, with nothing of the data but text in it."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import hybrid_lightning
from hybrid_lightning.errors import listing, printable, writing
from hybrid_lightning.files import whole_file
from hybrid_lightning.report.record import require_plotly
from hybrid_lightning.report.runs import Run
from hybrid_lightning.report.sections import MOST_PREDICTED, Section, predicted_of, sections

_LONGEST = 2000  # characters of a cell


def write_page(runs: Sequence[Run], path: Path) -> None:
    """Writes the report of one or several runs; the file appears whole or not at all."""
    text = page(runs, require_plotly())
    with writing(path, "Make room, or write to another place."), whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(runs: Sequence[Run], program: str) -> str:
    """The text of a page; `program` is that of plotly."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader(__name__.rpartition(".")[0], "."), autoescape=True, finalize=_shown)
    found = sections(runs)
    draw = _file("draw.js")
    title = runs[0].title if len(runs) == 1 else f"{len(runs)} runs"
    notes = [note for run in runs for note in run.notes]
    left_out = [one.title for one in predicted_of(runs)[MOST_PREDICTED:]]
    if left_out:
        notes.insert(0, f"Of {listing(left_out, 4)} no predictions are shown, as there are too many for a page.")
    template = environment.get_template("page.html")
    return template.render(
        title=title,
        runs=runs,
        sections=found,
        notes=notes,
        tiles=tiles(runs[0]) if len(runs) == 1 else [],
        version=hybrid_lightning.__version__,
        style=_file("style.css"),
        draw=draw,
        program=program,
        # no other script than these two can run, and nothing can be fetched
        policy=" ".join(f"'sha256-{_digest(script)}'" for script in (program, draw)),
        figures=as_script(numbered(found)),
    )


def numbered(found: Sequence[Section]) -> list[Any]:
    """All figures, in the order in which the template counts them."""
    figures = []
    for section in found:
        figures += section.drawn
    return figures


def tiles(run: Run) -> list[tuple[str, str]]:
    """Value and meaning of the few numbers that stand first."""
    found = []
    for prefix, label in (("val/", "best on validation"), ("test/", "on test")):
        series = run.series.get(f"{prefix}{run.main}")
        if series is not None:
            value = series.values[run.best_place if prefix == "val/" else -1]
            found.append((f"{value:.3g}", f"{run.main}, {label}"))
    found.append((f"{run.last_step + 1:,}", "optimizer steps"))
    found.append((str(len(run.parts)), "parts"))
    return found


def as_script(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it closes the element, or begins a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _file(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _shown(value: Any) -> Any:
    """A text without control characters, of bounded length."""
    if isinstance(value, str) and type(value) is str and len(value) <= 10**6:
        return printable(value)
    return value
