import io

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLosslessSV1, RLELossless

from hybrid_lightning.data.inputs.dicom_files import read_header
from hybrid_lightning.errors import ConfigError
from tests.data.dicom import AXIAL, PATIENT, dicom, write_dicom, write_encoded, write_series
from tests.data.inputs.bound import bound

RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 4096, (6, 7)).astype(np.uint16)
COLORS = RANDOM.integers(0, 256, (6, 7, 3)).astype(np.uint8)
VOLUME = RANDOM.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)


def one(folder, name, kind="image", **given):
    return bound(folder, {"file": [name]}, **{kind: "file"}, **given)


def read(folder, name, kind="image", **given):
    return one(folder, name, kind, **given).read(0, False)


def gray(folder, pixels=GRAY, window="file", **tags):
    write_dicom(folder / "a.dcm", pixels, **tags)
    return read(folder, "a.dcm", channels=1, window=window)[0].numpy()


def test_a_window_of_the_config_is_in_the_units_of_the_file(tmp_path):
    found = gray(tmp_path, window=[40, 400], RescaleSlope="2", RescaleIntercept="-1024")
    assert found == pytest.approx(((GRAY * 2.0 - 1024 + 160) / 400).clip(0, 1))
    assert one(tmp_path, "a.dcm").peek(0) == (1, 6, 7)


