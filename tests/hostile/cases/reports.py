"""Kinds 1, 10 and 12: a run folder of somebody else, of which a report is drawn."""

import json
import os
from pathlib import Path
from typing import Any

from hybrid_lightning.cli import report as command
from hybrid_lightning.report import page
from tests.hostile.cases.run_folders import FOLDER
from tests.hostile.harness import Box, case
from tests.report.runs import Parsed, record

EVIL = '</script><script>alert(1)</script><img src="http://evil/x" onerror="alert(2)">'


def no_program() -> str:
    """Stands for plotly's program; each case runs in a fork of its own."""
    return ""


def drawn(box: Box) -> Parsed:
    """The report of the run of this folder."""
    command.require_plotly = page.require_plotly = no_program  # type: ignore[assignment]
    box.accepted("report", str(FOLDER))
    text = (FOLDER / "report.html").read_text(encoding="utf-8")
    found = Parsed(text)
    assert len(text) < 10**6
    assert len(found.scripts) == 3
    for _, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], attributes
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), attributes
    return found


def write_record(box: Box, **changes: Any) -> None:
    box.start_from("fitted")
    (FOLDER / "report.json").write_text(json.dumps({**vars(record()), **changes}))


@case(1, "config of a run that is reported", "tags and class paths that would run code")
def reported_config_with_code(box: Box) -> None:
    box.start_from("fitted")
    text = (
        "a: !!python/object/apply:os.system [touch ran]\ndata: {class_path: os.system, init_args: {command: touch ran}}"
    )
    (FOLDER / "config.yaml").write_text(text)
    assert "touch ran" in drawn(box).text
    assert not Path("ran").exists()


@case(1, "checkpoint of a run that is reported", "a pickle that would run code")
def reported_checkpoint_with_code(box: Box) -> None:
    box.start_from("fitted")
    for path in (FOLDER / "checkpoints").iterdir():
        path.write_bytes(b"\x80\x02cposix\nsystem\nX\x09\x00\x00\x00touch ran\x85R.")
    drawn(box)
    assert not Path("ran").exists()


@case(1, "report.json", "names that are markup")
def reported_names_of_markup(box: Box) -> None:
    parts = [{**record().parts[0], "part": EVIL}]
    machine = {EVIL: EVIL}
    write_record(box, names=[EVIL, EVIL], best=EVIL, main=EVIL, parts=parts, machine=machine, notes=[EVIL])
    assert EVIL in drawn(box).text


@case(1, "report.json", "a picture that is an address, or breaks out of it")
def reported_picture_elsewhere(box: Box) -> None:
    for picture in ("http://evil/x.png", '"><script>alert(1)</script>', '" onload="alert(1)'):
        entry = {"key": EVIL, "picture": picture, "text": "", "line": []}
        write_record(box, worst=[{"row": EVIL, "loss": 1.0, "truth": EVIL, "predicted": EVIL, "shown": [entry]}])
        drawn(box)


@case(1, "metrics.csv of a run that is reported", "columns that are markup")
def reported_columns_of_markup(box: Box) -> None:
    box.start_from("fitted")
    quoted = EVIL.replace('"', '""')
    (FOLDER / "metrics.csv").write_text(f'step,"val/{quoted}","lr/{quoted}","trainable/{quoted}"\n1,2,3,1\n2,3,4,1\n')
    assert drawn(box).figures  # in which they are texts of plotly, escaped


@case(10, "report.json", "numbers beyond floats, nesting, endless lists")
def reported_record_without_end(box: Box) -> None:
    box.start_from("fitted")
    for text in ("[" * 10**6, '{"rows": ' + "9" * 10**5 + "}", '{"rows": 1e999}', "{" * 600_000, '"' + "a" * 10**7):
        (FOLDER / "report.json").write_text(text)
        assert "report.json cannot be read" in drawn(box).text


@case(10, "metrics.csv of a run that is reported", "20 GiB of holes, and a pipe")
def reported_table_of_holes(box: Box) -> None:
    box.start_from("fitted")
    table = FOLDER / "metrics.csv"
    os.truncate(table, 20 * 2**30)
    assert "metrics.csv has more than" in drawn(box).text
    table.unlink()
    os.mkfifo(table)
    assert "There is no metrics.csv" in drawn(box).text


@case(10, "config of a run that is reported", "aliases of aliases")
def reported_config_of_aliases(box: Box) -> None:
    box.start_from("fitted")
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{number}: &a{number} [{f'*a{number - 1}, ' * 9}]" for number in range(1, 12)]
    (FOLDER / "config.yaml").write_text("\n".join(lines))
    drawn(box)


@case(12, "report.json", "characters that steer a terminal or turn a text around")
def reported_controls(box: Box) -> None:
    write_record(box, names=["a\u202eb", "\x1b[2J"], best="\x1b]0;x\x07", notes=["\u2066x"])
    drawn(box)
    text = (FOLDER / "report.html").read_text(encoding="utf-8")
    assert not set("\x1b\x07\u202e\u2066").intersection(text)
