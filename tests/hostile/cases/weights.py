"""Kinds 1 and 10: files that are no weights."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.hostile.harness import Box, case
from tests.small import changed

Write = Callable[[], None]


def weights(mechanism: str, says: str) -> Callable[[Write], None]:
    """Registers a function that writes ``w.safetensors``, which no command may take for weights."""

    def register(write: Write) -> None:
        def run(box: Box) -> None:
            box.start_from("fitted")
            write()
            for key in ("init.parts.stem.weights", "init.init_from"):
                Path("w.yaml").write_text(yaml.safe_dump(changed({key: "w.safetensors"})))
                box.refused("fit", "--config", "w.yaml", says=says)
            box.refused("export_part", "--ckpt_path", "w.safetensors", "--part", "a", "--output", "b.safetensors")
            box.refused("predict", "--config", "small.yaml", "--ckpt_path", "w.safetensors")

        run.__name__ = write.__name__
        case(10, "weights", mechanism)(run)

    return register


@weights("a header that states an exabyte", "w.safetensors")
def a_header_of_an_exabyte() -> None:
    Path("w.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{" + bytes(100))


@weights("a header of brackets", "w.safetensors")
def weights_of_brackets() -> None:
    Path("w.safetensors").write_bytes((90_000).to_bytes(8, "little") + b'{"a":' + b"[" * 89_995)


@weights("metadata that is no mapping", "w.safetensors")
def weights_with_odd_metadata() -> None:
    text = b'{"__metadata__": 7}'
    Path("w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)


@weights("offsets that overlap", "w.safetensors")
def weights_that_overlap() -> None:
    entry = '"%s":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
    text = ("{" + entry % "block0.0.bias" + "," + entry % "b" + "}").encode()
    Path("w.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))


@weights("a pipe", "there is no file")
def weights_that_are_a_pipe() -> None:
    os.mkfifo("w.safetensors")


@weights("a folder", "there is no file|folder")
def weights_that_are_a_folder() -> None:
    Path("w.safetensors").mkdir()


@weights("an endless device", "there is no file")
def weights_that_are_endless() -> None:
    Path("w.safetensors").symlink_to("/dev/zero")


@weights("a hole of 20 GiB", "w.safetensors")
def weights_that_are_a_hole() -> None:
    with Path("w.safetensors").open("wb") as file:
        file.truncate(20 * 2**30)


@weights("a zip of many records", "w.safetensors")
def weights_of_many_records() -> None:
    with zipfile.ZipFile("w.safetensors", "w") as archive:
        for number in range(20_000):
            archive.writestr(f"a/data/{number}", b"")


@weights("a tar archive", "w.safetensors")
def weights_of_a_tar() -> None:
    import tarfile

    with tarfile.open("w.safetensors", "w") as archive:
        archive.add("small.yaml", "storages")


@weights("a pickle that calls a program", "could run code|refused")
def weights_that_run() -> None:
    Path("w.safetensors").write_bytes(b"cos\nsystem\n(S'touch ../outside/victim/x'\ntR.")
