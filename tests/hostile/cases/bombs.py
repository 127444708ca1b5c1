"""Kinds 1 and 10: small files of a sample that become large, run something, or are none."""

import gzip
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.hostile.cases.data import checked, config, table
from tests.hostile.harness import Box, case

Write = Callable[[], None]


def limited(
    kind: int, place: str, mechanism: str, says: str, verbs: tuple[str, ...] = ("check",)
) -> Callable[[Write], Write]:
    """Registers a function that writes ``x.yaml`` and its data, which ``check`` has to refuse."""
    return checked(kind, place, mechanism, says, verbs)


# images

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print\n%%EOF\n"


@limited(1, "image", "a program in PostScript, which Pillow hands to an interpreter", "cannot be read")
def a_program_as_an_image() -> None:
    Path("a.png").write_bytes(EPS)
    Path("gs").write_text("#!/bin/sh\ntouch ../outside/victim/ran\n")
    Path("gs").chmod(0o755)
    os.environ["PATH"] = f"{Path().absolute()}:{os.environ['PATH']}"
    table(file="a.png")
    config({"x": {"image": "file"}})


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def ihdr(side: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))


@limited(10, "image", "a PNG of 40 000 x 40 000 pixels", "cannot be read")
def a_png_of_many_pixels() -> None:
    Path("a.png").write_bytes(png(ihdr(40_000), chunk(b"IDAT", zlib.compress(bytes(1000)))))
    table(file="a.png")
    config({"x": {"image": "file"}})


@limited(10, "image", "a PNG whose text unpacks to a gigabyte", "cannot be read|nothing is wrong|differ|too small")
def a_png_of_text() -> None:
    text = b"a\0\0" + zlib.compress(bytes(2**30), 1)
    good = io.BytesIO()
    Image.new("RGB", (8, 8)).save(good, "PNG")
    content = good.getvalue()
    Path("a.png").write_bytes(content[:33] + chunk(b"zTXt", text) + content[33:])
    table(file="a.png")
    config({"x": {"image": "file"}})


@case(10, "image", "a GIF of a million frames", seconds=30)
def a_gif_of_many_frames(box: Box) -> None:
    frames = io.BytesIO()
    Image.new("L", (1, 1)).save(frames, "GIF")
    content = frames.getvalue()
    start = content.index(b",")
    Path("a.gif").write_bytes(content[:start] + content[start:-1] * 1_000_000 + content[-1:])
    table(file="a.gif")
    config({"x": {"image": "file"}})
    box.command("check", "--config", "x.yaml")


@case(10, "image", "a TIFF whose pages form a circle", seconds=30)
def a_tiff_in_a_circle(box: Box) -> None:
    file = io.BytesIO()
    pages = [Image.effect_noise((8, 8), 50) for _ in range(2)]
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    content = bytearray(file.getvalue())
    first = struct.unpack("<I", content[4:8])[0]
    count = struct.unpack("<H", content[first : first + 2])[0]
    second = struct.unpack("<I", content[first + 2 + 12 * count :][:4])[0]
    count = struct.unpack("<H", content[second : second + 2])[0]
    content[second + 2 + 12 * count :][:4]
    content[second + 2 + 12 * count : second + 6 + 12 * count] = struct.pack("<I", first)
    Path("a.tif").write_bytes(content)
    table(file="a.tif")
    config({"x": {"image": "file"}})
    box.command("check", "--config", "x.yaml")


# sounds


@limited(10, "sound", "a FLAC that states hours", "more than a sample may have")
def a_flac_that_states_hours() -> None:
    import soundfile

    soundfile.write("a.flac", np.zeros(16000), 16000)
    content = bytearray(Path("a.flac").read_bytes())
    content[21] |= 0x0F  # the number of samples, 36 bits
    content[22:26] = b"\xff" * 4
    Path("a.flac").write_bytes(content)
    table(file="a.flac")
    config({"x": {"audio": "file"}})


@limited(10, "sound", "an MP3 of 20 GiB of holes", "cannot be read|more than")
def an_mp3_of_holes() -> None:
    with Path("a.mp3").open("wb") as file:
        file.truncate(20 * 2**30)
    table(file="a.mp3")
    config({"x": {"audio": "file"}})


# volumes


def nifti(shape: tuple[int, ...], offset: float = 352.0, extension: bytes = bytes(4)) -> bytes:
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    raw = bytearray(header.binaryblock)
    raw[108:112] = struct.pack("<f", offset)
    raw[344:348] = b"n+1\0"
    return bytes(raw) + extension


@limited(10, "volume", "a gzip whose extension unpacks to two gigabytes", "cannot be read|more than")
def a_volume_of_an_extension() -> None:
    head = nifti((3, 3, 3), float(2**31), b"\1\0\0\0" + struct.pack("<ii", 2**31 - 512, 0))
    with gzip.open("a.nii.gz", "wb", 1) as file:
        file.write(head)
        for _ in range(2**31 // 2**24):
            file.write(bytes(2**24))
    table(file="a.nii.gz")
    config({"x": {"volume": "file"}})


@limited(10, "volume", "a header that states 8 GiB", "more than a sample may have")
def a_volume_that_states_more() -> None:
    Path("a.nii").write_bytes(nifti((2000, 2000, 600)))
    table(file="a.nii")
    config({"x": {"volume": "file"}})


@limited(10, "volume", "sides below zero", "cannot be read")
def a_volume_of_negative_sides() -> None:
    raw = bytearray(nifti((3, 3, 3)))
    raw[42:44] = struct.pack("<h", -5)
    Path("a.nii").write_bytes(bytes(raw) + bytes(27))
    table(file="a.nii")
    config({"x": {"volume": "file"}})


# arrays


@limited(10, "array", "an archive with a name twice", "cannot be read")
def an_archive_of_one_name() -> None:
    with zipfile.ZipFile("a.npz", "w") as archive:
        for value in (1.0, 2.0):
            file = io.BytesIO()
            np.save(file, np.full(5, value))
            archive.writestr("x.npy", file.getvalue())
    table(file="a.npz")
    config({"x": {"array": "file"}})


@limited(10, "array", "a header of brackets", "cannot be read")
def a_header_of_brackets() -> None:
    text = b"(" * 9000
    Path("a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    table(file="a.npy")
    config({"x": {"array": "file"}})


@limited(10, "array", "a shape of more digits than Python reads", "cannot be read")
def a_shape_of_many_digits() -> None:
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"9" * 5000 + b",)}\n"
    Path("a.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    table(file="a.npy")
    config({"x": {"array": "file"}})


# series of text


def one_bad(file: str) -> None:
    """A table in which this file is one of many."""
    Path("b.csv").write_text("1\n2\n3\n")
    table(file=lambda row: file if row == 3 else "b.csv")


@limited(10, "series of text", "a cell of 200 megabytes", "cannot be read")
def a_series_of_one_cell() -> None:
    Path("a.csv").write_bytes(b"1\n" + b"9" * 200_000_000 + b"\n2\n")
    one_bad("a.csv")
    config({"x": {"series": "file"}})


@limited(10, "series of text", "words of a megabyte in an error", "cannot be read")
def a_series_of_a_long_word() -> None:
    Path("a.csv").write_bytes(b"1\n2\n" + b"\x1b" * 20_000_000 + b"\n")
    one_bad("a.csv")
    config({"x": {"series": "file"}})