@pytest.mark.parametrize("function", ["", "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_of_the_file_is_that_of_the_standard(tmp_path, function):
    tags = {
        "WindowCenter": ["1000", "40"],
        "WindowWidth": ["800", "400"],
        "RescaleSlope": "1.5",
        "RescaleIntercept": "-7",
    }
    tags |= {"VOILUTFunction": function} if function else {}
    header = dicom(GRAY, **tags, BitsStored=16)
    expected = pydicom.pixels.apply_windowing(pydicom.pixels.apply_rescale(GRAY, header), header)
    low, high = -7, 65535 * 1.5 - 7  # which the library takes for black and white
    assert gray(tmp_path, **tags) == pytest.approx((expected - low) / (high - low), abs=1e-6)


def test_without_a_window_the_bits_that_are_stored_go_from_black_to_white(tmp_path):
    assert gray(tmp_path, BitsStored=12) == pytest.approx(GRAY / 4095)
    signed = GRAY.astype(np.int16) - 2048
    assert gray(tmp_path, signed, BitsStored=12, RescaleSlope="1", RescaleIntercept="-5") == pytest.approx(GRAY / 4095)
    windowed = {"BitsStored": 12, "WindowCenter": 9, "WindowWidth": 2}
    assert gray(tmp_path, window="full", **windowed) == pytest.approx(GRAY / 4095)


def test_monochrome1_is_inverted_behind_the_window(tmp_path):
    inverted = gray(tmp_path, window=[2000, 1000], PhotometricInterpretation="MONOCHROME1")
    assert inverted == pytest.approx(1 - ((GRAY - 1500.0) / 1000).clip(0, 1), abs=1e-6)


def test_what_stands_above_the_stored_bits_is_not_part_of_a_value(tmp_path):
    assert gray(tmp_path, GRAY | 0xA000, BitsStored=12) == pytest.approx(GRAY / 4095)
    signed = (GRAY & 0x0FFF).view(np.int16)  # 12 bits without their sign in the others
    expected = np.where(GRAY > 2047, GRAY.astype(int) - 4096, GRAY)
    write_dicom(tmp_path / "a.dcm", signed, BitsStored=12, **place(0))
    assert np.array_equal(read(tmp_path, "a.dcm", "volume")[0, 0].numpy(), expected)


def place(z):
    return {
        "ImagePositionPatient": [0, 0, z],
        "ImageOrientationPatient": [-1, 0, 0, 0, -1, 0],
        "SeriesInstanceUID": "1",
    }


def test_colors_are_those_of_the_file(tmp_path):
    write_dicom(tmp_path / "a.dcm", COLORS)
    expected = COLORS.transpose(2, 0, 1)
    assert np.array_equal(read(tmp_path, "a.dcm").numpy(), expected)
    luma = np.asarray(Image.fromarray(COLORS).convert("L"))
    assert np.array_equal(read(tmp_path, "a.dcm", channels=1)[0].numpy(), luma)
    ybr = np.asarray(Image.fromarray(COLORS).convert("YCbCr"))
    write_dicom(tmp_path / "a.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read(tmp_path, "a.dcm").numpy().astype(int) - expected).max() <= 3  # rounded twice
    write_dicom(tmp_path / "a.dcm", COLORS.astype(np.uint16) * 257)
    assert read(tmp_path, "a.dcm").numpy() == pytest.approx(expected / 255)
    assert read(tmp_path, "a.dcm", size=3).shape == (3, 3, 3)


def test_a_palette_becomes_its_colors(tmp_path):
    entries = RANDOM.integers(0, 256, (3, 300)).astype(np.uint16)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color, own in zip(("Red", "Green", "Blue"), entries, strict=True):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [300, 5, 16]
        tags[f"{color}PaletteColorLookupTableData"] = (own * 257).tobytes()
    write_dicom(tmp_path / "a.dcm", GRAY // 10, **tags)
    expected = entries[:, (GRAY // 10).astype(int).clip(5, 304) - 5] / 255
    assert read(tmp_path, "a.dcm").numpy() == pytest.approx(expected)
    assert one(tmp_path, "a.dcm").peek(0) == (3, 6, 7)


def test_a_table_of_the_file_stands_for_a_window(tmp_path):
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 10], (np.arange(4096) // 4).astype("<u2").tobytes()
    assert gray(tmp_path, VOILUTSequence=[table]) == pytest.approx(GRAY // 4 / 1023)


@pytest.mark.parametrize("kind", ["RLE", "JPEG", "JPEG 2000"])
def test_compressed_pixels_are_decoded(tmp_path, kind):
    small = (GRAY // 16).astype(np.uint8)
    if kind == "RLE":
        header = dicom(GRAY)
        header.compress(RLELossless, generate_instance_uid=False)
        header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
        assert np.array_equal(read(tmp_path, "a.dcm", channels=1)[0].numpy(), (GRAY / 65535).astype(np.float32))
        return
    form, syntax = ("JPEG", JPEGBaseline8Bit) if kind == "JPEG" else ("JPEG2000", JPEG2000Lossless)
    file = io.BytesIO()
    Image.fromarray(small).save(file, form, **({"quality": 100} if form == "JPEG" else {"irreversible": False}))
    write_encoded(tmp_path / "a.dcm", small, file.getvalue(), syntax)
    assert np.abs(read(tmp_path, "a.dcm", channels=1)[0].numpy() - small / 255).max() < 0.02


def test_a_decoder_that_is_missing_is_named_with_its_license(tmp_path):
    write_encoded(tmp_path / "a.dcm", GRAY, b"\xff\xd8\xff\xd9", JPEGLosslessSV1)
    with pytest.raises(ConfigError, match=r"row 0: 'a\.dcm': .*install python-gdcm, or .*under the GPL"):
        read(tmp_path, "a.dcm")


def test_slices_are_ordered_by_their_place_and_rescaled_each_by_itself(tmp_path):
    write_series(tmp_path / "s", VOLUME, ["c.dcm", "a.dcm", "0002", "b.IMA"])
    write_dicom(tmp_path / "s/b.IMA", VOLUME[3] // 2, RescaleSlope="2", RescaleIntercept="1", **axial(7.5))
    (tmp_path / "s/DICOMDIR").write_bytes(b"x")
    (tmp_path / "s/license.txt").write_text("x")
    entry = one(tmp_path, "s", "volume")
    expected = VOLUME.astype(np.float32)
    expected[3] = VOLUME[3] // 2 * 2 + 1
    found = entry.read(0, False)[0].numpy()
    assert np.array_equal(found, expected[:, ::-1, ::-1])  # x to the right, y to the front
    assert entry.peek(0) == (4, 5, 6)
    assert entry.remarks(tmp_path / "s", torch.zeros(2)) == [
        "hold one value alone",
        "are folders with other files too, which are not read",
    ]


def axial(z):
    return {"ImagePositionPatient": [0, 0, z], "ImageOrientationPatient": AXIAL, "SeriesInstanceUID": "1.2"}


@pytest.mark.parametrize("seed", range(8))
def test_a_series_is_the_volume_that_nifti_has_of_it(tmp_path, seed):
    random = np.random.default_rng(seed)
    turn = np.eye(3)[random.permutation(3)] * random.choice([-1, 1], 3)[:, None]
    tilt, _ = np.linalg.qr(np.eye(3) + 0.1 * random.standard_normal((3, 3)))
    across, down = (turn @ tilt * np.sign(np.diag(tilt)))[:2]
    normal = np.cross(across, down)
    (tmp_path / "s").mkdir()
    for number in random.permutation(4):
        corner = np.array([3.0, -2.0, 8.0]) + 2.5 * number * normal
        tags = {"ImagePositionPatient": corner.round(6).tolist(), "SeriesInstanceUID": "1"}
        tags["ImageOrientationPatient"] = [*across.round(6), *down.round(6)]
        write_dicom(tmp_path / f"s/{random.integers(10**9)}.dcm", VOLUME[number], **tags)
    affine = np.eye(4)
    affine[:3, :3] = (np.stack([across, down, 2.5 * normal]) * [-1, -1, 1]).T
    nibabel.save(nibabel.Nifti1Image(VOLUME.T, affine), tmp_path / "a.nii")
    assert torch.equal(read(tmp_path, "s", "volume"), read(tmp_path, "a.nii", "volume"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"SeriesInstanceUID": "1.3"}, "its files '000.dcm' and '002.dcm' are not of one series"),
        ({"ImagePositionPatient": [0, 0, 2.5]}, "its slices '001.dcm' and '002.dcm' lie at the same place"),
        ({"ImagePositionPatient": [0, 0, 15]}, "are 5 mm apart, and most 2.5 mm"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]}, "slices '000.dcm' and '002.dcm' are not parallel"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "not two perpendicular ones"),
        ({"ImagePositionPatient": None}, "'002.dcm' in it does not state where its slice lies"),
        ({"ImagePositionPatient": [0, 1]}, "the place of '002.dcm' has 2 and 6 numbers"),
    ],
)
def test_what_is_no_series_is_refused_by_the_names_of_files(tmp_path, changes, reason):
    write_series(tmp_path / "s", VOLUME.repeat(2, 0))
    write_dicom(tmp_path / "s/002.dcm", VOLUME[1], **{**axial(5), **changes})
    with pytest.raises(ConfigError, match=f"row 0: 's': cannot be read: .*{reason}"):
        read(tmp_path, "s", "volume")


def test_slices_of_two_sizes_and_an_empty_folder_are_refused(tmp_path):
    write_series(tmp_path / "s", VOLUME)
    write_dicom(tmp_path / "s/009.dcm", VOLUME[0, :3], **axial(10))
    with pytest.raises(ConfigError, match=r"'000\.dcm' and '009\.dcm' are not of one size"):
        read(tmp_path, "s", "volume")
    (tmp_path / "e").mkdir()
    with pytest.raises(ConfigError, match="a folder without DICOM files"):
        read(tmp_path, "e", "volume")
    with pytest.raises(ConfigError, match="It is a folder"):
        read(tmp_path, "s")


def groups(**sequences):
    group = Dataset()
    for name, tags in sequences.items():
        item = Dataset()
        for tag, value in tags.items():
            setattr(item, tag, value)
        setattr(group, name, [item])
    return group


def test_frames_of_an_enhanced_file_have_a_place_and_a_slope_each(tmp_path):
    slopes, places = [1, 2, 3, 4], [5, 0, 10, 15]
    shared = groups(PlaneOrientationSequence={"ImageOrientationPatient": place(0)["ImageOrientationPatient"]})
    frames = []
    for slope, z in zip(slopes, places, strict=True):
        rescale = {"RescaleSlope": slope, "RescaleIntercept": 1}
        position = {"ImagePositionPatient": [0, 0, z]}
        frames.append(groups(PixelValueTransformationSequence=rescale, PlanePositionSequence=position))
    tags = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames, "NumberOfFrames": 4}
    write_dicom(tmp_path / "a.dcm", VOLUME, **tags)
    expected = VOLUME * np.array(slopes)[:, None, None] + 1
    assert np.array_equal(read(tmp_path, "a.dcm", "volume")[0].numpy(), expected[[1, 0, 2, 3]])
    assert one(tmp_path, "a.dcm", "volume").peek(0) == (4, 5, 6)


def test_frames_without_a_place_stay_in_order_and_an_image_has_the_first(tmp_path):
    write_dicom(tmp_path / "a.dcm", VOLUME, NumberOfFrames=4)
    assert np.array_equal(read(tmp_path, "a.dcm", "volume")[0].numpy(), VOLUME)
    first = read(tmp_path, "a.dcm", channels=1, window="full")[0].numpy()
    assert first == pytest.approx((VOLUME[0] + 32768.0) / 65535)
    remarks = one(tmp_path, "a.dcm").remarks(tmp_path / "a.dcm", torch.arange(2))
    assert any("several frames" in remark for remark in remarks)
    assert any("state no window" in remark for remark in remarks)


@pytest.mark.parametrize("kind", ["image", "volume"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("text", "it is not a DICOM file"),
        ("truncated", "cannot be decoded: .*less than expected"),
        ("rows", r"cannot be decoded|more than a sample may have \(4 GiB\)"),
        ("frames", r"more than a sample may have \(4 GiB\)"),
        ("empty", "it holds no image"),
        ("bits", "its 12 bits end at bit 15"),
        ("deflated", "it is deflated as a whole"),
        ("slope", "its RescaleSlope is not a number"),
        ("count", "its NumberOfFrames is not a number"),
        ("syntax", "does not state how its pixels are stored"),
        ("meaning", "its photometric interpretation is none of MONOCHROME1"),
    ],
)
def test_a_hostile_file_is_refused_and_tells_nothing_of_the_patient(tmp_path, kind, damage, reason):
    changes = {
        "rows": {"Rows": 65535, "Columns": 65535},
        "frames": {"NumberOfFrames": 2**30},
        "empty": {"Rows": 0},
        "bits": {"BitsStored": 12, "HighBit": 15},
    }
    replaced = {
        "slope": (b"2.5000", b"Doe^J."),
        "count": (b"0000000001", b"Doe^Jane^^"),
        "syntax": (b"1.2.840.10008.1.2.1", b"Doe^Jane^^^^^^^^^^^"),
        "meaning": (b"MONOCHROME2", b"Doe^Jane^^^"),
    }
    path = tmp_path / "a.dcm"
    changes["count"] = {"NumberOfFrames": "0000000001"}
    header = write_dicom(path, GRAY, RescaleSlope="2.5000", **changes.get(damage, {}))
    content = path.read_bytes()
    if damage == "text":
        path.write_bytes(b"x" * 300)
    elif damage == "truncated":
        path.write_bytes(content[:-20])
    elif damage in replaced:
        assert replaced[damage][0] in content
        path.write_bytes(content.replace(*replaced[damage]))
    elif damage == "deflated":
        header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
        header.save_as(path, enforce_file_format=True)
    with pytest.raises(ConfigError, match=rf"row 0: 'a\.dcm': cannot be read: .*({reason})") as told:
        read(tmp_path, "a.dcm", kind)
    assert "Doe" not in str(told.value)


def test_names_and_private_elements_are_never_loaded(tmp_path):
    header = dicom(GRAY, WindowCenter=1)
    header.private_block(0x0011, "US", create=True).add_new(1, "LO", PATIENT)
    header.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert PATIENT.encode() in (tmp_path / "a.dcm").read_bytes()
    assert PATIENT not in str(read_header(tmp_path / "a.dcm", with_pixels=True))
