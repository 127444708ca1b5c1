"""Kinds 4 and 10: DICOM files and cells with several files."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.dicom import PATIENT, dicom, write_dicom, write_encoded, write_series
from tests.hostile.cases.data import ROWS, checked, config, table, values_of
from tests.hostile.harness import Box, case

FILM = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60


@checked(10, "image", "a DICOM file that states 2**31 frames", "more than a sample may have", ("check",))
def a_dicom_file_of_many_frames() -> None:
    write_dicom(Path("a.dcm"), FILM, NumberOfFrames=2**31 - 1)
    table(file="a.dcm")
    config({"x": {"image": "file"}})


@checked(10, "image", "a DICOM file that inflates to a gigabyte", "deflated as a whole", ("check",))
def a_deflated_dicom_file() -> None:
    header = dicom(np.zeros((8192, 8192), np.uint16))
    header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    header.save_as("a.dcm", enforce_file_format=True)
    table(file="a.dcm")
    config({"x": {"image": "file"}})


@checked(10, "image", "a JPEG in DICOM that is larger than the file states", "cannot be decoded", ("check",))
def a_large_jpeg_in_dicom() -> None:
    Image.new("L", (20_000, 20_000)).save("large.jpg")
    write_encoded(Path("a.dcm"), FILM.astype(np.uint8), Path("large.jpg").read_bytes(), "1.2.840.10008.1.2.4.50")
    table(file="a.dcm")
    config({"x": {"image": "file"}})


@checked(10, "volume", "a folder with a pipe among its slices", "one may be missing between them", ("check",))
def a_pipe_among_slices() -> None:
    write_series(Path("s"), np.ones((6, 4, 4), np.int16))
    Path("s/003.dcm").unlink()
    os.mkfifo("s/003.dcm")
    table(file="s")
    config({"x": {"volume": "file"}})


@case(4, "image", "12 bits of a DICOM file in 16, with other data above them")
def twelve_bits_of_dicom(box: Box) -> None:
    table(file="a.dcm")
    write_dicom(Path("a.dcm"), FILM | 0xF000, BitsStored=12)
    found = values_of({"x": {"image": "file", "channels": 1}})
    assert np.allclose(found[0].numpy(), FILM / 4095)


@case(10, "image", "the name of a patient in damaged DICOM files")
def names_of_patients(box: Box) -> None:
    write_dicom(Path("a.dcm"), FILM, RescaleSlope="1.0", PatientID=PATIENT)
    whole = Path("a.dcm").read_bytes()
    damaged = [whole[:-9], whole[: len(whole) // 2], whole.replace(b"MONOCHROME2", b"Doe^Jane^^^")]
    for number in range(ROWS):
        Path(f"{number}.dcm").write_bytes(damaged[number % len(damaged)])
    table(file=lambda row: f"{row}.dcm")
    config({"x": {"image": "file"}})
    told = box.refused("check", "--config", "x.yaml", says="files of 'm.csv' cannot be used")
    assert "Doe" not in told.out + told.err, told.err


@checked(10, "several files", "a cell with a hundred thousand paths", "'most: 64' are possible", ("check",))
def a_cell_of_many_paths() -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    table(file=lambda row: "a.png;" * (100_000 if row == 3 else 1))
    config({"x": {"image": "file", "separator": ";"}})


@checked(10, "several files", "paths in a cell that name what is not a file", "there is no such file", ("check",))
def special_files_in_a_cell() -> None:
    Image.new("RGB", (8, 8)).save("a.png")
    os.mkfifo("pipe.png")
    table(file="a.png;pipe.png;/dev/zero;../outside;..")
    config({"x": {"image": "file", "separator": ";"}})
