import math

import pytest
import scipy.signal
import torch

from hybrid_lightning.data.inputs.signals import log_mel, mel_filters, resample
from tests.data.inputs.test_audio import mel, tone


def test_what_the_new_rate_cannot_hold_vanishes():
    too_high = resample(tone(10000, 44100, 0.2), 44100, 16000)
    assert too_high[:, 200:-200].abs().max() < 0.01
    constant = resample(torch.ones(2, 3000), 44100, 16000)[:, 100:-100]
    torch.testing.assert_close(constant, torch.ones_like(constant), atol=1e-3, rtol=0)


def test_resampling_agrees_with_scipys():
    noise = torch.randn(1, 4410)
    smooth = torch.from_numpy(
        scipy.signal.sosfiltfilt(scipy.signal.butter(8, 5000, fs=44100, output="sos"), noise).copy()
    )
    expected = scipy.signal.resample_poly(smooth.numpy(), 160, 441, axis=1, window=("kaiser", 8.0))
    found = resample(smooth.float(), 44100, 16000)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[:, 60:-60], torch.from_numpy(expected).float()[:, 60:-60], atol=5e-3, rtol=0)


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (44100, 16000), (48000, 16000), (3, 1000), (1000, 7)])
def test_a_matrix_and_pieces_give_the_same_samples(monkeypatch, rate, wanted):
    for length in (1, 2, 500, 3001):
        sound = torch.randn(2, length)
        whole = resample(sound, rate, wanted)
        assert whole.shape == (2, math.ceil(length * wanted / rate))
        with monkeypatch.context() as patch:
            patch.setattr("hybrid_lightning.data.inputs.signals._DENSE", 0)
            patch.setattr("hybrid_lightning.data.inputs.signals._PIECE", 77)
            torch.testing.assert_close(resample(sound, rate, wanted), whole, atol=1e-5, rtol=1e-5)


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
