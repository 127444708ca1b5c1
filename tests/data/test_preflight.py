"""What is found before the first step, and by the command check."""

import csv
import os
import re
import shutil
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid_lightning.data import ManifestDataModule
from hybrid_lightning.data.inputs.images import ImageInput
from hybrid_lightning.data.preflight import first_rank_first
from hybrid_lightning.errors import ConfigError
from tests.data.make_files import make_manifest
from tests.processes import ranks, succeed_on
from tests.small import changed, command, write
from tests.tables import write_rows

PHOTO = {"photo": {"image": "photo", "size": 8}}
SPLITS = ["train"] * 6 + ["val"] * 3 + ["test"] * 3


def rows(count: int = 12, **columns: Any) -> list[dict[str, Any]]:
    """Rows with an image each, of three labels; `columns` give a cell per row, or a function of its number."""
    made = []
    for row in range(count):
        own = {name: cell(row) if callable(cell) else cell[row] for name, cell in columns.items()}
        made.append({"photo": f"{row}.png", "sample": f"s{row}", "label": "abc"[row % 3], "split": SPLITS[row], **own})
    return made


def manifest(table: list[dict[str, Any]], path: str = "samples.csv", sides: Any = (10, 12)) -> str:
    """Writes a manifest, and the images that are not there; `sides` are (height, width), or a dict of them by row."""
    for row, cells in enumerate(table):
        height, width = sides.get(row, (10, 12)) if isinstance(sides, dict) else sides
        pixels = np.random.default_rng(row).integers(0, 256, (height, width, 3)).astype(np.uint8)
        if cells.get("photo") and not Path(cells["photo"]).exists():
            Image.fromarray(pixels).save(cells["photo"])
    write_rows(path, table)
    return path


