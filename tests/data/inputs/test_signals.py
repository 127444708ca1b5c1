import math

import pytest
import torch

from hybrid_lightning.data.inputs.signals import log_mel, mel_filters, resample
from tests.data.inputs.test_audio import mel, tone


def test_what_the_new_rate_cannot_hold_vanishes():
    too_high = resample(tone(10000, 44100, 0.2), 44100, 16000)
    assert too_high[:, 200:-200].abs().max() < 0.01
    constant = resample(torch.ones(2, 3000), 44100, 16000)[:, 100:-100]
    torch.testing.assert_close(constant, torch.ones_like(constant), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (44100, 16000), (48000, 16000), (3, 100), (1000, 7)])
def test_a_new_sample_is_a_sum_over_the_old_ones_under_a_sinc(rate, wanted):
    for length in (1, 2, 500, 3001):
        sound = torch.randn(2, length)
        found = resample(sound, rate, wanted)
        assert (found.shape, found.dtype) == ((2, math.ceil(length * wanted / rate)), torch.float32)
        for new in {0, found.shape[1] // 3, found.shape[1] - 1}:
            cutoff = 0.95 * min(1, wanted / rate)  # in old samples, as is the distance
            distance = torch.arange(length) - torch.tensor(new * rate / wanted, dtype=torch.float64)
            window = torch.cos(distance * cutoff * math.pi / 24).square() * (distance.abs() * cutoff < 12)
            weights = (cutoff * torch.sinc(cutoff * distance) * window).float()
            torch.testing.assert_close(found[:, new], sound @ weights, atol=6e-3, rtol=0)


def test_a_tone_is_loudest_in_its_band():
    bands = log_mel(tone(1000, 16000, 0.5), 16000, 64)[0, :, 20]
    middles = torch.linspace(0, mel(8000), 66)[1:-1]
    assert abs(float(middles[bands.argmax()]) - mel(1000)) < mel(8000) / 65
    assert log_mel(torch.zeros(1, 800), 16000, 8).unique().tolist() == pytest.approx([math.log(1e-6)])


def test_bands_cover_the_spectrum():
    filters = mel_filters(16000, 64)
    assert filters.any(1).all()
    inner = (mel_filters(16000, 64).sum(0))[20:-60]
    assert ((inner > 0.95) & (inner < 1.05)).all()  # neighboring triangles add up to 1 on the mel scale
