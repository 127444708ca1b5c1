"""DICOM files for tests, of a patient whose name must never be shown."""

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

PATIENT = "Doe^Jane"
AXIAL = [1, 0, 0, 0, 1, 0]


def dicom(pixels: np.ndarray, **tags: Any) -> Dataset:
    """A file of `(H, W)`, `(F, H, W)` with ``NumberOfFrames`` or `(H, W, 3)`; `tags` add to its elements."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = header.SOPClassUID = CTImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.PatientName = PATIENT
    is_color = pixels.shape[-1] == 3
    header.Rows, header.Columns = pixels.shape[-3:-1] if is_color else pixels.shape[-2:]
    header.SamplesPerPixel = 3 if is_color else 1
    header.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    if is_color:
        header.PlanarConfiguration = 0
    bits = tags.get("BitsStored", 8 * pixels.dtype.itemsize)
    header.BitsAllocated, header.BitsStored, header.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    header.PixelRepresentation = int(pixels.dtype.kind == "i")
    header.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(header, name, value)
    return header


def write_dicom(path: Path, pixels: np.ndarray, **tags: Any) -> Dataset:
    """Writes what `dicom` makes."""
    header = dicom(pixels, **tags)
    header.save_as(path, enforce_file_format=True)
    return header


def write_encoded(path: Path, pixels: np.ndarray, frame: bytes, syntax: str, **tags: Any) -> None:
    """Writes a file whose pixels are encoded as one frame."""
    header = dicom(pixels, **tags)
    header.file_meta.TransferSyntaxUID = syntax
    header.PixelData = encapsulate([frame])
    header["PixelData"].VR = "OB"
    header.save_as(path, enforce_file_format=True)


def write_series(folder: Path, volume: np.ndarray, names: list[str] | None = None, **tags: Any) -> None:
    """Writes the slices `(D, H, W)` of a volume, 2.5 mm apart along z, under these names."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, pixels in enumerate(volume):
        given = {
            "ImagePositionPatient": [0, 0, 2.5 * place],
            "ImageOrientationPatient": AXIAL,
            "SeriesInstanceUID": "1.2",
        }
        name = names[place] if names else f"{place:03}.dcm"
        write_dicom(folder / name, pixels, **{**given, **tags})
