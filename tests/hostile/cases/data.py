"""Kinds 3 to 6 and 10: values, spellings and tables of a manifest, and files that are none."""

import io
import json
import os
import shutil
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import soundfile
import yaml
from PIL import Image

from tests.hostile.harness import Box, case

ROWS = 30
NUMBERS = {"x": {"numeric": ["size"]}}
Write = Callable[[], None]


def config(
    inputs: dict[str, Any] | None = None, target: Any = "label", model: str = "HybridClassifier", **data: Any
) -> None:
    """Writes ``x.yaml``, a run of an epoch on ``m.csv``."""
    inputs = inputs or NUMBERS
    modules = {
        "image": "ConvExtractor",
        "series": "SequenceTransformer",
        "audio": "ResidualConv1d",
        "text": "SequenceTransformer",
    }
    parts = {key: {"module": modules.get(next(iter(given)), "MLP")} for key, given in inputs.items()}
    arguments: dict[str, Any] = {"parts": parts}
    if model == "HybridClassifier":
        arguments["num_classes"] = 2
    options = {"path": "m.csv", "inputs": inputs, "target": target, "workers": 0, **data}
    content = {
        "model": {"class_path": model, "init_args": arguments},
        "data": {"class_path": "ManifestDataModule", "init_args": options},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
    }
    Path("x.yaml").write_text(yaml.safe_dump(content))


def table(path: str = "m.csv", rows: int = ROWS, **columns: Any) -> pandas.DataFrame:
    """Writes a table with ``size`` and ``label``, and with other columns: a value, or a function of the row."""
    columns = {"size": lambda row: row, "label": lambda row: "ab"[row % 2], **columns}
    cells = {name: [made(row) if callable(made) else made for row in range(rows)] for name, made in columns.items()}
    frame = pandas.DataFrame(cells)
    frame.to_csv(path, index=False)
    return frame


def checked(
    kind: int, place: str, mechanism: str, says: str, verbs: tuple[str, ...] = ("check", "fit")
) -> Callable[[Write], Write]:
    """Registers a function that writes ``x.yaml`` and its data, which these commands have to refuse."""

    def register(write: Write) -> Write:
        def run(box: Box) -> None:
            write()
            for verb in verbs:
                box.refused(verb, "--config", "x.yaml", says=says)

        run.__name__ = write.__name__
        case(kind, place, mechanism)(run)
        return write

    return register


def warned(kind: int, place: str, mechanism: str, says: str) -> Callable[[Write], Write]:
    """Registers a function that writes data of which ``check`` has to tell something."""

    def register(write: Write) -> Write:
        def run(box: Box) -> None:
            write()
            told = box.accepted("check", "--config", "x.yaml")
            assert says in told.out, told.out[-800:]

        run.__name__ = write.__name__
        case(kind, place, mechanism)(run)
        return write

    return register


def values_of(inputs: dict[str, Any], **options: Any) -> Any:
    """The values of the first row of ``m.csv``."""
    from hybrid_lightning import ManifestDataModule

    data = ManifestDataModule("m.csv", inputs, "label", workers=0, **options)
    data.setup("fit")
    value = data.datasets["train"].samples.read(0, False)["x"]
    return value["values"] if isinstance(value, dict) else value


# 3: the target and the model


@checked(3, "target of text", "prices with commas", "are numbers, but for what stands in such as")
def prices_with_commas() -> None:
    table(label=lambda row: ["850", "1,100", "2,000"][row % 3])
    config(model="HybridRegressor")


@checked(3, "target of text", "names for a regressor", "HybridRegressor learns numbers")
def names_for_a_regressor() -> None:
    table()
    config(model="HybridRegressor")


@checked(3, "target of floats", "classes 0.0, 1.0, 2.0", "is a quantity.*kind: multiclass")
def floating_classes() -> None:
    table(label=lambda row: float(row % 3))
    config()


@checked(3, "target of text", "several labels in a cell", "several labels in a cell")
def labels_for_one_class() -> None:
    table(label=lambda row: ["a;b", "a"][row % 2])
    config()


@checked(3, "num_classes", "fewer than the data have", "it has 3 classes")
def a_class_more() -> None:
    table(label=lambda row: "abc"[row % 3])
    config()


@checked(3, "inputs", "the target among the columns", "column 'label' is the target")
def the_answer_as_an_input() -> None:
    table()
    config({"x": {"categorical": ["size", "label"]}})


# 4: a part of a value is lost


