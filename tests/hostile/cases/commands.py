"""Kinds 9 and 10: commands whose output cannot be written, on machines that lack something, and their own words."""

import os
from pathlib import Path

from tests.hostile.cases.checkpoints import RUN
from tests.hostile.cases.data import config, table
from tests.hostile.harness import Box, case

CONFIG = ("--config", "small.yaml")
LAST = ("--ckpt_path", str(RUN / "last.ckpt"))
LONG = "y" * 300
WORDS = {
    "fit": CONFIG,
    "validate": (*CONFIG, *LAST),
    "test": (*CONFIG, *LAST),
    "predict": (*CONFIG, *LAST, "--output", "o.csv"),
    "embed": (*CONFIG, *LAST, "--output", "o.npz"),
    "probe": (*CONFIG, *LAST, "--output", "o.csv"),
    "export": (*CONFIG, *LAST, "--output", "o.safetensors", "--format", "safetensors"),
    "export_part": (*LAST, "--part", "body", "--output", "o.safetensors"),
    "plan": CONFIG,
}


def full_output(command: str) -> None:
    """Registers a command whose standard output has no room."""

    def run(box: Box) -> None:
        box.start_from("fitted")
        [told] = box.together([(command, *WORDS[command])], OUTPUT=["/dev/full"])
        assert told.code == 2, told
        box.says(told, "No space left on device")

    run.__name__ = f"full_output_of_{command}"
    case(9, f"standard output of {command}", "a full disk")(run)


for each in ("plan", "predict", "export_part", "fit"):
    full_output(each)


def closed_output(command: str) -> None:
    """Registers a command whose standard output nobody reads."""

    def run(box: Box) -> None:
        box.start_from("fitted")
        [told] = box.together([(command, *WORDS[command])], CLOSED_OUTPUT=["1"])
        assert told.code == 2, told
        box.says(told, "standard output was closed")

    run.__name__ = f"closed_output_of_{command}"
    case(9, f"standard output of {command}", "a pipe that nobody reads")(run)


for each in ("plan", "probe", "test"):
    closed_output(each)


def limited_output(command: str, options: dict[str, str]) -> None:
    """Registers a command whose file does not fit."""

    def run(box: Box) -> None:
        box.start_from("fitted")
        words = list(WORDS[command])
        for name, value in options.items():
            words[words.index(name) + 1] = value
        [told] = box.together([(command, *words)], FILE_SIZE=["700"])
        assert told.code == 2, told
        box.says(told, "cannot be written: .*File too large")
        assert not list(Path().glob("o.*")), list(Path().glob("o.*"))

    run.__name__ = f"limited_{command}_{'_'.join(options.values())}".replace(".", "_")
    case(9, f"--output of {command} {' '.join(options.values())}".strip(), "a limit on the size of files")(run)


limited_output("embed", {})
limited_output("embed", {"--output": "o.parquet"})
limited_output("export", {})
limited_output("export_part", {})


@case(9, "--output of predict", "a limit on the size of files")
def limited_predictions(box: Box) -> None:
    box.start_from("fitted")
    [told] = box.together([("predict", *WORDS["predict"])], FILE_SIZE=["3000"])
    assert told.code == 2, told
    box.says(told, "cannot be written: .*File too large")
    assert not list(Path().glob("o.*"))


def long_output(command: str) -> None:
    """Registers a command that is given a name that no file can have."""

    def run(box: Box) -> None:
        box.start_from("fitted")
        words = list(WORDS[command])
        place = words.index("--output") + 1
        words[place] = f"{LONG}{Path(words[place]).suffix}"
        box.refused(command, *words, says="name too long")

    run.__name__ = f"long_output_of_{command}"
    case(9, f"--output of {command}", "a name of 300 letters")(run)


for each in ("predict", "embed", "probe", "export", "export_part"):
    long_output(each)


def odd_word(mechanism: str, *words: str, says: str = "") -> None:
    """Registers words of a command that name what is none."""

    def run(box: Box) -> None:
        box.start_from("fitted")
        os.mkfifo("pipe")
        box.refused(*words, says=says)

    run.__name__ = mechanism.replace(" ", "_").replace("-", "")
    case(10, "words of a command", mechanism, seconds=30)(run)


