"""Kind 12: text of data on a terminal and in a spreadsheet; the harness looks for control characters in any output."""

import csv
from pathlib import Path

import torch
import yaml

from tests.hostile.cases.checkpoints import RUN, Content, opened
from tests.hostile.harness import Box, case
from tests.small import changed

CLEAR, BELL, RIGHT_TO_LEFT = "\x1b[2J", "\x07", "\u202e"
FIT = ("fit", "--config", "m.yaml")


def manifest(classes: tuple[str, str], column: str = "x", ids: str = "") -> None:
    """A table and its config."""
    with Path("m.csv").open("w", newline="") as file:
        rows = [[row % 7, classes[row % 2], f"{ids}{row}"] for row in range(60)]
        csv.writer(file).writerows([[column, "label", "name"], *rows])
    data = {"path": "m.csv", "inputs": {"x": {"numeric": [column]}}, "target": "label"}
    data |= {"id": "name"} if ids else {}
    config = changed({"trainer.limit_train_batches": 2})
    config["model"]["init_args"] = {"num_classes": 2, "parts": {"x": {"module": "MLP"}}}
    config["data"] = {"class_path": "ManifestDataModule", "init_args": data}
    Path("m.yaml").write_text(yaml.safe_dump(config, allow_unicode=False))


@case(12, "names of classes", "an escape sequence, at check")
def class_that_clears_at_check(box: Box) -> None:
    manifest((f"a{CLEAR}", "b"))
    box.command("check", "--config", "m.yaml")


@case(12, "names of classes", "an escape sequence, at fit")
def class_that_clears_at_fit(box: Box) -> None:
    manifest((f"a{CLEAR}", "b"))
    box.command(*FIT)


@case(12, "names of classes", "text that is turned around")
def class_that_turns_text_around(box: Box) -> None:
    manifest((f"a{RIGHT_TO_LEFT}", "b"))
    box.command("check", "--config", "m.yaml")


@case(12, "names of columns", "an escape sequence in an error")
def column_that_clears(box: Box) -> None:
    manifest(("a", "b"), f"x{CLEAR}")
    text = Path("m.yaml").read_text().replace("x\\e[2J", "y\\e[2J")
    Path("m.yaml").write_text(text)
    box.refused("check", "--config", "m.yaml")


@case(12, "name of a run", "an escape sequence")
def run_that_clears(box: Box) -> None:
    box.start_from("fitted")
    box.refused("fit", "--config", "small.yaml", "--name", f"a{CLEAR}", says="name: ")
    assert [path.name for path in Path("runs").iterdir()] == ["small"]


@case(12, "name of a run", "a line end")
def run_of_two_lines(box: Box) -> None:
    box.start_from("fitted")
    box.refused("fit", "--config", "small.yaml", "--name", "a\nresults: b", says="name: ")


@case(12, "--config", "a name that rings")
def config_that_rings(box: Box) -> None:
    box.refused("fit", "--config", f"a{BELL}.yaml")


@case(12, "--ckpt_path", "a name that clears")
def checkpoint_that_clears(box: Box) -> None:
    box.start_from("fitted")
    box.refused("fit", "--config", "small.yaml", "--ckpt_path", f"a{CLEAR}.ckpt")


@case(12, "key of a config", "an escape sequence")
def key_that_clears(box: Box) -> None:
    config = changed()
    config["model"]["init_args"][f"lr{CLEAR}"] = 1
    Path("small.yaml").write_text(yaml.safe_dump(config))
    box.refused("fit", "--config", "small.yaml")


@case(12, "name of a part", "an escape sequence")
def part_that_clears(box: Box) -> None:
    config = changed()
    config["model"]["init_args"]["parts"][f"a{CLEAR}"] = {"module": "MLP"}
    Path("small.yaml").write_text(yaml.safe_dump(config))
    box.refused("fit", "--config", "small.yaml")


def told_by_checkpoint(box: Box, content: Content) -> None:
    torch.save(content, "e.ckpt")
    box.refused("predict", "--config", "small.yaml", "--ckpt_path", "e.ckpt")


@case(12, "names of tensors of a checkpoint", "an escape sequence")
def tensor_that_clears(box: Box) -> None:
    content = opened(box)
    content["state_dict"][f"network.{CLEAR}"] = torch.ones(1)
    told_by_checkpoint(box, content)


@case(12, "settings of a checkpoint", "an escape sequence in a line about a change")
def setting_that_clears(box: Box) -> None:
    content = opened(box)
    content["hybrid_lightning"]["settings"][f"lr{CLEAR}"] = CLEAR
    torch.save(content, "e.ckpt")
    box.command("fit", "--config", "small.yaml", "--ckpt_path", "e.ckpt", "--trainer.max_epochs", "3")


@case(12, "name of a file in checkpoints", "an escape sequence in a line about a skipped file")
def skipped_checkpoint_that_clears(box: Box) -> None:
    box.start_from("fitted")
    (RUN / f"x{CLEAR}.ckpt").write_bytes(b"nothing")
    told = box.accepted("fit", "--config", "small.yaml", "--resume", "auto", "--trainer.max_epochs", "3")
    assert "It is skipped" in told.out


def predictions() -> tuple[list[str], list[list[str]]]:
    [path] = Path("runs").rglob("predictions.csv")
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    return names, rows


@case(12, "predictions.csv", "ids and classes that are formulas, quoted")
def formulas_are_quoted(box: Box) -> None:
    manifest(("=cmd", "-b"), ids="@id")
    box.accepted(*FIT)
    box.accepted("predict", "--config", "m.yaml", "--ckpt_path", "last", "--quote_formulas", "true")
    names, rows = predictions()
    assert {row[names.index("id")][:3] for row in rows} == {"'@i"}
    cells = {cell for row in (names, *rows) for cell in row}
    assert not {cell for cell in cells if cell.startswith(("=", "@"))}, cells


@case(12, "predictions.csv", "ids and classes that are formulas, faithful unless asked otherwise")
def formulas_are_faithful(box: Box) -> None:
    manifest(("=cmd", "-b"), ids="@id")
    box.accepted(*FIT)
    box.accepted("predict", "--config", "m.yaml", "--ckpt_path", "last")
    names, rows = predictions()
    assert {row[names.index("id")][:3] for row in rows} == {"@id"}
