"""Kinds 1, 2 and 10: folders of shards, as a run under fsdp2 saves them, from strangers or damaged on their way."""

import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.hostile.cases.ranks import on_two_ranks
from tests.hostile.harness import Box, case, material
from tests.small import changed

FOLDER = Path("folder.ckpt")
FOLDERS = {"class_path": "hybrid_lightning.FSDP2Strategy", "init_args": {"save_distributed_checkpoint": True}}
LOAD = ("load_from_checkpoint", str(FOLDER))


class Program:
    """What unpickles by running a program."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


@material
def sharded() -> None:
    """``two`` and ``one``: the folders of runs of an epoch on two ranks, and on one."""
    made = Path.cwd() / "made"
    box = Box(made, made)
    box.folder.mkdir(parents=True)
    os.chdir(box.folder)
    for name, ranks in (("two", 2), ("one", 1)):
        config = changed({"trainer.strategy": FOLDERS, "trainer.devices": ranks})
        if ranks == 2:
            tolds = on_two_ranks(box, [config] * 2)
        else:
            Path("one.yaml").write_text(yaml.safe_dump(config))
            tolds = [box.command("fit", "--config", "one.yaml", "--name", "small")]
        assert all(told.code == 0 for told in tolds), tolds
        shutil.move("runs/small/version_0/checkpoints/last.ckpt", made.parent / name)
        shutil.rmtree("runs")
    os.chdir(made.parent)
    shutil.rmtree(made)


def damaged(kind: int, place: str, mechanism: str, says: str) -> Callable[[Callable[[], None]], None]:
    """Registers a change of the folder with which a model cannot be rebuilt any more."""

    def register(change: Callable[[], None]) -> None:
        def run(box: Box) -> None:
            box.start_from("sharded")
            Path("two").rename(FOLDER)
            change()
            box.refused(*LOAD, says=says)

        run.__name__ = f"shards_{change.__name__}"
        case(kind, place, mechanism)(run)

    return register


@damaged(1, "record of shards", "a class that runs a program", "could run code")
def record_that_runs_a_program() -> None:
    (FOLDER / ".metadata").write_bytes(pickle.dumps(Program()))


@damaged(1, "record of shards", "a program within a true record", "could run code")
def record_with_a_program() -> None:
    record = recorded()
    record.planner_data = Program()
    (FOLDER / ".metadata").write_bytes(pickle.dumps(record))


@damaged(1, "record of shards", "the path of a file elsewhere", "could run code")
def shards_elsewhere() -> None:
    record = recorded()
    for entry in record.storage_data.values():
        entry.relative_path = "../../outside/victim/keep.txt"
    (FOLDER / ".metadata").write_bytes(pickle.dumps(record))


@damaged(1, "plain values of a folder", "a class that runs a program", "could run code")
def plain_values_that_run_a_program() -> None:
    torch.save({"state_dict": Program()}, FOLDER / "meta.pt")


@damaged(2, "folder of shards", "a shard is missing", "no file '__1_0.distcp'.*Use another file")
def missing_shard() -> None:
    (FOLDER / "__1_0.distcp").unlink()


@damaged(2, "folder of shards", "a shard is cut", "a shard in '__1_0.distcp' is damaged")
def cut_shard() -> None:
    content = (FOLDER / "__1_0.distcp").read_bytes()
    (FOLDER / "__1_0.distcp").write_bytes(content[: len(content) // 2])


@damaged(2, "folder of shards", "a flipped bit", "a shard in '__0_0.distcp' is damaged")
def flipped_bit_of_a_shard() -> None:
    content = bytearray((FOLDER / "__0_0.distcp").read_bytes())
    largest = max(
        (entry for entry in recorded().storage_data.values() if entry.relative_path == "__0_0.distcp"),
        key=lambda entry: entry.length,
    )
    with zipfile.ZipFile(io.BytesIO(content[largest.offset :][: largest.length])) as archive:
        values = archive.read(max(archive.infolist(), key=lambda record: record.file_size))
    content[content.index(values, largest.offset)] ^= 64
    (FOLDER / "__0_0.distcp").write_bytes(content)


@damaged(2, "folder of shards", "a shard of a run on another number of ranks", "a shard in '__0_0.distcp' is damaged")
def shard_of_another_world() -> None:
    shutil.copy("one/__0_0.distcp", FOLDER)


@damaged(2, "folder of shards", "a whole shard of another step", "'__1_0.distcp' was written with another checkpoint")
def shard_of_another_step() -> None:
    content = bytearray((FOLDER / "__1_0.distcp").read_bytes())
    entries = recorded().storage_data.values()
    entry = next(entry for entry in entries if entry.relative_path == "__1_0.distcp")
    record = slice(entry.offset, entry.offset + entry.length)
    values = torch.load(io.BytesIO(content[record]), weights_only=True)
    moved = io.BytesIO()
    torch.save(values + 1, moved)
    assert len(moved.getvalue()) == entry.length, "its place among the others is as before"
    content[record] = moved.getvalue()
    (FOLDER / "__1_0.distcp").write_bytes(content)


@damaged(2, "folder of shards", "checksums that are none", "checksums of its shards are damaged")
def checksums_that_are_a_text() -> None:
    content = torch.load(FOLDER / "meta.pt", weights_only=True)
    torch.save({**content, "shards": "as written"}, FOLDER / "meta.pt")


@damaged(2, "folder of shards", "the record of a run on another number of ranks", "damaged")
def record_of_another_world() -> None:
    shutil.copy("one/.metadata", FOLDER)


@damaged(2, "folder of shards", "its plain values are cut", "meta.pt' is cut off or damaged")
def cut_plain_values() -> None:
    (FOLDER / "meta.pt").write_bytes((FOLDER / "meta.pt").read_bytes()[:2000])


@damaged(10, "record of shards", "a pipe", "no file '.metadata'")
def record_is_a_pipe() -> None:
    (FOLDER / ".metadata").unlink()
    os.mkfifo(FOLDER / ".metadata")


@damaged(10, "shard", "a link to a device without an end", "no file '__1_0.distcp'")
def shard_is_a_device() -> None:
    (FOLDER / "__1_0.distcp").unlink()
    (FOLDER / "__1_0.distcp").symlink_to("/dev/zero")


@damaged(10, "record of shards", "the size of a tensor that no memory holds", "would have")
def tensor_of_petabytes() -> None:
    record = recorded()
    for entry in record.state_dict_metadata.values():
        entry.size = torch.Size([10**15])
    (FOLDER / ".metadata").write_bytes(pickle.dumps(record))


@case(10, "folder of shards", "a link to a whole one")
def shards_link_to_a_folder(box: Box) -> None:
    box.start_from("sharded")
    FOLDER.symlink_to("two", target_is_directory=True)
    told = box.accepted(*LOAD)
    assert "outputs (2, 3) True" in told.out


def recorded() -> Any:
    """The record of the folder."""
    return pickle.loads((FOLDER / ".metadata").read_bytes())