def config(inputs: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """A run of one step on `samples.csv`."""
    arguments = {"path": "samples.csv", "inputs": inputs or PHOTO, "target": "label", "split_column": "split"}
    parts = {
        key: {"module": _MODULES.get(max(given, key=_MODULES.__contains__), "MLP")}
        for key, given in (inputs or PHOTO).items()
    }
    data = {"class_path": "ManifestDataModule", "init_args": {**arguments, "workers": 0, **options}}
    return changed({"data": data, "init.parts": parts, "trainer.limit_train_batches": 1})


_MODULES = {
    "image": "ConvExtractor",
    "series": "SequenceTransformer",
    "volume": "ResidualConv3d",
    "text": "BagOfWords",
    "categorical": "TabularMLP",
}


def check(inputs: dict[str, Any] | None = None, decode: bool = True, target: str = "label", **options: Any) -> None:
    """The same checks as those of the commands check and, without `decode`, fit."""
    ManifestDataModule("samples.csv", inputs or PHOTO, target, split_column="split", **options).check(decode)


def rows_in(path: str | Path = "samples.problems.csv") -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_of(text: str, name: str) -> dict[str, list[str]]:
    """The rows of a printed table whose header starts with `name`: first cell → the other cells."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(name))
    body = lines[start + 2 :]
    body = body[: body.index("")] if "" in body else body
    return {" ".join(line.split()[:-3]): line.split()[-3:] for line in body}


def break_seven() -> list[int]:
    """Breaks the files of seven rows: five are gone, two are no images."""
    for row in (1, 3, 4, 8, 11):
        Path(f"{row}.png").unlink()
    for row in (6, 10):
        Path(f"{row}.png").write_text("not an image", encoding="utf-8")
    return [1, 3, 4, 6, 8, 10, 11]


# Files


def test_a_fit_refuses_bad_files_before_its_first_step_and_lists_all_of_them(folder, capsys):
    manifest(rows())
    broken = break_seven()
    assert command("fit", config=config(id="sample")) == 2
    err = capsys.readouterr().err
    assert "data.path: 7 files of 'samples.csv' cannot be used:" in err
    shown = [line for line in err.splitlines() if line.startswith("  row ")]
    assert [int(line.split()[1].rstrip(",")) for line in shown] == broken[:5]
    assert "row 1, photo, '1.png': there is no such file in '.'" in shown[0]
    assert "cannot identify image file" in shown[3]
    assert "  and 2 more" in err
    [path] = Path("runs/small/version_0").glob("*.problems.csv")
    assert str(path) in err
    listed = rows_in(path)
    assert [int(row["row"]) for row in listed] == broken
    assert [(row["id"], row["key"], row["path"]) for row in listed] == [(f"s{r}", "photo", f"{r}.png") for r in broken]
    assert [row["problem"].startswith("there is no such file") for row in listed] == [r not in (6, 10) for r in broken]
    assert not Path("runs/small/version_0/metrics.csv").exists()


def test_check_finds_what_a_file_hides_behind_its_first_bytes(folder, capsys):
    manifest(rows())
    for row in (4, 9):
        Path(f"{row}.png").write_bytes(Path(f"{row}.png").read_bytes()[:-200])
    assert command("check", config=config()) == 2
    err = capsys.readouterr().err
    assert "2 files" in err
    assert "truncated" in err
    assert [(row["row"], row["id"]) for row in rows_in()] == [("4", "4"), ("9", "9")]  # without ids, rows stand there
    check(decode=False)


def test_check_makes_no_run_and_says_that_nothing_is_wrong(folder, capsys):
    manifest(rows())
    Path("0.png").rename("away.png")
    assert command("check", config=config()) == 2
    Path("away.png").rename("0.png")
    assert Path("samples.problems.csv").exists()
    assert command("check", config=config()) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert not Path("samples.problems.csv").exists(), "of an earlier check"
    assert not Path("runs").exists()


def test_a_fit_without_checks_starts_although_a_test_file_is_missing(folder, capsys):
    manifest(rows())
    Path("11.png").unlink()
    assert command("fit", config=config(checks=False)) == 0
    assert "in a batch" not in capsys.readouterr().out


def test_cells_without_a_file_are_no_problem(folder, capsys):
    manifest(rows(photo=lambda row: "" if row in (2, 7) else f"{row}.png", age=lambda row: row))
    check({**PHOTO, "ages": {"numeric": ["age"]}})
    assert table_of(capsys.readouterr().out, "samples.csv")["photo empty"] == ["16.7%", "33.3%", "0.0%"]


def test_a_missing_library_is_not_told_for_each_row(folder, monkeypatch):
    manifest(rows(scan=lambda row: f"{row}.nii"))
    for row in range(12):
        Path(f"{row}.nii").touch()
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(ConfigError, match=r"hybrid_lightning\[nifti\]"):
        check({"scan": {"volume": "scan"}})
    assert not Path("samples.problems.csv").exists()


def test_the_files_of_predict_are_opened_before_the_first_batch(folder, capsys):
    manifest(rows())
    assert command("fit", config=config()) == 0
    manifest([{"photo": f"new{row}.png", "sample": "same"} for row in range(3)], "later.csv")
    later = config(predict_path="later.csv", id="sample")
    capsys.readouterr()
    assert command("predict", "--ckpt_path", "last", config=later) == 0
    assert "in a batch" not in capsys.readouterr().out
    Path("new2.png").unlink()
    Path("1.png").unlink()  # not a file of predict
    assert command("predict", "--ckpt_path", "last", config=later) == 2
    assert "data.predict_path: 1 file of 'later.csv' cannot be used" in capsys.readouterr().err
    [path] = Path("runs").rglob("later.problems.csv")
    assert [row["row"] for row in rows_in(path)] == ["2"]
    assert command("check", config=later) == 2
    assert [row["row"] for row in rows_in()] == ["1"]


def test_all_kinds_of_files_are_read(folder, capsys):
    make_manifest(folder, rows=30)
    inputs = {
        "photo": {"image": "photo", "size": [8, 10]},
        "xray": {"image": "xray", "channels": 1},
        "scan": {"volume": "scan"},
        "emb": {"array": "emb"},
        "spectrum": {"array": "spectrum", "name": "values"},
        "curve": {"series": "curve"},
        "sound": {"audio": "sound", "seconds": 0.1},
        "note": {"text": "report"},
        "table": {"numeric": ["age", "dose"], "categorical": ["site", "sex"]},
    }
    options = {"path": "manifest.csv", "split_column": "split", "split_by": "patient", "id": "sample"}
    assert command("check", config=config(inputs, **options)) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0]: line for line in out[out.index("input ") :].splitlines() if line.split()}
    assert lines["photo"].split("  ")[-1].strip() == "3 × 8 × 10"
    assert "3 × 20 × 24" in lines["photo"]
    assert lines["scan"].endswith("1 × 6 × 8 × 10")
    assert lines["sound"].endswith("1 × 1600")
    assert lines["curve"].split("  ")[-1].endswith("× 2")
    assert lines["table"].endswith("4 columns")
    assert "letters" in lines["note"]


def test_a_file_that_fails_beside_others_gets_a_second_chance_alone(folder, monkeypatch):
    manifest(rows())
    Path("7.png").unlink()
    state = ImageInput.stated_shape

    def shy(entry: ImageInput, path: Path) -> tuple[int, ...]:
        if threading.current_thread() is not threading.main_thread():
            raise SystemError("AST constructor recursion depth mismatch")
        return state(entry, path)

    monkeypatch.setattr(ImageInput, "stated_shape", shy)
    with pytest.raises(ConfigError, match=r"1 file "):
        check(decode=False)
    assert [row["row"] for row in rows_in()] == ["7"]


# Shapes


def test_shapes_that_cannot_be_joined_are_refused_with_their_rows(folder, capsys):
    manifest(rows(), sides={2: (10, 9), 5: (10, 9), 7: (4, 12)})
    as_stored = config({"photo": {"image": "photo"}})
    for verb, path in (("check", "samples.problems.csv"), ("fit", "runs/small/version_0/samples.problems.csv")):
        assert command(verb, config=as_stored) == 2
        assert "row 2, photo, '2.png': its shape 3 × 10 × 9 is not that of most, 3 × 10 × 12" in capsys.readouterr().err
        assert [row["row"] for row in rows_in(path)] == ["2", "5", "7"]
    check()  # size makes them equal
    check({"photo": {"image": "photo"}}, batch_size=1)  # nothing is joined


def test_shapes_may_differ_where_transforms_make_them_equal_and_from_split_to_split(folder):
    manifest(rows(), sides={2: (10, 9), 5: (10, 9), 7: (9, 12)})
    crops = {
        split: [{"class_path": "RandomCrop", "init_args": {"size": s}}] for split, s in (("train", 6), ("eval", 8))
    }
    inputs = {"photo": {"image": "photo", **crops}}
    check(inputs)
    check(inputs, decode=False)
    assert command("fit", config=config(inputs)) == 0


def test_an_image_that_its_exif_data_turn_has_the_shape_of_the_turned_one(folder):
    table = rows(photo=lambda row: f"{row}.jpg")
    manifest(table)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (10, 12)).save("3.jpg", exif=exif)
    check({"photo": {"image": "photo"}}, decode=False)
    check({"photo": {"image": "photo"}})


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(
    ("given", "usual", "other"),
    [({"series": "file"}, (5, 2), (7, 3)), ({"volume": "file", "size": 4}, (4, 5, 6), (2, 4, 5, 6))],
    ids=["series", "volume"],
)
def test_a_wrong_number_of_channels_is_refused(folder, decode, given, usual, other):
    for row in range(12):
        np.save(f"{row}.npy", np.random.default_rng(row).random(other if row == 4 else usual))
    manifest(rows(photo=lambda row: "", file=lambda row: f"{row}.npy"))
    with pytest.raises(ConfigError, match=r"row 4, x, '4.npy': its shape .* is not that of most"):
        check({"x": given}, decode)
    assert [row["row"] for row in rows_in()] == ["4"]


def test_sounds_with_other_channels_than_the_config_says_are_refused(folder):
    import soundfile

    for row in range(12):
        soundfile.write(f"{row}.wav", np.zeros((200, 1 if row in (3, 8) else 2)), 1000)
    manifest(rows(photo=lambda row: "", file=lambda row: f"{row}.wav"))
    sound = {"audio": "file", "sample_rate": 1000, "seconds": 0.1, "channels": 2}
    with pytest.raises(ConfigError, match="it has 1 channels, and 'channels' is 2"):
        check({"x": sound})
    assert [row["row"] for row in rows_in()] == ["3", "8"]
    check({"x": {**sound, "channels": 1}})


def test_a_series_that_is_no_numbers_is_found(folder, capsys):
    for row in range(12):
        Path(f"{row}.csv").write_text("a,b\n1,2\n3,4\n" if row not in (2, 9) else "a,b\n1,2\n3,x\n", encoding="utf-8")
    manifest(rows(photo=lambda row: "", file=lambda row: f"{row}.csv"))
    with pytest.raises(ConfigError, match="2 files"):
        check({"x": {"series": "file"}})
    assert [row["row"] for row in rows_in()] == ["2", "9"]
    assert command("fit", config=config({"x": {"series": "file"}})) == 2
    assert "row 2: '2.csv'" in capsys.readouterr().err


# Ids, labels, columns


def test_ids_that_stand_twice_are_refused_those_in_two_splits_first(folder, capsys):
    manifest(rows(sample=["a", "a", "b", "c", "x", "b", "d", "f", "c", "y", "g", "f"]))
    assert command("fit", config=config(id="sample")) == 2
    err = capsys.readouterr().err
    assert "data.id: 4 values of 'sample' stand in several rows, 2 of them in more than one split" in err
    assert "'c' (train: row 3; val: row 8), 'f' (val: row 7; test: row 11)" in err
    assert "'a' (train: rows 0, 1), 'b' (train: rows 2, 5)." in err
    [path] = Path("runs").rglob("samples.problems.csv")
    assert {row["row"]: row["problem"] for row in rows_in(path)}["8"] == "'c' stands in rows 3, 8"
    assert [row["row"] for row in rows_in(path)] == ["0", "1", "2", "3", "5", "7", "8", "11"]
    assert {row["key"] for row in rows_in(path)} == {"id"}
    check()  # without ids a row is its own


def test_empty_ids_are_told(folder, capsys):
    manifest(rows(sample=["", "a", "", *"bcdefghij"]))
    check(id="sample")
    assert "warning: data.id: column 'sample' is empty in rows 0, 2" in capsys.readouterr().out


def test_a_column_with_one_value_in_the_training_rows_is_told(folder, capsys):
    manifest(rows(age=[30] * 6 + [31] * 6, site=["x", "", "x", "x", "x", "x", *"yzyzyz"], dose=lambda row: row))
    table = {"numeric": ["age", "dose"], "categorical": ["site"]}
    check({"table": table})
    out = capsys.readouterr().out
    told = [line for line in out.splitlines() if line.startswith("warning")]
    assert len(told) == 2
    assert "data.inputs.table: column 'age' holds nothing but 30 in the training rows" in told[0]
    assert "column 'site' holds nothing but 'x'" in told[1]


def test_a_number_that_may_be_a_code_is_asked_about(folder, capsys):
    manifest(rows(age=lambda row: 30 + row, zip=lambda row: [8001, 8032, 9000][row % 3]))
    check({"table": {"numeric": ["age", "zip"]}})
    [told] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert told.startswith("warning: data.inputs.table: column 'zip' holds 3 whole numbers, ")
    assert "codes, or a quantity?" in told
    check({"table": {"numeric": ["age"], "categorical": ["zip"]}})
    assert "codes, or" not in capsys.readouterr().out


def test_labels_that_no_training_row_has_end_a_check(folder):
    manifest(rows(label=lambda row: "new" if row == 7 else "ab"[row % 2]))
    with pytest.raises(ConfigError, match="'new' stand in val rows"):
        check()


def test_counts_equal_those_of_the_file(folder, capsys):
    path = make_manifest(folder, rows=40, missing=0.1)
    inputs = {"photo": {"image": "photo"}, "t": {"numeric": ["age", "dose"]}}
    assert command("check", config=config(inputs, path=str(path), split_by="patient")) == 0
    table = table_of(capsys.readouterr().out, "manifest.csv")
    read = rows_in(path)
    splits = ("train", "val", "test")
    counts = Counter((row["label"], row["split"]) for row in read)
    for label in ("low", "middle", "high"):
        assert table[f"label {label}"] == [str(counts[label, split]) for split in splits]
    patients = [len({row["patient"] for row in read if row["split"] == split}) for split in splits]
    assert table["values of patient"] == [str(count) for count in patients]
    for key, columns in (("photo", ["photo"]), ("t", ["age", "dose"])):
        empty = [[not row[c] for row in read if row["split"] == split for c in columns] for split in splits]
        assert table[f"{key} empty"] == [f"{sum(cells) / len(cells):.1%}" for cells in empty]


def test_many_classes_are_summed_up_and_numbers_shown_by_their_range(folder, capsys):
    table = [{**row, "label": f"c{number % 14:02}", "split": "train"} for number, row in enumerate(rows(12) * 4)]
    manifest([{**row, "score": number / 4} for number, row in enumerate(table)])
    check()
    found = table_of(capsys.readouterr().out, "samples.csv")
    assert found["3 others"] == ["9", "0", "0"]
    assert sum(int(cells[0]) for name, cells in found.items() if name.startswith(("label", "3 others"))) == 48
    check(target="score")
    assert "score        0 to 11.75" in capsys.readouterr().out


# The target and the model


@pytest.mark.parametrize("verb", ["check", "fit", "plan"])
@pytest.mark.parametrize(
    ("label", "target", "model", "said"),
    [
        (["1,100", "850", "2,000"], "label", "HybridRegressor", "data.target: 3 of the 3 different values"),
        (
            ["cheap", "dear", "fair"],
            "label",
            "HybridRegressor",
            "data.target: column 'label': it is multiclass, with 'cheap'",
        ),
        ([0.0, 1.0, 2.0], "label", "HybridClassifier", "data.target: 'label' is a quantity.*kind: multiclass"),
        (["a;b", "a", "c"], "label", "HybridClassifier", "data.target: column 'label' holds 'a;b'"),
        (["a", "b"], "label", "HybridClassifier", "it has 2 classes, 'a', 'b', and model.num_classes is 3"),
        (["a;b", "a", "c"], {"column": "label", "kind": "multilabel"}, "HybridClassifier", "it is multilabel"),
    ],
)
def test_a_target_that_the_model_does_not_learn_is_refused(folder, capsys, verb, label, target, model, said):
    manifest(rows(label=lambda row: label[row % len(label)], age=lambda row: row))
    settings = config({"ages": {"numeric": ["age"]}}, target=target)
    settings["model"]["class_path"] = model
    if model == "HybridRegressor":
        del settings["model"]["init_args"]["num_classes"]
    assert command(verb, config=settings) == 2
    assert re.search(said, capsys.readouterr().err)


# What is odd


def test_odd_files_and_spellings_are_told_by_check(folder, capsys):
    table = rows(sample=lambda row: f"s{row}", site=lambda row: ["A", "a", "b"][row % 3], note=lambda row: "x")
    table[4]["note"] = "\n".join(["a line"] * 9)
    manifest(table)
    shutil.copy("0.png", "8.png")
    Image.new("RGB", (12, 10)).save("3.png")
    check({**PHOTO, "t": {"categorical": ["site"]}, "n": {"text": "note"}}, split_by="sample", id="sample")
    told = [line.removeprefix("warning: ") for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert told == [
        "data.inputs.t: column 'site' holds 'A', 'a', which count as different ones; write them alike",
        "data.path: column 'note' has a cell with 8 line ends, in row 4. If these are rows of their own, a quote is "
        "missing",
        "data.inputs.photo: 1 of 12 files hold one value alone; the first is row 3, '3.png'",
        "data.inputs.photo: 1 file stands in several rows, 1 of them in more than one split, so that a model is tested "
        "on what it has seen, 1 of them with different labels; such as '0.png', which have equal bytes as '8.png' "
        "(train: row 0; val: row 8)",
    ]


def test_a_line_of_names_above_a_series_is_told_unless_the_config_states_it(folder, capsys):
    manifest(rows(curve=lambda row: f"{row}.csv"))
    for row in range(12):
        Path(f"{row}.csv").write_text("flow,pressure\n" + f"{row},1\n" * (row + 5))
    told = []
    for options in ({}, {"header": True}):
        check({"curve": {"series": "curve", **options}})
        told.append("begin with a line that is not a step" in capsys.readouterr().out)
    assert told == [True, False]


def test_the_length_of_one_series_is_not_shown_as_that_of_all(folder, capsys):
    manifest(rows(curve=lambda row: f"{row}.csv"))
    for row in range(12):
        Path(f"{row}.csv").write_text("0.5,1\n" * row + "0.25,2\n" * 5)
    lines = []
    for decode in (True, False):
        check({"curve": {"series": "curve"}}, decode=decode)
        out = capsys.readouterr().out
        lines.append(out[out.index("in a batch") :])
    assert "5 to 16 × 2" in lines[0]
    assert "× 2" not in lines[1]


def test_a_cell_that_names_a_pipe_is_refused_without_waiting(folder):
    manifest(rows())
    Path("7.png").unlink()
    os.mkfifo("7.png")
    with pytest.raises(ConfigError, match=r"row 7, photo, '7.png': there is no such file in '.'. It is a pipe"):
        check()


def test_a_text_taken_for_files_is_refused_with_a_short_cell(folder):
    manifest(rows(photo=lambda row: f"{row}.png", note=lambda row: f"{row} words " * 100))
    with pytest.raises(ConfigError, match=r"there is no such file in '.'. It is a text") as told:
        check({"x": {"image": "note", "size": 8}})
    assert len(str(told.value)) < 10_000


# Where and when


def test_of_data_without_checks_a_batch_is_tried(folder, capsys):
    assert command("check") == 0
    told = capsys.readouterr().out
    assert "check: DigitsDataModule cannot check its data; the model is tried with a batch of it" in told
    assert told.endswith("check: nothing is wrong\n")


def test_a_plan_opens_no_files_but_those_of_its_example(folder):
    manifest(rows())
    Path("11.png").unlink()
    assert command("plan", config=config()) == 0


def test_data_that_were_set_up_before_are_checked_by_the_fit(folder):
    from hybrid_lightning.cli.from_config import from_config

    manifest(rows())
    Path("11.png").unlink()
    built = from_config(write(config()))
    built.data.setup("fit")
    with pytest.raises(ConfigError, match="1 file "):
        built.trainer.fit(built.model, built.data)


def test_a_check_leaves_the_random_state_as_it_was(folder):
    manifest(rows())
    flip = {"photo": {"image": "photo", "size": 8, "eval": ["RandomFlip"]}}
    torch.manual_seed(3)
    check(flip)
    after = torch.rand(())
    torch.manual_seed(3)
    data = ManifestDataModule("samples.csv", flip, "label", split_column="split")
    data.setup("fit")
    assert after == torch.rand(())


def test_an_error_of_the_first_rank_is_one_of_all_ranks():
    class Strategy:
        heard: str | None = None

        def broadcast(self, words: str | None) -> str | None:
            self.heard = self.heard if words is None else words
            return self.heard

    class Ranks:
        strategy = Strategy()
        is_global_zero = True

    def fail() -> None:
        raise OSError("no space left")

    trainer: Any = Ranks()
    with pytest.raises(OSError, match="no space"):
        first_rank_first(trainer, fail)
    trainer.is_global_zero = False
    with pytest.raises(ConfigError, match="no space"):
        first_rank_first(trainer, fail)


def test_two_ranks_end_together(folder):
    manifest(rows())
    broken = break_seven()
    settings = config()
    settings["trainer"] |= {"devices": 2, "strategy": "ddp"}
    done = ranks(2, "-m", "hybrid_lightning", "fit", "--config", write(settings), cwd=folder)
    assert [one.returncode for one in done] == [2, 2]
    assert all("7 files of 'samples.csv' cannot be used" in one.stderr for one in done)
    [path] = Path("runs/small/version_0").glob("*.problems.csv")
    assert [int(row["row"]) for row in rows_in(path)] == broken
    for row in broken:
        Path(f"{row}.png").unlink(missing_ok=True)
    manifest(rows())
    out = succeed_on(2, "-m", "hybrid_lightning", "fit", "--config", write(settings), cwd=folder)
    assert "".join(out).count("in a batch") == 1


@pytest.mark.parametrize("decode", [False, True])
def test_series_that_are_large_beside_their_spread_are_no_problem_because_they_are_standardized(folder, decode):
    steps = 1e9 + np.sin(np.arange(50.0))
    for row in range(12):
        np.save(f"{row}.npy", steps + row)
    table = [{"steps": f"{row}.npy", "label": "ab"[row % 2], "split": SPLITS[row]} for row in range(12)]
    write_rows("samples.csv", table)
    series = {"steps": {"series": "steps"}}
    ManifestDataModule("samples.csv", series, "label", split_column="split").check(decode)
    series["steps"]["standardize"] = False
    with pytest.raises(ConfigError, match="large beside their differences"):
        ManifestDataModule("samples.csv", series, "label", split_column="split").check(decode)
