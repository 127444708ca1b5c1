import gzip
import io
import pickle
import struct
import zipfile

import nibabel
import numpy as np
import pytest
import torch
from torch.nn import functional

from hybrid_lightning.errors import ConfigError
from tests.data.inputs.bound import bound

RANDOM = np.random.default_rng(0)
VOXELS = RANDOM.standard_normal((4, 5, 6)).astype(np.float32)


def one(folder, file, kind="array", **given):
    return bound(folder, {"file": [file]}, **{kind: "file"}, **given)


def read(folder, file, kind="array", **given):
    return one(folder, file, kind, **given).read(0, False)


@pytest.mark.parametrize("dtype", ["float64", "float32", ">f4", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_becomes_float32_as_it_is(tmp_path, dtype, order):
    array = np.asarray((10 * VOXELS).astype(dtype), order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez_compressed(tmp_path / "b.npz", array)
    expected = torch.from_numpy(array.astype(np.float32))
    for name in ("a.npy", "b.npz"):
        found = read(tmp_path, name)
        assert found.dtype == torch.float32
        assert found.is_contiguous()
        assert torch.equal(found, expected)
        assert one(tmp_path, name).peek(0) == (4, 5, 6)


def test_a_single_number_becomes_a_vector(tmp_path):
    np.save(tmp_path / "a.npy", np.float64(3))
    assert read(tmp_path, "a.npy").tolist() == [3.0]
    assert one(tmp_path, "a.npy").peek(0) == (1,)


def test_one_of_several_arrays_is_chosen_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", left=np.arange(2), right=np.arange(3))
    assert read(tmp_path, "a.npz", name="right").tolist() == [0, 1, 2]
    for given in ({}, {"name": "middle"}):
        with pytest.raises(
            ConfigError, match=r"row 0: 'a\.npz': cannot be read: it holds the arrays \['left', 'right'\]"
        ):
            read(tmp_path, "a.npz", **given)


def test_nan_is_refused_or_0_and_infinity_always_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.array([1.0, np.nan]))
    with pytest.raises(ConfigError, match=r"1 of its values are nan; correct the file, or write 'gaps: zero'"):
        read(tmp_path, "a.npy")
    assert read(tmp_path, "a.npy", gaps="zero").tolist() == [1.0, 0.0]
    np.save(tmp_path / "b.npy", np.array([1.0, np.inf, np.nan]))
    np.save(tmp_path / "c.npy", np.array([1e300]))  # too large for float32
    for name in ("b.npy", "c.npy"):
        with pytest.raises(ConfigError, match=r"1 of its values are infinite"):
            read(tmp_path, name, gaps="zero")


class Trap:
    def __reduce__(self):
        return print, ("a file ran code",)


def npy_header(text):
    header = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def test_a_file_of_objects_runs_no_code(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", np.array([Trap()], dtype=object))
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npy", "b.npz"):
        for act in (lambda name=name: read(tmp_path, name), lambda name=name: one(tmp_path, name).peek(0)):
            with pytest.raises(ConfigError, match=r"it holds Python objects \(pickle\), which could run code"):
                act()
    with pytest.raises(ConfigError, match=r"it is neither an \.npy nor an \.npz file"):
        read(tmp_path, "c.npy")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}",
            "it is incomplete: 4000000000000 bytes",
        ),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2)}", r"it is empty: its shape is \(-1, 2\)"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2)}", r"it is empty: its shape is \(0, 2\)"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (1,)}", "it holds complex64, not numbers"),
        ("{'descr': '<U4', 'fortran_order': False, 'shape': (1,)}", "it holds <U4, not numbers"),
        ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "it holds .*, not numbers"),
        ("{'descr': ('<f4', (9999999,)), 'fortran_order': False, 'shape': (1,)}", "not numbers"),
        ("__import__('os').getcwd()", "cannot be read"),
        ("{" * 5000, "cannot be read"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path, header, reason):
    (tmp_path / "a.npy").write_bytes(npy_header(header) + b"\0" * 16)
    for act in (lambda: read(tmp_path, "a.npy"), lambda: one(tmp_path, "a.npy").peek(0)):
        with pytest.raises(ConfigError, match=rf"row 0: 'a\.npy': (.|\n)*{reason}"):
            act()


def test_a_small_file_that_states_an_enormous_array_is_refused(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("x.npy", "w") as stream,
    ):
        stream.write(npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (6000000,)}"))
        for _ in range(6):
            stream.write(bytes(10**6))
    assert read(tmp_path, "a.npz").shape == (6000000,)
    whole = (tmp_path / "a.npz").read_bytes()
    buffer = io.BytesIO(whole)
    with zipfile.ZipFile(buffer) as archive:
        true = struct.pack("<I", archive.getinfo("x.npy").file_size)
    (tmp_path / "a.npz").write_bytes(whole.replace(true, struct.pack("<I", 100)))  # the directory lies
    with pytest.raises(ConfigError, match=r"cannot be read: (it is incomplete|.*)"):
        read(tmp_path, "a.npz")