@case(4, "series of numpy", "time stamps rounded before they are centred")
def time_stamps(box: Box) -> None:
    table(file=lambda row: f"{row}.npy")
    for row in range(ROWS):
        np.save(f"{row}.npy", 1_700_000_000_000 + 60_000.0 * row + 1000.0 * np.arange(20))
    assert len(values_of({"x": {"series": "file"}}).unique()) == 20


@case(4, "series of text", "prices with cents rounded before they are centred")
def large_prices(box: Box) -> None:
    table(file=lambda row: f"{row}.csv")
    for row in range(ROWS):
        np.savetxt(f"{row}.csv", 1e9 + 0.01 * np.arange(20) + row, "%.2f")
    assert len(values_of({"x": {"series": "file"}}).unique()) == 20


@checked(4, "array", "a counter above float32", "large beside their differences")
def a_counter() -> None:
    table(file=lambda row: f"{row}.npy")
    for row in range(ROWS):
        np.save(f"{row}.npy", 2**40 + np.arange(9))
    config({"x": {"array": "file"}})


@checked(4, "target", "time stamps", "column 'label' cannot be learned")
def a_target_of_time_stamps() -> None:
    table(label=lambda row: 1_700_000_000_000 + row)
    config(model="HybridRegressor")


@case(4, "series of text", "a header of numbers")
def a_header_of_numbers(box: Box) -> None:
    table(file=lambda row: f"{row}.csv")
    for row in range(ROWS):
        pandas.DataFrame(np.random.default_rng(row).random((10, 2)) + 5).to_csv(f"{row}.csv", index=False)
    assert values_of({"x": {"series": "file", "standardize": False}}).min() >= 5


@case(4, "series of text", "the index of pandas as a channel")
def an_index_of_pandas(box: Box) -> None:
    table(file=lambda row: f"{row}.csv")
    for row in range(ROWS):
        pandas.DataFrame(np.random.default_rng(row).random((10, 2)) + 5).to_csv(f"{row}.csv")
    assert values_of({"x": {"series": "file", "standardize": False}}).shape == (10, 2)


@checked(4, "series of text", "a first line that may be values", "'header: true' or 'header: false'")
def a_doubtful_header() -> None:
    table(file=lambda row: f"{row}.csv")
    for row in range(ROWS):
        Path(f"{row}.csv").write_text("0\n" + "\n".join(str(value) for value in range(3, 12)))
    config({"x": {"series": "file"}})


@checked(4, "volume", "complex numbers", "not real numbers; store them as channels", verbs=("check",))
def a_complex_volume() -> None:
    import nibabel

    table(file=lambda row: f"{row}.nii")
    for row in range(ROWS):
        nibabel.save(nibabel.Nifti1Image(np.full((3, 3, 3), 1 + 1j, np.complex64), np.eye(4)), f"{row}.nii")
    config({"x": {"volume": "file"}})


