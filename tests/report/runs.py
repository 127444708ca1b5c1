"""Run folders that no fit has made, for the tests of the report."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml

from hybrid_lightning.report.evaluations import Evaluation
from hybrid_lightning.report.record import Record
from hybrid_lightning.report.runs import Run, read_run

EVIL = "<script>alert(1)</script>"
STAGES = [{"stage": "stem", "values": 100, "start": None}, {"stage": "top", "values": 50, "start": 20}]
NUMBERS = {"alone": 0.8, "error": 0.02, "share": 0.5, "without": 0.7, "whole": 0.9, "contribution": 0.1}
CURVES = [{"name": EVIL, "x": [0.0, 0.5, 1.0], "y": [0.0, 0.8, 1.0], "value": 0.75}]
SHOWN = [
    {"key": "photo", "picture": "iVBORw0KGgo=", "text": "", "line": []},
    {"key": "note", "picture": "", "text": f"it says </dd>{EVIL}", "line": []},
    {"key": "trace", "picture": "", "text": "", "line": [0.0, 1.0, 0.5]},
]
OF_KIND: dict[str, dict[str, Any]] = {
    "multiclass": {
        "names": ["ok", EVIL],
        "confusion": {"names": ["ok", EVIL], "counts": [[5, 1], [2, 4]]},
        "roc": CURVES,
        "precision_recall": CURVES,
        "reliability": {"confidence": [0.5, 0.9], "correct": [0.4, 1.0], "rows": [4, 8]},
        "data": {
            "rows": {"train": 20, "val": 12},
            "classes": {"train": [12, 8], "val": [6, 6]},
            "missing": {"photo": {"train": 3, "val": 0}},
        },
    },
    "multilabel": {
        "names": ["round", EVIL],
        "roc": CURVES,
        "precision_recall": CURVES,
        "reliability": {"confidence": [0.5], "correct": [0.4], "rows": [24]},
    },
    "regression": {"names": [EVIL], "numbers": [{"name": EVIL, "true": [1.0, 2.0, 3.0], "predicted": [1.1, 1.9, 3.2]}]},
}


def record(kind: str = "multiclass") -> Record:
    parts = [{"part": "tower", "origin": "pretrained", "stages": STAGES, **NUMBERS}]
    parts.append({"part": "head", "origin": "untrained", "stages": [], **dict.fromkeys(NUMBERS)})
    worst = [{"row": "7", "loss": 2.5, "truth": EVIL, "predicted": "ok (93%)", "shown": SHOWN}]
    main = "r2" if kind == "regression" else "accuracy"
    common = {"split": "val", "kind": kind, "main": main, "rows": 12, "parts": parts, "worst": worst}
    return Record(**common, **OF_KIND[kind], machine={"torch": "2.0", "device": "1 × cpu (x86_64)"})


def evaluation(title: str) -> Evaluation:
    metrics = [{"name": "accuracy", "value": 0.9, "low": 0.8, "high": 0.95}]
    metrics.append({"name": "auroc", "value": None, "low": None, "high": None})
    own = record()
    own.split = "table"
    return Evaluation(title, "100 bootstrap draws of 12 rows", metrics, own)


def write_folder(folder: Path, kind: str | None = "multiclass", config: Any = None, rows: int = 40) -> Path:
    """A run's folder; without a kind it has no record."""
    folder.mkdir(parents=True)
    main = "r2" if kind == "regression" else "accuracy"
    names = ["epoch", "step", "train/loss", "val/loss", f"val/{main}", "test/loss", f"test/{main}"]
    names += ["lr/tower.top", "lr/tower.top-no_decay", "lr/head", "trainable/tower", "trainable/head", "drift/tower"]
    names += ["grad_norm/tower", "grad_norm/head", "grad_norm/total", "grad_norm_clipped/total", "update_ratio/head"]
    lines = [",".join(names)]
    for step in range(rows):
        trains = int(step >= 20)
        values = [0, step, 1 / (step + 1), 1.2 / (step + 1), step / rows, "", "", 1e-4, 1e-4, 1e-3, trains, 1]
        lines.append(",".join(map(str, [*values, 0.01 * trains * step, trains, 2, 2.2, 1, 1e-3])))
    lines.append(",".join(map(str, [0, rows, "", "", "", 0.3, 0.8, *[""] * 11])))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    settings = {"checkpoint": {"monitor": "main"}, "name": EVIL, "lr": 0.001} if config is None else config
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True))
    if kind is not None:
        record(kind).write(folder)
    return folder


def run(folder: Path) -> Run:
    text = (folder / "config.yaml").read_text()
    return read_run(folder, f"{folder.parent.name}/{folder.name}", yaml.safe_load(text), text)


class Parsed(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "script":
            self._in_script = True
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.words.append(data)

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]

    @property
    def text(self) -> str:
        return "".join(self.words)

    @property
    def figures(self) -> list[dict[str, Any]]:
        return json.loads(self.scripts[0])