def test_more_than_a_sample_may_have_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid_lightning.data.inputs.numpy_files._LARGEST", 400)
    np.save(tmp_path / "a.npy", VOXELS)
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii.gz")
    for name, kind in (("a.npy", "array"), ("a.nii.gz", "volume")):
        with pytest.raises(ConfigError, match=r"it holds 0 GiB, more than a sample may have"):
            read(tmp_path, name, kind)


def test_what_cannot_be_read_is_told_with_row_file_and_reason(tmp_path):
    np.save(tmp_path / "whole.npy", VOXELS)
    np.savez(tmp_path / "whole.npz", VOXELS)
    for kind in ("npy", "npz"):
        whole = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(whole[:-100])
    damaged = bytearray((tmp_path / "whole.npz").read_bytes())
    damaged[200] ^= 255
    (tmp_path / "damaged.npz").write_bytes(damaged)
    (tmp_path / "text.npy").write_text("1 2 3")
    reasons = {
        "cut.npy": "it is incomplete: 480 bytes",
        "cut.npz": "not a zip file|incomplete|Bad",
        "damaged.npz": "Bad CRC-32",
        "text.npy": "it is neither",
        "gone.npy": "there is no such file in",
    }
    for name, reason in reasons.items():
        with pytest.raises(ConfigError, match=rf"^data\.inputs\.x: row 0: '{name}': .*({reason})"):
            read(tmp_path, name)