@checked(4, "volume", "structured colors", "not real numbers; store them as channels", verbs=("check",))
def a_colored_volume() -> None:
    import nibabel

    table(file=lambda row: f"{row}.nii")
    for row in range(ROWS):
        colors = np.zeros((3, 3, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        nibabel.save(nibabel.Nifti1Image(colors, np.eye(4)), f"{row}.nii")
    config({"x": {"volume": "file"}})


@case(4, "image", "alpha")
def a_drawing_on_a_transparent_ground(box: Box) -> None:
    table(file=lambda row: f"{row}.png")
    for row in range(ROWS):
        drawing = np.zeros((20, 24, 4), np.uint8)
        drawing[5:15, 5 : 6 + row % 9, 3] = 255
        Image.fromarray(drawing).save(f"{row}.png")
    assert len(values_of({"x": {"image": "file"}}).unique()) == 2


@warned(4, "image", "pages", "have several pages or frames")
def pages() -> None:
    table(file=lambda row: f"{row}.tif")
    for row in range(ROWS):
        pages = [Image.effect_noise((8, 8), 50) for _ in range(2)]
        pages[0].save(f"{row}.tif", save_all=True, append_images=pages[1:])
    config({"x": {"image": "file"}})


@warned(4, "image", "12 bits in 16", "store at most 12 bits in 16")
def dark_images() -> None:
    table(file=lambda row: f"{row}.png")
    for row in range(ROWS):
        Image.fromarray(np.random.default_rng(row).integers(0, 4096, (8, 8)).astype(np.uint16)).save(f"{row}.png")
    config({"x": {"image": "file"}})


@case(4, "sound", "a length that is guessed")
def a_guessed_length(box: Box) -> None:
    table(file=lambda row: "a.mp3")
    content = io.BytesIO()
    soundfile.write(content, 0.1 * np.random.default_rng(0).standard_normal(44100), 44100, format="MP3")
    raw = content.getvalue()
    Path("a.mp3").write_bytes(raw[raw.index(raw[:2], 4) :])
    assert values_of({"x": {"audio": "file", "sample_rate": 44100}}).shape[1] >= 44100


@checked(4, "sound", "whole numbers in a floating file", "a sound's lie from -1 to 1")
def loud_sounds() -> None:
    table(file=lambda row: f"{row}.wav")
    for row in range(ROWS):
        soundfile.write(f"{row}.wav", np.full(2000, 30000.0), 16000, subtype="FLOAT")
    config({"x": {"audio": "file"}})


# 5: one thing under two spellings


def splits_of_patients(spell: Callable[[str, int], str]) -> list[set[int]]:
    """The splits of each of ten patients, whose name `spell` writes for each row."""
    from hybrid_lightning import ManifestDataModule

    table(patient=lambda row: spell(f"{row // 3 + 1}", row))
    data = ManifestDataModule("m.csv", NUMBERS, "label", split_by="patient")
    data.setup("fit")
    return [set(data.split[start : start + 3].tolist()) for start in range(0, ROWS, 3)]


def grouped(mechanism: str) -> Callable[[Callable[[str, int], str]], Callable[[str, int], str]]:
    """Registers a way of writing a patient's name, all rows of whom have to stay in one split."""

    def register(spell: Callable[[str, int], str]) -> Callable[[str, int], str]:
        def run(box: Box) -> None:
            assert all(len(found) == 1 for found in splits_of_patients(spell))

        run.__name__ = spell.__name__
        case(5, "split_by", mechanism)(run)
        return spell

    return register


@grouped("blanks at the end")
def blanks(name: str, row: int) -> str:
    return f"p{name}" + " " * (row % 2)


@grouped("letter case")
def letter_case(name: str, row: int) -> str:
    return f"{'pP'[row % 2]}{name}"


@grouped("decimals")
def decimals(name: str, row: int) -> str:
    return name + [".0", "", ".00"][row % 3]


@grouped("leading zeros")
def leading_zeros(name: str, row: int) -> str:
    return "0" * (row % 3) + name


@grouped("decomposed letters")
def decomposed(name: str, row: int) -> str:
    return unicodedata.normalize("NFD" if row % 2 else "NFC", f"é{name}")


@grouped("blanks within")
def blanks_within(name: str, row: int) -> str:
    return "p" + " " * (1 + row % 2) + name


@checked(5, "split_by", "with a split column that parts the spellings", "in more than one split")
def a_patient_in_two_splits() -> None:
    table(patient=lambda row: f"{'pP'[row % 2]}{row // 2}", split=lambda row: ["train", "test"][row % 2])
    config(split_by="patient", split_column="split")


@checked(5, "id", "blanks at the end", "values of 'name' stand in several rows")
def one_id_twice() -> None:
    table(name=lambda row: f"s{row // 2}" + " " * (row % 2))
    config(id="name")


@checked(5, "target", "letter case", "seem to be one class")
def classes_by_letter_case() -> None:
    table(label=lambda row: ["yes", "Yes", "no"][row % 3])
    config()


@case(5, "target", "names depend on how the kind was said")
def names_of_booleans(box: Box) -> None:
    from hybrid_lightning import ManifestDataModule

    for values in ([True, False], ["007", "010"]):
        table(label=lambda row, values=values: values[row % 2])
        for target in ("label", {"column": "label", "kind": "binary"}):
            data = ManifestDataModule("m.csv", NUMBERS, target)
            data.setup("fit")
            assert data.target_names == sorted(map(str, values))


@case(5, "categories", "numbers that pandas writes with decimals")
def decimals_of_categories(box: Box) -> None:
    config({"x": {"categorical": ["site"], "one_hot": True}, "size": {"numeric": ["size"]}}, predict_path="new.csv")
    table(site=lambda row: row % 3)
    box.accepted("fit", "--config", "x.yaml")
    pandas.DataFrame({"site": [1.0, 2.0, 0.0]}).assign(size=1).to_csv("new.csv", index=False)
    told = box.accepted("predict", "--config", "x.yaml", "--ckpt_path", "last")
    assert "unknown" not in told.out + told.err


@case(5, "categories", "a column of which nothing is known")
def nothing_known(box: Box) -> None:
    config({"x": {"categorical": ["site"], "one_hot": True}}, predict_path="new.csv")
    table(site=lambda row: f"site {row % 3}")
    box.accepted("fit", "--config", "x.yaml")
    pandas.DataFrame({"site": [1, 2, 0]}).to_csv("new.csv", index=False)
    box.refused("predict", "--config", "x.yaml", "--ckpt_path", "last", says="no cell of column 'site'")


@case(5, "text", "decomposed letters and vowel signs")
def words_with_marks(box: Box) -> None:
    from hybrid_lightning.data.inputs.text import words_of

    assert words_of(unicodedata.normalize("NFD", "naïve café")) == ["naïve", "café"]
    assert words_of("यह फिल्म") == ["यह", "फिल्म"]


@warned(5, "image", "equal bytes under two names", "which have equal bytes as")
def copies() -> None:
    table(file=lambda row: f"{row}.png")
    for row in range(ROWS):
        Image.effect_noise((8, 8), 50).save(f"{row}.png")
    for row in range(1, ROWS, 2):
        shutil.copy(f"{row - 1}.png", f"{row}.png")
    config({"x": {"image": "file"}})


@warned(5, "categories", "letter case", "holds 'A', 'a', which count as different ones")
def categories_by_letter_case() -> None:
    table(site=lambda row: "Aa"[row % 2])
    config({"x": {"categorical": ["site"], "one_hot": True}})


# 6: tables that are no such table


def content_of(mechanism: str, content: str | bytes, says: str, name: str = "m.csv") -> None:
    """Registers the content of a manifest that has to be refused."""

    def run(box: Box) -> None:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        config(path=name)
        for verb in ("check", "fit"):
            box.refused(verb, "--config", "x.yaml", says=says)

    run.__name__ = mechanism.replace(" ", "_").replace(",", "")
    case(6, f"manifest {name}", mechanism)(run)


GOOD = "size,label\n" + "".join(f"{row},{'ab'[row % 2]}\n" for row in range(ROWS))
content_of("a quote that is never closed", GOOD + '1,"a\n' + GOOD, "cell in line 32 that opens a quote")
content_of("a quote closed by the next cell", GOOD + '1,"a\n2,"b"\n3,a\n', "cell in line 32 that opens a quote")
content_of("quotes within quotes", GOOD + '1,"say "a" twice"\n', "cell in line 32 that opens a quote")
content_of("semicolons and decimal commas", "size;label\n" + "".join(f"{i},5;a\n" for i in range(9)), "semicolons")
content_of("tabs", GOOD.replace(",", "\t"), "separated by tabs")
content_of("JSON", json.dumps([{"size": 1, "label": "a"}]), "is JSON, not CSV")
content_of("a zip archive", b"PK\x03\x04" + bytes(40), "is a zip archive")
content_of("a web page", "<!DOCTYPE html><html></html>", "is a web page")
content_of("a pointer of Git LFS", "version https://git-lfs.github.com/spec/v1\noid 1\n", "pointer of Git LFS")
content_of("UTF-16", GOOD.encode("utf-16"), "UTF-16")
content_of("no header", GOOD.partition("\n")[2], "first line of a table has to name its columns")
content_of("a row with a cell too many", GOOD + "1,a,3\n", "Row #32")
content_of("latin-1", (GOOD + "1,é\n").encode("latin-1"), "not in UTF-8")
content_of("nothing", "", "cannot be read")
content_of("zero bytes", bytes(1000), "data.path: ")
content_of("text", "no parquet", "cannot be read", "m.parquet")
content_of("a number", "3", "cannot be read|not a table", "m.json")
content_of("an archive that is no sheet", b"PK\x03\x04" + bytes(40), "cannot be read|is an Excel file", "m.xlsx")


def cell_of(mechanism: str, cell: str, says: str) -> None:
    """Registers a cell that names no local file."""

    def run(box: Box) -> None:
        Path("photos").mkdir()
        Path("photos/a.png").touch()
        table(file=cell)
        config({"x": {"image": "file"}})
        box.refused("check", "--config", "x.yaml", says=says)

    run.__name__ = "cell_" + mechanism.replace(" ", "_")
    case(6, "cell", mechanism)(run)


cell_of("home", "~/a.png", "'~' is not replaced")
cell_of("backslashes", "photos\\a.png", "backslashes")
cell_of("URL", "https://example.org/a.png", "It is a URL")
cell_of("several files", "a.png;b.png", "several files")
cell_of("blanks", "photos/a.png ", "without the blanks")
cell_of("letter case", "photos/A.PNG", "in other letters")
cell_of("a folder", "photos", "It is a folder")


# 10: limits and special files


@checked(10, "cell", "a pipe", "a pipe, a device or a socket")
def a_pipe() -> None:
    os.mkfifo("a.png")
    table(file="a.png")
    config({"x": {"image": "file"}})


@checked(10, "cell", "an endless device", "a pipe, a device or a socket")
def a_device() -> None:
    Path("a.csv").symlink_to("/dev/zero")
    table(file="a.csv")
    config({"x": {"series": "file"}})


@checked(10, "cell", "a name of 3000 letters", "It is a text rather than the name of a file")
def a_long_name() -> None:
    table(file="long " * 600)
    config({"x": {"image": "file"}})


@checked(10, "cell", "a link to itself", "there is no such file")
def a_circle() -> None:
    Path("a.png").symlink_to("a.png")
    table(file="a.png")
    config({"x": {"image": "file"}})


@checked(10, "manifest", "a pipe", "there is no file 'pipe.csv'")
def a_manifest_that_is_a_pipe() -> None:
    os.mkfifo("pipe.csv")
    config(path="pipe.csv")


@checked(10, "manifest", "a name of 300 letters", "there is no file")
def a_manifest_of_a_long_name() -> None:
    config(path="m" * 300)


@case(10, "config", "a name of 300 letters")
def a_config_of_a_long_name(box: Box) -> None:
    box.refused("check", "--config", "x" * 300, says="there is no file")


@case(10, "config", "a pipe")
def a_config_that_is_a_pipe(box: Box) -> None:
    os.mkfifo("x.yaml")
    box.refused("check", "--config", "x.yaml", says="there is no file")


def config_of(mechanism: str, text: str, says: str) -> None:
    """Registers a config that has to be refused."""

    def run(box: Box) -> None:
        Path("x.yaml").write_text(text)
        box.refused("check", "--config", "x.yaml", says=says)

    run.__name__ = "config_" + mechanism.replace(" ", "_")
    case(10, "config", mechanism)(run)


LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'ha'] * 9)}]\n" for n in range(27))
config_of("aliases of aliases", LAUGHS, "with its aliases it holds more than")
config_of("an alias within itself", "a: &a [*a]", "an alias stands within what it names")
config_of("50000 brackets", "a: " + "[" * 50_000, "nested too deeply")
config_of("a number of 5000 digits", "a: " + "9" * 5000, "not valid YAML")
config_of("a date that is none", "a: 2020-02-30", "not valid YAML")


