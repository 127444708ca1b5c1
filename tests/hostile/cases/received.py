"""Kinds 1, 8 and 10: a run folder, a cache or folds that somebody else has made."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.hostile.cases.run_folders import FOLDER, RESUME, table
from tests.hostile.harness import Box, case

VICTIM = "../outside/victim"
CHECKPOINTS = FOLDER / "checkpoints"


def replaced(path: Path, target: str) -> None:
    """Puts a link in the place of a file or folder of a run."""
    if path.exists():
        path.rename(f"before_{path.name}")
    path.symlink_to(Path(target).absolute())


# Links


@case(1, "lock of a run", "a link to a file elsewhere, which is emptied")
def lock_elsewhere(box: Box) -> None:
    box.start_from("fitted")
    replaced(FOLDER / ".lock", f"{VICTIM}/keep.txt")
    box.refused(*RESUME, says="link")


@case(1, "checkpoints of a run", "a link to a folder elsewhere, which is written into")
def checkpoints_elsewhere(box: Box) -> None:
    box.start_from("fitted")
    for path in CHECKPOINTS.iterdir():
        path.rename(box.outside / "victim" / path.name)
    (box.outside / "victim" / "mine.part").mkdir()
    CHECKPOINTS.rmdir()
    CHECKPOINTS.symlink_to(box.outside / "victim")
    before = sorted(path.name for path in (box.outside / "victim").iterdir())
    box.refused(*RESUME, says="link")
    assert sorted(path.name for path in (box.outside / "victim").iterdir()) == before
    for path in list((box.outside / "victim").iterdir()):  # as it was
        if path.name != "keep.txt":
            path.rmdir() if path.is_dir() else path.unlink()


@case(1, "folder of a run", "a link to a folder elsewhere")
def run_elsewhere(box: Box) -> None:
    box.start_from("fitted")
    Path("runs/small/version_1").symlink_to(box.outside / "victim")
    box.refused(*RESUME, says="link")


@case(1, "leftovers of a run", "a link to a folder that would be removed")
def leftovers_elsewhere(box: Box) -> None:
    box.start_from("fitted")
    (FOLDER / "x.part").symlink_to(box.outside / "victim")
    (CHECKPOINTS / "x.part").symlink_to(box.outside / "victim")
    box.command(*RESUME)


def file_elsewhere(name: str, path: Path, consequence: str) -> None:
    """Registers a file of a received run that is a link to one elsewhere."""

    def run(box: Box) -> None:
        box.start_from("fitted")
        replaced(path, f"{VICTIM}/keep.txt")
        box.command(*RESUME)

    run.__name__ = name
    case(1, f"{path.name} of a run", f"a link to a file elsewhere, {consequence}")(run)


file_elsewhere("table_elsewhere", FOLDER / "metrics.csv", "to which rows would be added")
file_elsewhere("config_elsewhere", FOLDER / "config.yaml", "which would be overwritten")
file_elsewhere("last_elsewhere", CHECKPOINTS / "last.ckpt", "which would be overwritten")


@case(1, "config.yaml of a run", "a class to run, at a resume with a config of one's own")
def config_that_names_a_program(box: Box) -> None:
    box.start_from("fitted")
    content = {"model": {"class_path": "os.system", "init_args": {"command": "touch ../outside/victim/x"}}}
    (FOLDER / "config.yaml").write_text(yaml.safe_dump(content))
    box.accepted(*RESUME)


# Whose turn it is


def steps() -> list[int]:
    return [int(row["step"]) for row in table() if "train/loss" in row]


@case(8, "checkpoints of a run", "a clock that went backwards")
def a_clock_that_goes_backwards(box: Box) -> None:
    box.start_from("fitted")
    for name, seconds in (("last.ckpt", 10**9), ("best.ckpt", 4 * 10**9)):
        os.utime(CHECKPOINTS / name, (seconds, seconds))
    box.accepted(*RESUME)
    assert steps() == list(range(12)), steps()


@case(8, "versions of a run", "a file with the name of a newer one")
def a_version_that_is_a_file(box: Box) -> None:
    box.start_from("fitted")
    Path("runs/small/version_1").touch()
    box.accepted(*RESUME)
    assert steps() == list(range(12)), steps()
    box.refused("fit", "--config", "small.yaml", says="version_1': File exists")


@case(8, "versions of a run", "a number that no folder has reached, in other digits")
def a_version_of_other_digits(box: Box) -> None:
    box.start_from("fitted")
    for name in ("version_９", "version_" + "9" * 30, "version_-1", "version_1.bak"):
        Path("runs/small", name).mkdir()
    (FOLDER.parent / ("version_" + "9" * 30) / "config.yaml").write_text("a: 1")
    box.accepted(*RESUME)
    assert steps() == list(range(12)), steps()


# Damaged files of a run


def damaged(place: str, mechanism: str, name: str, content: bytes, says: str = "") -> None:
    """Registers the content of a file of a run, in spite of which a resume goes on."""

    def run(box: Box) -> None:
        box.start_from("fitted")
        (FOLDER / name).write_bytes(content)
        told = box.accepted(*RESUME)
        assert says in told.out + told.err, told
        steps = [int(row["step"]) for row in table() if "train/loss" in row]
        assert steps[-6:] == list(range(6, 12)), steps

    run.__name__ = f"{name}_of_{mechanism}".replace(" ", "_").replace(".", "_")
    case(10, place, mechanism)(run)


HEADER = b"step,train/loss\n"
damaged("metrics.csv", "no column of steps", "metrics.csv", b"a,b\n1,2\n")
damaged("metrics.csv", "a step that is no number", "metrics.csv", HEADER + b"0,1.0\nmany,1.0\n1,1.0\n")
damaged("metrics.csv", "zero bytes of a power loss", "metrics.csv", HEADER + b"0,1.0\n" + bytes(30) + b"\n")
damaged("metrics.csv", "bytes that are no text", "metrics.csv", HEADER + b"0,1.0\n\xff\xfe,1.0\n")
damaged("metrics.csv", "a row with a cell too many", "metrics.csv", HEADER + b"0,1.0,7,8\n")
damaged("metrics.csv", "a row with a cell too few", "metrics.csv", HEADER + b"0\n")
damaged("metrics.csv", "a step of 5000 digits", "metrics.csv", HEADER + b"9" * 5000 + b",1.0\n")
damaged("metrics.csv", "a cell of a megabyte", "metrics.csv", HEADER + b"0," + b"1" * 2**20 + b"\n")
damaged("metrics.csv", "an open quote", "metrics.csv", HEADER + b'0,"1.0\n1,1.0\n')
damaged("finished.yaml", "no YAML", "finished.yaml", b"a: [")
damaged("finished.yaml", "bytes that are no text", "finished.yaml", b"\xff\xfe\x00")
damaged("finished.yaml", "brackets without end", "finished.yaml", b"[" * 50_000)


@case(10, "checkpoints of a run", "a pipe with the name of one")
def checkpoint_that_is_a_pipe(box: Box) -> None:
    box.start_from("fitted")
    os.mkfifo(CHECKPOINTS / "newest.ckpt")
    told = box.accepted(*RESUME)
    assert "It is skipped" in told.out


@case(10, "metrics.csv", "a pipe")
def table_that_is_a_pipe(box: Box) -> None:
    box.start_from("fitted")
    (FOLDER / "metrics.csv").unlink()
    os.mkfifo(FOLDER / "metrics.csv")
    box.command(*RESUME)


@case(10, "lock", "a pipe")
def lock_that_is_a_pipe(box: Box) -> None:
    box.start_from("fitted")
    os.mkfifo(FOLDER / ".lock")
    box.command(*RESUME)


# Folds


def folds(box: Box) -> None:
    """Two folds that have ended, of which nothing is left to do."""
    from tests.hostile.cases.data import config
    from tests.hostile.cases.data import table as write

    write()
    config()
    for fold in (1, 2):
        folder = Path(f"runs/x_fold{fold}/version_0")
        (folder / "checkpoints").mkdir(parents=True)
        arguments = {"data": {"init_args": {"fold": f"{fold}/2"}}}
        (folder / "config.yaml").write_text(yaml.safe_dump(arguments))
        (folder / "predictions.csv").write_text("row,prediction\n" + "".join(f"{row},a\n" for row in range(3)))
        (folder / "metrics.csv").write_text("step,test/accuracy\n3,0.5\n")


CROSS = ("cross_validate", "--config", "x.yaml", "--folds", "2", "--resume")


@case(8, "cross_validate --resume", "all folds have ended")
def folds_that_have_ended(box: Box) -> None:
    folds(box)
    box.accepted(*CROSS)


def damaged_fold(mechanism: str, name: str, content: str, says: str) -> None:
    """Registers the content of a file of a fold that has ended."""

    def run(box: Box) -> None:
        folds(box)
        (Path("runs/x_fold2/version_0") / name).write_text(content)
        box.refused(*CROSS, says=says)

    run.__name__ = f"fold_{name}_of_{mechanism}".replace(" ", "_").replace(".", "_")
    case(10, f"{name} of a fold", mechanism)(run)


damaged_fold("no YAML", "config.yaml", "a: [", "config.yaml")
damaged_fold("rows without a number", "predictions.csv", "row,prediction\nmany,a\n", "predictions.csv")
damaged_fold("no column of rows", "predictions.csv", "a,b\n1,2\n", "predictions.csv")
damaged_fold("a score that is no number", "metrics.csv", "step,test/accuracy\n3,high\n", "metrics.csv")


# The cache


def in_store(mechanism: str) -> Callable[[Callable[[Path], None]], None]:
    """Registers what somebody puts into the place of a file of features, which then counts as not there."""

    def register(put: Callable[[Path], None]) -> None:
        def run(box: Box) -> None:
            from hybrid_lightning.cache.store import FeatureStore

            put(Path("key.features"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert FeatureStore(Path(), 0).find("key", 3) is None

        run.__name__ = put.__name__
        case(10, "file of the cache", mechanism, seconds=20)(run)

    return register


def features(path: Path, dtype: str, size: int) -> None:
    """A whole file of three rows."""
    values = bytes(3 * size)
    checksum = hashlib.blake2b(values, digest_size=16).hexdigest()
    about = json.dumps({"shape": [3], "dtype": dtype, "checksum": checksum})
    path.write_bytes(values + about.ljust(512).encode())


@in_store("a pipe")
def features_that_are_a_pipe(path: Path) -> None:
    os.mkfifo(path)


@in_store("an endless device")
def features_that_are_endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


@in_store("a folder")
def features_that_are_a_folder(path: Path) -> None:
    path.mkdir()


@in_store("a type without arithmetic")
def features_of_quantized_numbers(path: Path) -> None:
    features(path, "quint8", 1)


@in_store("a type of less than a byte")
def features_of_bits(path: Path) -> None:
    features(path, "bits1x8", 1)


@in_store("nothing but brackets")
def features_of_brackets(path: Path) -> None:
    path.write_bytes(bytes(24) + b"[" * 512)


@in_store("a size beyond all memory")
def features_beyond_memory(path: Path) -> None:
    about = json.dumps({"shape": [3, 2**62, 2**62], "dtype": "float32", "checksum": ""})
    path.write_bytes(about.ljust(512).encode())