def test_a_volume_without_channels_gets_one(tmp_path):
    np.save(tmp_path / "a.npy", VOXELS)
    np.save(tmp_path / "b.npy", np.stack([VOXELS, -VOXELS]))
    assert torch.equal(read(tmp_path, "a.npy", "volume"), torch.from_numpy(VOXELS)[None])
    assert torch.equal(read(tmp_path, "b.npy", "volume"), torch.from_numpy(np.stack([VOXELS, -VOXELS])))
    np.save(tmp_path / "c.npy", VOXELS[0])
    with pytest.raises(ConfigError, match=r"its shape \(5, 6\) is neither \(D, H, W\) nor \(C, D, H, W\)"):
        read(tmp_path, "c.npy", "volume")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_axes_run_to_the_head_the_front_and_the_right(tmp_path, name):
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.diag([2.0, 2.0, 3.0, 1.0])), tmp_path / name)
    expected = torch.from_numpy(VOXELS.transpose(2, 1, 0).copy())[None]
    assert torch.equal(read(tmp_path, name, "volume"), expected)
    # the same head, lying otherwise in the file: y, x and z, with x to the left
    affine = np.array([[0, -2.0, 0, 0], [2.0, 0, 0, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(VOXELS[::-1].transpose(1, 0, 2), affine), tmp_path / f"other_{name}")
    assert torch.equal(read(tmp_path, f"other_{name}", "volume"), expected)
    assert one(tmp_path, f"other_{name}", "volume").peek(0) == (5, 4, 6)


def test_the_fourth_axis_of_nifti_becomes_the_channels(tmp_path):
    several = np.stack([VOXELS, VOXELS + 1, VOXELS + 2], axis=3)
    nibabel.save(nibabel.Nifti1Image(several, np.eye(4)), tmp_path / "a.nii")
    assert torch.equal(read(tmp_path, "a.nii", "volume"), torch.from_numpy(several.T.copy()))
    nibabel.save(nibabel.Nifti1Image(several[..., None], np.eye(4)), tmp_path / "b.nii")
    with pytest.raises(ConfigError, match=r"its shape \(4, 5, 6, 3, 1\) is neither \(x, y, z\) nor"):
        read(tmp_path, "b.nii", "volume")


def test_a_damaged_nifti_is_told_with_row_and_file(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii.gz")
    whole = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "short.nii").write_bytes(gzip.decompress(whole)[:-40])
    (tmp_path / "text.nii").write_text("no volume")
    (tmp_path / "a.mgz").write_bytes(whole)
    for name in ("cut.nii.gz", "short.nii", "text.nii", "gone.nii", "a.mgz"):
        with pytest.raises(ConfigError, match=rf"^data\.inputs\.x: row 0: '{name}': (cannot be read|there is no)"):
            read(tmp_path, name, "volume")
    for name in ("text.nii", "gone.nii", "a.mgz"):
        with pytest.raises(ConfigError, match=rf"row 0: '{name}'"):
            one(tmp_path, name, "volume").peek(0)


def test_sides_that_shrink_are_means_and_sides_that_grow_interpolated(tmp_path):
    volume = RANDOM.standard_normal((8, 6, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", volume)
    smaller = read(tmp_path, "a.npy", "volume", size=[4, 2, 4])[0]
    torch.testing.assert_close(smaller, torch.from_numpy(volume.reshape(4, 2, 2, 3, 4).mean((1, 3))))
    larger = read(tmp_path, "a.npy", "volume", size=[8, 6, 9])[0]
    expected = functional.interpolate(torch.from_numpy(volume).flatten(0, 1)[None], 9, mode="linear")[0]
    torch.testing.assert_close(larger, expected.view(8, 6, 9))
    assert read(tmp_path, "a.npy", "volume", size=5).shape == (1, 5, 5, 5)


def test_scales_of_volumes(tmp_path):
    several = np.stack([VOXELS, 3 * VOXELS + 7])
    np.save(tmp_path / "a.npy", several)
    unit = read(tmp_path, "a.npy", "volume", scale="unit")
    assert (unit.min(), unit.max()) == (0, 1)
    standard = read(tmp_path, "a.npy", "volume", scale="standard")
    expected = (several - several.mean((1, 2, 3), keepdims=True)) / several.std((1, 2, 3), keepdims=True)
    torch.testing.assert_close(standard, torch.from_numpy(expected))
    window = read(tmp_path, "a.npy", "volume", scale=[-1, 3])
    torch.testing.assert_close(window, torch.from_numpy(np.clip((several + 1) / 4, 0, 1)))


@pytest.mark.parametrize("scale", ["unit", "standard"])
@pytest.mark.parametrize("value", [0, 0.1, 1e9 + 0.1])
def test_a_constant_volume_becomes_0(tmp_path, scale, value):
    np.save(tmp_path / "a.npy", np.full((3, 3, 3), value))
    assert read(tmp_path, "a.npy", "volume", scale=scale).abs().max() < 1e-6


@pytest.mark.parametrize("scale", ["unit", "standard"])
def test_the_unit_of_a_volume_does_not_change_its_scaled_values(tmp_path, scale):
    np.save(tmp_path / "a.npy", VOXELS)
    np.save(tmp_path / "b.npy", VOXELS * 1e-14)
    expected = read(tmp_path, "a.npy", "volume", scale=scale)
    torch.testing.assert_close(read(tmp_path, "b.npy", "volume", scale=scale), expected)


def test_a_missing_library_is_named_with_its_installation(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    (tmp_path / "a.nii").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"^data\.inputs\.x: 'a\.nii' needs nibabel: .*\[nifti\]"):
        read(tmp_path, "a.nii", "volume")


@pytest.mark.parametrize("dtype", ["complex64", "rgb"])
def test_volumes_of_other_than_real_numbers_are_refused(tmp_path, dtype):
    colors = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    voxels = colors if dtype == "rgb" else VOXELS.astype(dtype) * 1j
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ConfigError, match=r"not real numbers; store them as channels, such as magnitude and phase"):
        read(tmp_path, "a.nii", "volume")
    np.save(tmp_path / "a.npy", VOXELS * 1j)
    with pytest.raises(ConfigError, match="it holds complex64, not numbers; store real and imaginary part"):
        read(tmp_path, "a.npy", "volume")


def test_values_that_are_large_beside_their_spread_are_scaled_before_they_are_rounded(tmp_path):
    large = 1.7e12 + 1000.0 * np.arange(120).reshape(4, 5, 6)
    np.save(tmp_path / "a.npy", large)
    nibabel.save(nibabel.Nifti1Image(large.T, np.eye(4)), tmp_path / "a.nii")
    for name in ("a.npy", "a.nii"):
        for scale in ("unit", "standard", [1.7e12, 1.8e12]):
            assert len(read(tmp_path, name, "volume", scale=scale).unique()) == 120
        with pytest.raises(ConfigError, match="large beside their differences"):
            read(tmp_path, name, "volume")
    with pytest.raises(ConfigError, match="large beside their differences"):
        read(tmp_path, "a.npy")


def test_suffixes_in_capitals_are_the_same_formats(tmp_path):
    np.save(tmp_path / "a.npy", VOXELS)
    (tmp_path / "a.npy").rename(tmp_path / "A.NPY")
    nibabel.save(nibabel.Nifti1Image(VOXELS.T, np.eye(4)), tmp_path / "b.nii")
    (tmp_path / "b.nii").rename(tmp_path / "B.NII")
    for name in ("A.NPY", "B.NII"):
        np.testing.assert_array_equal(read(tmp_path, name, "volume")[0], VOXELS)


def test_small_types_count_as_the_numbers_that_they_become(tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid_lightning.data.inputs.numpy_files._LARGEST", 1000)
    np.savez_compressed(tmp_path / "a.npz", np.zeros(300, bool))
    with pytest.raises(ConfigError, match="more than a sample may have"):
        read(tmp_path, "a.npz")
    np.savez_compressed(tmp_path / "a.npz", np.zeros(200, bool))
    assert read(tmp_path, "a.npz").shape == (200,)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_volume_whose_numbers_begin_far_behind_its_header_is_refused(tmp_path, name):
    nibabel.save(nibabel.Nifti1Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = struct.pack("<f", 2.0**30)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(ConfigError, match="its numbers begin at byte 1073741824"):
        read(tmp_path, name, "volume")


def test_the_second_version_of_the_format_is_read(tmp_path):
    nibabel.save(nibabel.Nifti2Image(VOXELS, np.eye(4)), tmp_path / "a.nii")
    assert torch.equal(read(tmp_path, "a.nii", "volume"), torch.from_numpy(VOXELS.T.copy())[None])