@checked(10, "array", "a small file that becomes 4.3 GiB", "more than a sample may have", verbs=("check",))
def a_bomb_of_zeros() -> None:
    header = {"descr": "|b1", "fortran_order": False, "shape": (2**30 + 2**26,)}
    with (
        zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as file,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range((2**30 + 2**26) // 2**24):
            file.write(bytes(2**24))
    table(file="a.npz")
    config({"x": {"array": "file"}})


@checked(10, "sound", "a rate of 1 that is resampled", "more than a sample may have", verbs=("check",))
def a_slow_sound() -> None:
    soundfile.write("a.wav", np.zeros(1_000_000), 1)
    table(file="a.wav")
    config({"x": {"audio": "file", "sample_rate": 8000}})


@case(10, "statistics", "words that are more than the option allows")
def too_many_words(box: Box) -> None:
    damaged_statistics(box, lambda entry: entry["statistics"].update(words=[str(n) for n in range(20_000)]))


@case(10, "statistics", "words that are a number")
def words_that_are_a_number(box: Box) -> None:
    damaged_statistics(box, lambda entry: entry["statistics"].update(words=5))


@case(10, "statistics", "a shape of a terabyte")
def a_shape_of_a_terabyte(box: Box) -> None:
    damaged_statistics(box, lambda entry: entry.update(shape={"shape": [10**12], "dtype": "float32"}))


@case(10, "statistics", "an input that is a list")
def an_input_that_is_a_list(box: Box) -> None:
    damaged_statistics(box, lambda entry: entry.update(columns=3))


def damaged_statistics(box: Box, edit: Callable[[dict[str, Any]], None]) -> None:
    """A checkpoint whose statistics `edit` has damaged is refused by ``data.statistics`` and by predict."""
    import torch

    table(note=lambda row: f"word{row % 3}")
    config({"x": {"text": "note"}})
    box.accepted("fit", "--config", "x.yaml")
    content = torch.load("runs/x/version_0/checkpoints/last.ckpt", weights_only=True)
    edit(content["ManifestDataModule"]["inputs"]["x"])
    torch.save(content, "e.ckpt")
    box.refused("check", "--config", "x.yaml", "--data.statistics", "e.ckpt", says="damaged")
    box.refused("predict", "--config", "x.yaml", "--ckpt_path", "e.ckpt", says="damaged")
