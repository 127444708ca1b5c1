import pickle
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from hybrid_lightning.errors import ConfigError
from tests.data.inputs.bound import bound

RANDOM = np.random.default_rng(0)
COLOR = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GRAY = RANDOM.integers(0, 256, (6, 9), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (6, 9)).astype(np.uint16)


def read(folder, image, name="a.png", **given):
    """The image as a batch of one has it."""
    if not isinstance(image, bytes):
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(folder / name)
    else:
        (folder / name).write_bytes(image)
    entry = bound(folder, {"file": [name]}, image="file", **given)
    value = entry.read(0, False)
    [sample] = entry.collate([value], value)
    assert sample.dtype == torch.float32
    return sample


def channels_first(array):
    return torch.from_numpy(array).permute(2, 0, 1)


def test_colors_of_8_bits_become_shares_of_255(tmp_path):
    assert torch.equal(read(tmp_path, COLOR), channels_first(COLOR).float() / 255)


def test_gray_becomes_three_equal_channels_or_one(tmp_path):
    expected = torch.from_numpy(GRAY).float() / 255
    assert torch.equal(read(tmp_path, GRAY), expected.expand(3, 6, 9))
    assert torch.equal(read(tmp_path, GRAY, channels=1), expected[None])


def test_one_channel_of_colors_is_their_luma(tmp_path):
    luma = torch.einsum("chw,c->hw", channels_first(COLOR).float() / 255, torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(read(tmp_path, COLOR, channels=1)[0], luma, atol=0.6 / 255, rtol=0)


def test_gray_of_16_bits_becomes_shares_of_65535(tmp_path):
    expected = torch.from_numpy(DEEP.astype(np.float32)) / 65535
    torch.testing.assert_close(read(tmp_path, DEEP, channels=1)[0], expected)
    torch.testing.assert_close(read(tmp_path, DEEP.astype(np.int32), "a.tiff")[2], expected)


@pytest.mark.parametrize("deep", [False, True])
def test_a_smaller_image_equals_torchs_antialiased_filter(tmp_path, deep):
    array = np.kron(RANDOM.integers(0, 256, (8, 12)), np.ones((5, 5))).astype(np.uint16 if deep else np.uint8)
    found = read(tmp_path, array * (257 if deep else 1), channels=1, size=[10, 20], resize="stretch")
    whole = torch.from_numpy(array.astype(np.float32))[None, None] / 255
    expected = functional.interpolate(whole, (10, 20), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(found, expected, atol=1e-4 if deep else 2 / 255, rtol=0)


def test_a_crop_keeps_the_aspect_and_the_centre(tmp_path):
    wide = np.zeros((4, 12), np.uint8)
    wide[:, 4:8] = 255
    assert read(tmp_path, wide, size=4, channels=1).min() == 1
    assert read(tmp_path, wide.T.copy(), size=4, channels=1).min() == 1


def test_a_padded_image_is_whole_with_black_beside_it(tmp_path):
    white = np.full((4, 8), 255, np.uint8)
    found = read(tmp_path, white, size=4, channels=1, resize="pad")[0]
    assert found.tolist() == [[0.0] * 4, [1.0] * 4, [1.0] * 4, [0.0] * 4]
    deep = read(tmp_path, white.astype(np.uint16) * 257, size=4, channels=1, resize="pad")[0]
    assert torch.equal(deep, found)


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_an_image_of_one_pixel_and_a_line_of_them_can_be_resized(tmp_path, resize):
    for shape in ((1, 1), (1, 300), (300, 1)):
        found = read(tmp_path, np.full(shape, 255, np.uint8), size=[3, 5], resize=resize)
        assert found.shape == (3, 3, 5)
        assert found.max() == 1


def test_a_palette_becomes_its_colors(tmp_path):
    few = (COLOR // 128 * 255).astype(np.uint8)
    expected = channels_first(few).float() / 255
    palette = Image.fromarray(few).quantize(8)
    assert palette.mode == "P"
    assert torch.equal(read(tmp_path, palette), expected)
    bits = Image.fromarray(GRAY).convert("1")
    assert set(read(tmp_path, bits).unique().tolist()) == {0.0, 1.0}


def test_an_image_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(COLOR).save(tmp_path / "a.png", exif=exif)
    entry = bound(tmp_path, {"file": ["a.png"]}, image="file")
    value = entry.read(0, False)
    turned = np.rot90(COLOR, -1).copy()
    assert torch.equal(entry.collate([value], value)[0], channels_first(turned).float() / 255)


def test_images_of_8_and_of_16_bits_meet_in_one_batch(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(tmp_path / "b.png")
    entry = bound(tmp_path, {"file": ["a.png", "b.png"]}, image="file", channels=1)
    values = [entry.read(row, True) for row in range(2)]
    batch = entry.collate([values[0], None, values[1]], values[0])
    torch.testing.assert_close(batch[0], batch[2])
    assert (batch[1].abs().sum(), batch.dtype) == (0, torch.float32)
    assert entry.collate([None, None], values[1]).shape == (2, 1, 6, 9)


def test_floating_images_have_to_lie_in_0_to_1(tmp_path):
    floating = (GRAY / 255).astype(np.float32)
    torch.testing.assert_close(read(tmp_path, floating, "a.tiff", channels=1)[0], torch.from_numpy(floating))
    for wrong in (floating * 255, floating - 1, np.full((2, 2), np.nan, np.float32)):
        with pytest.raises(ConfigError, match=r"row 0: 'a\.tiff': cannot be read: its pixels go from .* to .* 'array'"):
            read(tmp_path, wrong, "a.tiff")


def test_transforms_are_those_of_the_split_and_get_shares_of_1(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    flip = {"class_path": "RandomFlip", "init_args": {"p": 1.0}}
    scale = {"class_path": "Normalize", "init_args": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    entry = bound(tmp_path, {"file": ["a.png"]}, image="file", train=[flip], eval=[scale])
    plain = channels_first(COLOR).float() / 255
    torch.testing.assert_close(entry.read(0, True), plain.flip(-1))
    torch.testing.assert_close(entry.read(0, False), 2 * plain - 1)


def test_a_transform_that_fails_is_told_with_the_row(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    crop = {"class_path": "RandomCrop", "init_args": {"size": 7}}
    entry = bound(tmp_path, {"file": ["a.png"]}, image="file", train=[crop])
    with pytest.raises(
        ConfigError, match=r"x\.train\.0: RandomCrop fails on a tensor \(3, 6, 9\): .* \(row 0: 'a\.png'\)"
    ):
        entry.read(0, True)


def test_images_of_different_sizes_need_a_size(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    Image.fromarray(COLOR[:4]).save(tmp_path / "b.png")
    entry = bound(tmp_path, {"file": ["a.png", "b.png"]}, image="file")
    values = [entry.read(row, True) for row in range(2)]
    with pytest.raises(ConfigError, match=r"different shapes: \[\(3, 4, 9\), \(3, 6, 9\)\]\. Give them one size"):
        entry.collate(values, values[0])


def test_what_cannot_be_read_is_told_with_row_file_and_reason(tmp_path):
    Image.fromarray(np.tile(COLOR, (30, 30, 1))).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "nothing.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    names = ["cut.jpg", "text.png", "nothing.png", "folder.png", "gone.png", "/no/where.png"]
    entry = bound(tmp_path, {"file": names}, image="file", size=4)
    reasons = [
        "truncated",
        "cannot identify image",
        "cannot identify image",
        "no such file in",
        "no such file in",
        "no such file\\.",
    ]
    for row, (name, reason) in enumerate(zip(names, reasons, strict=True)):
        with pytest.raises(ConfigError, match=rf"^data\.inputs\.x: row {row}: '{name}': .*{reason}"):
            entry.read(row, True)
        if row:  # the header of the first is whole
            with pytest.raises(ConfigError, match=rf"row {row}: '{name}': "):
                entry.peek(row)
    assert entry.peek(0) == (3, 180, 270)


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(header)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    png += struct.pack(">I", 99) + b"IDAT"
    with pytest.raises(ConfigError, match="could be decompression bomb"):
        read(tmp_path, png + b"\0" * 100)


def test_an_entry_can_be_sent_to_another_process(tmp_path):
    Image.fromarray(COLOR).save(tmp_path / "a.png")
    entry = bound(tmp_path, {"file": ["a.png", "a.png"]}, image="file", train=["RandomFlip"])
    sent = pickle.loads(pickle.dumps(entry))
    assert torch.equal(sent.read(1, False), entry.read(1, False))


def drawing(mode: str) -> Image.Image:
    """Black on a ground that is transparent, and black there too."""
    alpha = np.zeros((6, 9), np.uint8)
    alpha[2:4, 3:6] = 255
    if mode in ("RGBA", "LA"):
        layers = np.dstack([np.zeros((6, 9, len(mode) - 1), np.uint8), alpha])
        return Image.fromarray(layers, mode)
    image = Image.fromarray(np.where(alpha == 255, 0, 7).astype(np.uint8), "L")
    if mode == "P":
        image.putpalette([0, 0, 0] * 256, "RGB")
    image.info["transparency"] = 7
    return image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P"])
def test_transparent_parts_show_the_ground_as_in_a_viewer(tmp_path, mode):
    drawing(mode).save(tmp_path / "a.png", **({"transparency": 7} if mode in ("L", "P") else {}))
    for channels in (1, 3):
        for alpha, ground in (("white", 1.0), ("black", 0.0)):
            entry = bound(tmp_path, {"file": ["a.png"]}, image="file", alpha=alpha, channels=channels)
            value = entry.read(0, False)
            sample = entry.collate([value], value)[0]
            assert sample.shape == (channels, 6, 9)
            assert sample[:, 0, 0].tolist() == [ground] * channels
            assert sample[:, 2, 3].tolist() == [0.0] * channels
    [remark] = entry.remarks(tmp_path / "a.png", value)[-1:]
    assert remark == "have transparent parts (alpha: black)"


def test_without_transparent_parts_alpha_changes_nothing(tmp_path):
    opaque = np.dstack([COLOR, np.full((6, 9), 255, np.uint8)])
    assert torch.equal(read(tmp_path, opaque), read(tmp_path, COLOR))
    hidden = np.dstack([COLOR, GRAY])
    assert torch.equal(read(tmp_path, hidden, alpha="drop"), read(tmp_path, COLOR))
    with pytest.raises(ConfigError, match="alpha"):
        read(tmp_path, COLOR, alpha="green")


def deep_color() -> bytes:
    """A PNG with 16 bits per color, of two pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    pixels = b"\0" + struct.pack(">6H", 1, 2, 3, 40000, 50000, 60000)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_what_a_batch_does_not_show_of_an_image_is_remarked(tmp_path):
    pages = [Image.fromarray(GRAY), Image.fromarray(GRAY)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray((DEEP // 16).astype(np.uint16)).save(tmp_path / "dark.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "empty.png")
    Image.fromarray(COLOR).save(tmp_path / "usual.png")
    (tmp_path / "deep.png").write_bytes(deep_color())
    names = ["pages.tif", "dark.png", "empty.png", "usual.png", "deep.png"]
    entry = bound(tmp_path, {"file": names}, image="file")
    found = [entry.remarks(tmp_path / name, entry.read(row, False)) for row, name in enumerate(names)]
    assert [len(remarks) for remarks in found] == [1, 1, 1, 0, 1]
    assert "16 bits per color" in found[4][0]
    assert "several pages" in found[0][0]
    assert "12 bits in 16" in found[1][0]
    assert found[2] == ["hold one value alone"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_stated_shape_is_that_of_the_turned_image(tmp_path, suffix):
    exif = Image.Exif()
    for turn in (1, 3, 6, 8):
        exif[0x0112] = turn
        Image.fromarray(COLOR).save(tmp_path / f"a.{suffix}", exif=exif)
        entry = bound(tmp_path, {"file": [f"a.{suffix}"]}, image="file")
        assert entry.peek(0) == tuple(entry.read(0, False).shape)


def test_a_format_that_a_program_would_have_to_run_is_refused(tmp_path):
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(ConfigError, match="cannot be read: cannot identify image file"):
        read(tmp_path, program)


@pytest.mark.parametrize(
    "suffix", ["bmp", "gif", "ico", "jp2", "jpg", "pcx", "png", "ppm", "sgi", "tga", "tif", "webp"]
)
def test_the_usual_formats_are_read(suffix, tmp_path):
    assert read(tmp_path, np.full((16, 16, 3), 100, np.uint8), f"a.{suffix}").mean().item() == pytest.approx(
        100 / 255, abs=0.02
    )
