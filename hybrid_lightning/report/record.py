"""What a report shows beside metrics and config, as plain data: ``report.json`` in the run's folder."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hybrid_lightning.errors import ConfigError, reason
from hybrid_lightning.files import is_regular_file, whole_file
from hybrid_lightning.resume.loop_counters import first_damaged

FILE = "report.json"
LARGEST = 700_000
"""Bytes; with plotly's 4.8 MB a report then stays below 6 MB."""

_REST = 50_000
"""Bytes that may stand beside a record in its file."""
LARGEST_NUMBER = 1e100
"""Beyond which arithmetic of figures could overflow; no data that a network reads come near it."""
_COUNT = range(2**53)
_MAYBE = (float, type(None))
_CURVES = [{"name": str, "x": [float], "y": [float], "value": float}]
_PART = {
    "part": str,
    "origin": str,
    "stages": [{"stage": str, "values": _COUNT, "start": (_COUNT, type(None))}],
    "alone": _MAYBE,
    "error": _MAYBE,
    "share": _MAYBE,
    "without": _MAYBE,
    "whole": _MAYBE,
    "contribution": _MAYBE,
}
_SAMPLE = {
    "row": str,
    "loss": float,
    "truth": str,
    "predicted": str,
    "shown": [{"key": str, "picture": str, "text": str, "line": [float]}],
}
FORM: dict[Any, Any] = {
    "split": str,
    "kind": str,
    "main": str,
    "best": str,
    "rows": _COUNT,
    "names": [str],
    "machine": {str: str},
    "parts": [_PART],
    "confusion": {"names": [str], "counts": [[_COUNT]]},
    "roc": _CURVES,
    "precision_recall": _CURVES,
    "reliability": {"confidence": [float], "correct": [float], "rows": [_COUNT]},
    "numbers": [{"name": str, "true": [float], "predicted": [float]}],
    "worst": [_SAMPLE],
    "data": {"rows": {str: _COUNT}, "classes": {str: [_COUNT]}, "missing": {str: {str: _COUNT}}},
    "notes": [str],
}
"""What a file has to hold, see `first_damaged`; further keys are ignored."""


@dataclass
class Record:
    """What the report of a run knows beside its folder; everything may be empty. All numbers are finite."""

    split: str = ""  # whose rows were predicted: val or test; table: those of a new one
    kind: str = ""  # binary, multiclass, multilabel or regression; empty for a task of a user's own
    main: str = ""  # main metric
    best: str = ""  # the best checkpoint, as the run describes it
    rows: int = 0  # number of rows that were predicted
    names: list[str] = field(default_factory=list)  # of classes, labels or numbers
    machine: dict[str, str] = field(default_factory=dict)  # what → its name or version
    parts: list[dict[str, Any]] = field(default_factory=list)  # see `FORM`, in the order of the network
    confusion: dict[str, Any] = field(default_factory=lambda: {"names": [], "counts": []})  # row: truth
    roc: list[dict[str, Any]] = field(default_factory=list)  # per class or label
    precision_recall: list[dict[str, Any]] = field(default_factory=list)
    reliability: dict[str, Any] = field(default_factory=lambda: {"confidence": [], "correct": [], "rows": []})
    numbers: list[dict[str, Any]] = field(default_factory=list)  # per number: true and predicted of some rows
    worst: list[dict[str, Any]] = field(default_factory=list)  # the samples with the largest loss first
    data: dict[str, Any] = field(default_factory=lambda: {"rows": {}, "classes": {}, "missing": {}})
    notes: list[str] = field(default_factory=list)  # what is missing, and what to do

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Record":
        """A record from plain data of this form; raises ValueError where lists that belong together differ."""
        record = cls(**{key: content[key] for key in FORM})
        _refuse_uneven(record)
        return record

    def plain(self) -> dict[str, Any]:
        """The record as plain data; the pictures are left out if it would be too large."""
        content: dict[str, Any] = _rounded(asdict(self))
        if len(json.dumps(content)) > LARGEST:
            for sample in content["worst"]:
                sample["shown"] = []
            content["notes"].append("The samples were too large to be shown.")
        return content

    def write(self, folder: Path) -> None:
        """Writes the file of a run's folder."""
        write_plain(folder / FILE, self.plain())


def write_plain(path: Path, content: dict[str, Any]) -> None:
    """Writes plain data without nan and infinity."""
    text = json.dumps(content, allow_nan=False)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_plain(path: Path, form: dict[Any, Any]) -> dict[str, Any]:
    """Plain data of a form, see `first_damaged`; raises ValueError, OSError or RecursionError."""
    if path.stat().st_size > LARGEST + _REST:
        raise ValueError(f"it has more than {LARGEST + _REST} bytes")
    text = path.read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text, parse_float=_finite, parse_int=_whole, parse_constant=_finite)
    damaged = first_damaged(content, form, "report")
    if damaged is not None:
        raise ValueError(f"{damaged[:80]} is damaged")
    return content


def read_record(folder: Path) -> Record:
    """The record of a run's folder; an empty one with a note if there is none, or it is damaged."""
    path = folder / FILE
    if not is_regular_file(path):
        return Record()
    try:
        return Record.of(read_plain(path, FORM))
    except (ValueError, RecursionError, OSError) as error:
        return Record(notes=[f"{FILE} cannot be read, so that its pages are missing: {reason(error)}"])


def _finite(text: str) -> float:
    """A number of a JSON text, which may also say Infinity."""
    number = float(text)
    if not abs(number) < LARGEST_NUMBER:  # nan is refused, too
        raise ValueError(f"{text[:20]} is too large, or no number")
    return number


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _refuse_uneven(record: Record) -> None:
    """Raises ValueError where lists that belong together differ in length."""
    lengths = [(len(row), len(record.confusion["names"])) for row in record.confusion["counts"]]
    lengths.append((len(record.confusion["counts"]), len(record.confusion["names"])))
    lengths += [(len(curve["x"]), len(curve["y"])) for curve in record.roc + record.precision_recall]
    lengths += [(len(one["true"]), len(one["predicted"])) for one in record.numbers]
    lengths.append((len(record.reliability["confidence"]), len(record.reliability["correct"])))
    lengths.append((len(record.reliability["confidence"]), len(record.reliability["rows"])))
    if any(one != other for one, other in lengths):
        raise ValueError("lists that belong together differ in length")


def _rounded(value: Any) -> Any:
    """Plain values with six digits per number, which is more than a figure shows."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return value


def require_plotly() -> str:
    """Plotly's program, JavaScript; `ConfigError` where it is not installed."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigError(
            "the report is drawn with plotly, which is missing. Install it with: pip install 'hybrid_lightning[report]'"
        ) from None
    program: str = get_plotlyjs()
    return program
