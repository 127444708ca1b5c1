import math
import pickle

import numpy as np
import pytest
import soundfile
import torch

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.modules.convolution import ResidualConv1d
from tests.data.inputs.bound import bound


def tone(pitch, rate, seconds):
    return torch.sin(2 * math.pi * pitch * torch.arange(round(seconds * rate), dtype=torch.float64) / rate).float()[
        None
    ]


def write(folder, sound, rate, name="a.wav", subtype="FLOAT"):
    soundfile.write(folder / name, sound.T.numpy() if isinstance(sound, torch.Tensor) else sound, rate, subtype=subtype)
    return name


def read(folder, name="a.wav", training=False, **given):
    return bound(folder, {"file": [name]}, audio="file", **given).read(0, training)


@pytest.mark.parametrize(
    ("name", "subtype", "error"), [("a.wav", "FLOAT", 0), ("a.wav", "PCM_16", 1e-4), ("a.flac", "PCM_16", 1e-4)]
)
def test_a_file_becomes_its_waveform(tmp_path, name, subtype, error):
    sound = 0.5 * tone(440, 16000, 0.1)
    write(tmp_path, sound, 16000, name, subtype)
    found = read(tmp_path, name)
    assert (found.shape, found.dtype) == ((1, 1600), torch.float32)
    assert (found - sound).abs().max() <= error


def test_channels_are_mixed_or_kept(tmp_path):
    both = torch.cat([tone(440, 16000, 0.01), tone(300, 16000, 0.01)])
    write(tmp_path, both, 16000)
    torch.testing.assert_close(read(tmp_path), both.mean(0, keepdim=True))
    assert torch.equal(read(tmp_path, channels=2), both)
    with pytest.raises(ConfigError, match=r"row 0: 'a\.wav': .* it has 2 channels, and 'channels' is 3"):
        read(tmp_path, channels=3)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 44101])
def test_a_resampled_tone_is_the_tone(tmp_path, rate):
    write(tmp_path, tone(1234, rate, 0.2), rate)
    found, expected = read(tmp_path, sample_rate=16000), tone(1234, 16000, 0.2)
    assert abs(found.shape[1] - 3200) <= 1
    inner = slice(200, 3000)  # its ends meet silence
    torch.testing.assert_close(found[:, inner], expected[:, inner], atol=2e-3, rtol=0)


def test_a_part_of_the_wanted_length_is_read(tmp_path):
    steps = torch.arange(1000.0)[None] / 1000
    write(tmp_path, steps, 1000)
    given = {"sample_rate": 1000, "seconds": 0.4}
    assert torch.equal(read(tmp_path, **given), steps[:, 300:700])
    entry = bound(tmp_path, {"file": ["a.wav"]}, audio="file", **given)
    starts = [round(float(entry.read(0, True)[0, 0]) * 1000) for _ in range(50)]
    assert len(set(starts)) > 20
    assert 0 <= min(starts) < max(starts) <= 600
    assert torch.equal(entry.read(0, False), entry.read(0, False))


def test_a_shorter_file_ends_in_silence(tmp_path):
    write(tmp_path, torch.ones(1, 300), 1000)
    found = read(tmp_path, sample_rate=1000, seconds=0.5)
    assert found.shape == (1, 500)
    assert (found[:, :300].min(), found[:, 300:].abs().max()) == (1, 0)


@pytest.mark.parametrize("rate", [8000, 44100, 44101])
def test_all_files_of_a_batch_have_one_length(tmp_path, rate):
    names = [
        write(tmp_path, tone(440, rate, 0.35), rate, "a.wav"),
        write(tmp_path, tone(440, 16000, 0.2), 16000, "b.wav"),
    ]
    entry = bound(tmp_path, {"file": names}, audio="file", seconds=0.301)
    values = [entry.read(row, True) for row in range(2)]
    batch = entry.collate([*values, None], values[0])
    assert batch.shape == (3, 1, round(0.301 * 16000))
    assert ResidualConv1d(1, channels=[4]).eval()(batch).isfinite().all()


def mel(hertz):
    return 2595 * math.log10(1 + hertz / 700)


def test_log_mel_equals_its_formulas(tmp_path):
    rate, mels = 16000, 40
    sound = np.random.default_rng(0).standard_normal(1600).astype(np.float32) / 4
    write(tmp_path, sound, rate)
    found = read(tmp_path, features="log_mel", mels=mels, standardize=False)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    padded = np.pad(sound.astype(np.float64), 200)
    frames = np.stack([padded[start : start + 400] * window / window.sum() for start in range(0, 1601, 160)])
    energy = np.abs(np.fft.rfft(frames, 1024)) ** 2
    expected = np.empty((mels, len(frames)))
    edges = [700 * (10 ** (mel(8000) * i / (mels + 1) / 2595) - 1) for i in range(mels + 2)]
    for band, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        weights = [
            max(0, min((f - low) / (middle - low), (high - f) / (high - middle))) for f in np.arange(513) * rate / 1024
        ]
        expected[band] = np.log(energy @ weights + 1e-6)
    assert found.shape == (1, mels, 11)
    torch.testing.assert_close(found[0], torch.from_numpy(expected).float(), atol=1e-3, rtol=1e-3)


def loud_and_soft(folder, **given):
    """Entries of three noises, the third a tenth as long; fitted on the first two."""
    noise = np.random.default_rng(0).standard_normal((3, 1600)).astype(np.float32)
    names = [write(folder, noise[0, None].T / 20, 16000, "soft.wav"), write(folder, noise[1, None].T / 4, 16000)]
    names.append(write(folder, noise[2, None, :160].T / 4, 16000, "short.wav"))
    return bound(folder, {"file": names}, fit_rows=[0, 1], audio="file", features="log_mel", mels=16, **given)


