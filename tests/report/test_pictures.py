import base64
import io

import numpy as np
import torch
from PIL import Image

from hybrid_lightning.report import pictures


def decoded(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_a_picture_is_a_png_of_the_image():
    pixels = torch.arange(3 * 10 * 12).reshape(3, 10, 12) % 256
    [found] = pictures.shown({"photo": pixels / 255, "target": torch.tensor(1)})
    assert found["key"] == "photo"
    assert np.array_equal(decoded(found["picture"]), pixels.permute(1, 2, 0).numpy())


def test_gray_images_and_large_ones_and_other_ranges_are_shown():
    [found] = pictures.shown({"x": torch.linspace(-3, 5, 200 * 400).reshape(1, 200, 400)})
    picture = decoded(found["picture"])
    assert picture.shape == (48, 96)
    assert picture.min() == 0
    assert picture.max() == 255


def test_a_series_is_a_line_between_0_and_1():
    wave = torch.sin(torch.linspace(0, 20, 1000))
    for series in (wave, wave[None], wave[:, None].expand(1000, 2), torch.full((50,), 3.0)):
        [found] = pictures.shown({"x": series})
        assert 50 <= len(found["line"]) <= 96
        assert min(found["line"]) == 0
        assert max(found["line"]) in (0, 1)


def test_cells_are_texts_and_numbers_that_are_not_finite_do_no_harm():
    sample = {"x": torch.full((1, 8, 8), torch.nan), "present/x": torch.tensor(True), "id": torch.tensor(3)}
    assert [entry["key"] for entry in pictures.shown(sample)] == ["x"]
    [found] = pictures.texts({"note": "z" * 1000})
    assert (found["key"], len(found["text"])) == ("note", 300)