odd_word("a resume of a long name", "fit", *CONFIG, "--resume", LONG, says="no run's folder|name too long")
odd_word("a resume of a long run", "fit", *CONFIG, "--resume", "auto", "--name", LONG, says="name too long")
odd_word("a name of a long run", "fit", *CONFIG, "--name", LONG, says="name too long")
odd_word("the best of a long run", "predict", *CONFIG, "--ckpt_path", "best", "--name", LONG, says="no best|too long")
odd_word("a long checkpoint", "predict", *CONFIG, "--ckpt_path", LONG, says="no file")
odd_word("a checkpoint that is a pipe", "predict", *CONFIG, "--ckpt_path", "pipe", says="no file")
odd_word("a part of a pipe", "export_part", "--ckpt_path", "pipe", "--part", "a", "--output", "a.safetensors")
odd_word("statistics that are a pipe", "fit", *CONFIG, "--model.init_from", "pipe", says="no file")
odd_word("a root that is a pipe", "fit", *CONFIG, "--trainer.default_root_dir", "pipe", says="no folder")
odd_word("a root of a long name", "fit", *CONFIG, "--trainer.default_root_dir", LONG, says="no folder")
odd_word("an output that is a pipe", "predict", *WORDS["predict"][:-1], "pipe/x.csv", says="not a folder")
odd_word("an alias within itself", "fit", *CONFIG, "--trainer.max_epochs", "&a [*a]")
odd_word("a list within itself for the model", "fit", *CONFIG, "--model.parts", "&a [*a]")
odd_word("a number without end", "fit", *CONFIG, "--trainer.max_epochs", "9" * 5000)
odd_word("a rate without end", "fit", *CONFIG, "--model.lr", "1" + "0" * 400, says="lr")
odd_word("a seed without end", "fit", *CONFIG, "--seed_everything", "1" + "0" * 400, says="seed")
odd_word("a zero byte", "fit", *CONFIG, "--trainer.default_root_dir", "a\0b")
odd_word("a zero byte in a checkpoint", "predict", *CONFIG, "--ckpt_path", "a\0b", says="terminal")
odd_word("a zero byte in an output", "predict", *WORDS["predict"][:-1], "a\0.csv", says="terminal")
odd_word("a zero byte in a resume", "fit", *CONFIG, "--resume", "a\0b")
odd_word("a zero byte in a config", "fit", "--config", "a\0b", says="no file")
odd_word("folds without end", "cross_validate", *CONFIG, "--folds", "9" * 5000)


@case(9, "working folder", "removed before the command")
def no_working_folder(box: Box) -> None:
    box.start_from("fitted")
    place = Path("small.yaml").absolute()
    Path("gone").mkdir()
    os.chdir("gone")
    Path("../gone").rmdir()
    box.refused("fit", "--config", str(place))


@case(9, "HOME", "a folder that is not there")
def no_home(box: Box) -> None:
    box.start_from("fitted")
    os.environ.update(HOME="/nonexistent", XDG_CACHE_HOME="/nonexistent/cache")
    box.accepted("fit", *CONFIG)


@case(9, "--output of predict", "a folder of the system that takes no files")
def output_of_the_system(box: Box) -> None:
    box.start_from("fitted")
    words = list(WORDS["predict"])
    box.refused("predict", *words[:-1], "/proc/self/o.csv", says="cannot be written")


@case(9, "--output of export_part", "a link without end")
def output_in_a_circle(box: Box) -> None:
    box.start_from("fitted")
    Path("a").symlink_to("a")
    words = list(WORDS["export_part"])
    box.refused("export_part", *words[:-1], "a/o.safetensors", says="cannot be written")


@case(9, "--output of probe", "a link without end")
def table_in_a_circle(box: Box) -> None:
    box.start_from("fitted")
    Path("a").symlink_to("a")
    words = list(WORDS["probe"])
    box.refused("probe", *words[:-1], "a/o.csv")


@case(9, "folder of the folds", "a file in its place")
def folds_that_are_a_file(box: Box) -> None:
    from tests.hostile.cases.received import CROSS, folds

    folds(box)
    Path("runs/x_folds").touch()
    box.refused(*CROSS, says="cannot be written|x_folds")


# A machine whose text is not UTF-8


@case(12, "standard output", "a terminal without the letters of the data")
def a_terminal_of_ascii(box: Box) -> None:
    table(label=lambda row: ["né", "日本"][row % 2])
    config()
    for verb in ("check", "fit"):
        [told] = box.together([(verb, "--config", "x.yaml")], ENCODING=["ascii"])
        assert told.code == 0, told


@case(12, "--trainer.default_root_dir", "bytes that are no text")
def a_folder_that_is_no_text(box: Box) -> None:
    box.start_from("fitted")
    [told] = box.together([("fit", *CONFIG, "--trainer.default_root_dir", os.fsdecode(b"r\xff"))], ENCODING=["utf-8"])
    assert told.code in (0, 2), told
