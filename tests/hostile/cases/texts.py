"""Kind 12: every name and cell of a table, and names of files, with what steers a terminal."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from tests.hostile.cases.checkpoints import RUN, of_callback, opened, ours
from tests.hostile.harness import Box, case
from tests.small import changed

STEERS = "\x1b[2J\x07\u202e\x9b\r\nx"
ROWS = 60


def everywhere(target: Any, model: str = "HybridClassifier", parts: bool = True) -> None:
    """A table with such texts in all names and cells, and its config."""
    names = {role: f"{role}{STEERS}" for role in ("size", "site", "note", "image", "id", "group", "label", "share")}
    columns: dict[str, Callable[[int], Any]] = {
        "size": lambda row: row,
        "site": lambda row: f"s{row % 3}{STEERS}",
        "note": lambda row: f"word {STEERS} {row % 3}",
        "image": lambda row: f"i{row % 4}{STEERS}.png",
        "id": lambda row: f"{row}{STEERS}",
        "group": lambda row: f"g{row // 2}{STEERS}",
        "label": lambda row: f"{'ab'[row % 2]}{STEERS}",
        "share": lambda row: row % 5 + 0.5,
    }
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(f"i{number}{STEERS}.png")
    with Path("m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names.values())
        writer.writerows([made(row) for made in columns.values()] for row in range(ROWS))
    inputs = {
        "x": {"numeric": [names["size"]]},
        "c": {"categorical": [names["site"]], "one_hot": True},
        "t": {"text": names["note"]},
        "i": {"image": names["image"]},
    }
    modules = {"x": "MLP", "c": "MLP", "t": "SequenceTransformer", "i": "ConvExtractor"}
    data = {"path": "m.csv", "inputs": inputs, "target": target, "id": names["id"], "split_by": names["group"]}
    arguments: dict[str, Any] = {"parts": {key: {"module": module} for key, module in modules.items()}}
    if model == "HybridClassifier":
        arguments["num_classes"] = 2
    config = changed({"trainer.limit_train_batches": 3, "trainer.enable_progress_bar": True})
    config["model"] = {"class_path": model, "init_args": arguments}
    config["data"] = {"class_path": "ManifestDataModule", "init_args": {"workers": 0, **data}}
    Path("m.yaml").write_text(yaml.safe_dump(config))


def read() -> list[list[str]]:
    with Path("m.csv").open(newline="") as file:
        return list(csv.reader(file))


FITTED = ("--config", "m.yaml", "--ckpt_path", "last")


def command(verb: str, *words: str) -> None:
    """Registers a command on such a table."""

    def run(box: Box) -> None:
        everywhere(f"label{STEERS}")
        if "last" in words:
            box.accepted("fit", "--config", "m.yaml", "--trainer.enable_progress_bar", "false")
        told = box.command(verb, *words)
        assert told.code in (0, 2), told

    run.__name__ = f"a_table_that_steers_at_{verb}"
    case(12, f"all texts of a table at {verb}", "what steers a terminal")(run)


command("check", "--config", "m.yaml")
command("plan", "--config", "m.yaml")
command("fit", "--config", "m.yaml", "--trainer.enable_progress_bar", "false")
command("test", *FITTED, "--trainer.enable_progress_bar", "false")
command("predict", *FITTED, "--trainer.enable_progress_bar", "false")
command("probe", "--config", "m.yaml")
command("embed", "--config", "m.yaml", "--output", "o.npz")


@case(12, "all texts of a table with several targets", "what steers a terminal")
def targets_that_steer(box: Box) -> None:
    everywhere([f"size{STEERS}", f"share{STEERS}"], "HybridRegressor")
    config = yaml.safe_load(Path("m.yaml").read_text())
    del config["data"]["init_args"]["inputs"]["x"], config["model"]["init_args"]["parts"]["x"]
    config["trainer"]["enable_progress_bar"] = False
    config["model"]["init_args"]["num_outputs"] = 2
    Path("m.yaml").write_text(yaml.safe_dump(config))
    for verb in ("check", "fit"):
        box.accepted(verb, "--config", "m.yaml")
    box.accepted("test", *FITTED)


@case(12, "categories", "what steers a terminal, in a warning of unknown ones")
def unknown_categories_that_steer(box: Box) -> None:
    everywhere(f"label{STEERS}")
    box.accepted("fit", "--config", "m.yaml", "--trainer.enable_progress_bar", "false")
    rows = read()
    for row in rows[1:20]:
        row[1] = f"new{STEERS}"
    with Path("new.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    box.accepted("predict", *FITTED, "--trainer.enable_progress_bar", "false", "--data.predict_path", "new.csv")


def broken(mechanism: str, kind: str, name: str, content: bytes) -> None:
    """Registers a file with such a name that cannot be read, of which an exception of a library tells."""

    def run(box: Box) -> None:
        everywhere(f"label{STEERS}")
        Path(name).write_bytes(content)
        rows = read()
        for row in rows[1:]:
            row[3] = name
        with Path("m.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        config = yaml.safe_load(Path("m.yaml").read_text())
        modules = {"audio": "ResidualConv1d", "series": "SequenceTransformer", "volume": "ResidualConv3d"}
        config["data"]["init_args"]["inputs"]["i"] = {kind: f"image{STEERS}"}
        config["model"]["init_args"]["parts"]["i"]["module"] = modules.get(kind, "ConvExtractor")
        Path("m.yaml").write_text(yaml.safe_dump(config))
        box.refused("check", "--config", "m.yaml")
        box.refused("fit", "--config", "m.yaml", "--trainer.enable_progress_bar", "false")

    run.__name__ = mechanism.replace(" ", "_")
    case(12, f"name of a file of {kind}", "what steers a terminal, in an error of a library")(run)


broken("a broken image that steers", "image", f"b{STEERS}.png", b"\x89PNG\r\n\x1a\n\x1b[2J")
broken("a broken sound that steers", "audio", f"b{STEERS}.wav", b"RIFF\x1b[2J\x07" + bytes(50))
broken("a broken series that steers", "series", f"b{STEERS}.csv", b"1\n\x1b[2J\x07\n")
broken("a broken array that steers", "array", f"b{STEERS}.npy", b"\x93NUMPY\x01\x00\x10\x00{'\x1b[2J': \x07  }\n")
broken("a broken volume that steers", "volume", f"b{STEERS}.nii", b"\x1b[2J" * 200)


@case(12, "--ckpt_path", "a name that clears, of a file that is there")
def checkpoint_that_is_there_and_clears(box: Box) -> None:
    box.start_from("fitted")
    shutil.copy(RUN / "last.ckpt", "a\x1b[2J.ckpt")
    for verb in ("fit", "predict", "test"):
        told = box.command(verb, "--config", "small.yaml", "--ckpt_path", "a\x1b[2J.ckpt", "--trainer.max_epochs", "3")
        assert told.code in (0, 2), told
    box.command("export_part", "--ckpt_path", "a\x1b[2J.ckpt", "--part", "head", "--output", "h.safetensors")


@case(12, "--output", "a name that clears")
def output_that_clears(box: Box) -> None:
    box.start_from("fitted")
    checkpoint = ("--ckpt_path", str(RUN / "last.ckpt"))
    config = ("--config", "small.yaml")
    box.command("predict", *config, *checkpoint, "--output", "a\x1b[2J.csv")
    box.command("probe", *config, *checkpoint, "--output", "a\x1b[2J.csv")
    box.command("embed", *config, *checkpoint, "--output", "a\x1b[2J.npz")
    box.command("export_part", *checkpoint, "--part", "head", "--output", "a\x1b[2J.safetensors")
    box.command("export", *config, *checkpoint, "--format", "safetensors", "--output", "a\x1b[2J.safetensors")


@case(12, "--trainer.default_root_dir", "a name that clears")
def root_that_clears(box: Box) -> None:
    box.start_from("fitted")
    box.command("fit", "--config", "small.yaml", "--trainer.default_root_dir", "a\x1b[2J")


@case(12, "weights of a part", "a name that clears")
def weights_that_clear(box: Box) -> None:
    box.start_from("fitted")
    name = "a\x1b[2J.safetensors"
    box.accepted("export_part", "--ckpt_path", str(RUN / "last.ckpt"), "--part", "stem", "--output", "s.safetensors")
    Path("s.safetensors").rename(name)
    for key, value in (("init.parts.stem.weights", name), ("init.init_from", name)):
        Path("w.yaml").write_text(yaml.safe_dump(changed({key: value})))
        box.command("fit", "--config", "w.yaml")
    torch.save({"hybrid_lightning": 1, "\x1b[2J": torch.ones(1)}, name)
    box.command("fit", "--config", "w.yaml")


@case(12, "path of the manifest", "a name that clears")
def manifest_that_clears(box: Box) -> None:
    everywhere(f"label{STEERS}")
    Path("m.csv").rename("a\x1b[2J.csv")
    Path("m.yaml").write_text(Path("m.yaml").read_text().replace("path: m.csv", 'path: "a\\e[2J.csv"'))
    for verb in ("check", "fit"):
        box.command(verb, "--config", "m.yaml", "--trainer.enable_progress_bar", "false")


@case(12, "words of export_part", "a word that clears")
def words_of_export_part_that_clear(box: Box) -> None:
    box.refused("export_part", "--ckpt_path", "a", "--part", "b", "--output", "c.safetensors", "x\x1b[2J")
    box.refused("export_part", "--ckpt\x1b[2J", "a")


@case(12, "words of cross_validate", "a word that clears")
def words_of_cross_validate_that_clear(box: Box) -> None:
    box.start_from("fitted")
    box.refused("cross_validate", "--config", "small.yaml", "--folds", "x\x1b[2J")
    box.refused("cross_validate", "--config", "small.yaml", "--what\x1b[2J", "3")


@case(12, "command", "a word that clears")
def command_that_clears(box: Box) -> None:
    box.refused("fi\x1b[2Jt")
    box.refused("\x1b[2J.yaml")


@case(12, "state of a callback", "names that clear")
def states_that_clear(box: Box) -> None:
    content = opened(box)
    content["callbacks"]["Nothing\x1b[2J"] = {"\x1b[2J": 1}
    content["\x1b[2J"] = 1
    of_callback(content, "GradualUnfreezing")["recorded"] = {"\x1b[2J": 3}
    torch.save(content, "e.ckpt")
    box.command("fit", "--config", "small.yaml", "--ckpt_path", "e.ckpt", "--trainer.max_epochs", "3")


@case(12, "metrics of a run", "names of columns that clear")
def columns_of_metrics_that_clear(box: Box) -> None:
    box.start_from("fitted")
    path = RUN.parent / "metrics.csv"
    path.write_text("step,train/\x1b[2J\n0,\x1b[2J\n1,2\n")
    box.command("fit", "--config", "small.yaml", "--resume", "auto", "--trainer.max_epochs", "3")


@case(12, "parts of a checkpoint", "names that clear")
def parts_that_clear(box: Box) -> None:
    content = opened(box)
    ours(content)["parts"]["\x1b[2J"] = {"module": "\x1b[2J"}
    ours(content)["task"] = "\x1b[2J"
    torch.save(content, "e.ckpt")
    box.command("load_from_checkpoint", "e.ckpt")
    box.command("fit", "--config", "small.yaml", "--ckpt_path", "e.ckpt", "--trainer.max_epochs", "3")
    box.command("predict", "--config", "small.yaml", "--ckpt_path", "e.ckpt")