def test_bands_of_log_mel_are_standardized_with_the_training_sounds(tmp_path):
    entry = loud_and_soft(tmp_path)
    bands = torch.cat([entry.read(0, False), entry.read(1, False)], dim=2)[0]
    assert bands.shape == (16, 22)
    torch.testing.assert_close(bands.mean(1), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(bands.std(1, correction=0), torch.ones(16), atol=1e-4, rtol=0)
    assert loud_and_soft(tmp_path, standardize=False).statistics == {}


def test_a_standardized_sound_that_is_too_short_ends_in_the_mean(tmp_path):
    entry = loud_and_soft(tmp_path, seconds=0.1)
    short = entry.read(2, False)
    assert short.shape == entry.read(0, False).shape == (1, 16, 11)
    assert (short[..., 2:] == 0).all()
    assert (short[..., :2] != 0).all()


def test_statistics_of_a_run_that_did_not_standardize_leave_the_logarithms(tmp_path):
    entry = loud_and_soft(tmp_path)
    entry.statistics = {}
    assert torch.equal(entry.read(0, False), loud_and_soft(tmp_path, standardize=False).read(0, False))


def test_only_log_mel_is_standardized_and_pooled_over_time(tmp_path):
    write(tmp_path, tone(440, 16000, 0.1), 16000)
    entry = bound(tmp_path, {"file": ["a.wav"]}, audio="file")
    assert (entry.statistics, entry.inferred_arguments) == ({}, {})
    assert loud_and_soft(tmp_path).inferred_arguments == {"part_pool": "time"}


def test_what_cannot_be_read_is_told_with_row_file_and_reason(tmp_path):
    write(tmp_path, torch.tensor([[0.1, float("nan"), 0.2]]), 16000, "nan.wav")
    write(tmp_path, torch.zeros(1, 0), 16000, "empty.wav", "PCM_16")
    (tmp_path / "text.wav").write_text("no sound")
    write(tmp_path, tone(440, 16000, 1), 16000, "whole.flac", "PCM_16")
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 3])
    reasons = {
        "nan.wav": "1 of its values are nan",
        "empty.wav": "it ends after 0 samples of 0",
        "text.wav": "cannot be read",
        "cut.flac": "cannot be read",
        "gone.wav": "there is no such file in",
    }
    for name, reason in reasons.items():
        with pytest.raises(ConfigError, match=rf"^data\.inputs\.x: row 0: '{name}': .*{reason}"):
            read(tmp_path, name)
    for name in ("empty.wav", "text.wav", "gone.wav"):
        with pytest.raises(ConfigError, match=rf"row 0: '{name}'"):
            bound(tmp_path, {"file": [name]}, audio="file").peek(0)


def test_a_rate_from_another_world_is_refused(tmp_path):
    write(tmp_path, torch.zeros(1, 10), 2_000_000)
    with pytest.raises(ConfigError, match=r"its rate of 2000000 samples per second is not one of 1 to 1000000"):
        read(tmp_path)


def test_a_header_tells_channels_and_samples(tmp_path):
    write(tmp_path, torch.zeros(2, 123), 8000)
    assert bound(tmp_path, {"file": ["a.wav"]}, audio="file").peek(0) == (2, 123)


def test_an_entry_can_be_sent_to_another_process(tmp_path):
    write(tmp_path, tone(440, 16000, 0.1), 16000)
    entry = bound(tmp_path, {"file": ["a.wav"]}, audio="file", features="log_mel", mels=8)
    assert torch.equal(pickle.loads(pickle.dumps(entry)).read(0, False), entry.read(0, False))


@pytest.mark.parametrize("module", ["soundfile", "scipy.signal"])
def test_a_missing_library_is_named_with_its_installation(tmp_path, monkeypatch, module):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    library = module.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"^data\.inputs\.x: sound needs {library}: .*\[audio\]"):
        bound(tmp_path, {"file": ["a.wav"]}, audio="file")


def test_a_rate_that_would_blow_a_sound_up_is_refused_before_it_is_decoded(tmp_path):
    write(tmp_path, np.zeros((2_000_000, 1), np.float32), 1)
    with pytest.raises(ConfigError, match="more than a sample may have"):
        read(tmp_path, sample_rate=8000)


def test_whole_numbers_in_a_floating_file_are_no_sound(tmp_path):
    write(tmp_path, np.array([[0.0], [32767.0]], np.float32), 16000)
    with pytest.raises(ConfigError, match="its values reach 32767, and a sound's lie from -1 to 1"):
        read(tmp_path)
    write(tmp_path, np.array([[0.0], [1.4]], np.float32), 16000)
    assert read(tmp_path).max() > 1


@pytest.mark.parametrize("given", [{"features": "waveform"}, {"features": "log_mel", "standardize": False}])
def test_statistics_of_another_config_do_not_standardize_what_is_not_to_be(tmp_path, given):
    write(tmp_path, 0.5 * tone(440, 16000, 0.1), 16000)
    entry = bound(tmp_path, {"file": ["a.wav"]}, audio="file", mels=8, **given)
    expected = entry.read(0, False)
    entry.statistics = {"mean": [1.0] * 8, "std": [2.0] * 8}
    assert torch.equal(entry.read(0, False), expected)
