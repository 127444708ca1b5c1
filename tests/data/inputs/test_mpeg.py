import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hybrid_lightning.data.inputs.audio import AudioInput
from hybrid_lightning.data.inputs.mpeg import with_length


def sound(rate: int, channels: int) -> bytes:
    """A second of noise as MP3, with its length in the first frame."""
    file = io.BytesIO()
    soundfile.write(file, 0.1 * np.random.default_rng(0).standard_normal((rate, channels)), rate, format="MP3")
    return file.getvalue()


def without_first_frame(content: bytes) -> bytes:
    return content[content.index(content[:2], 4) :]


@pytest.mark.parametrize(("rate", "channels"), [(44100, 1), (44100, 2), (22050, 1), (8000, 2)])
def test_a_sound_that_does_not_state_its_length_is_read_to_its_end(folder, rate, channels):
    whole = sound(rate, channels)
    Path("a.mp3").write_bytes(without_first_frame(whole))
    entry = AudioInput("x", "file", sample_rate=rate, channels=channels)
    found = entry.load(Path("a.mp3"), False)
    assert abs(soundfile.info("a.mp3").frames - found.shape[1]) > 300, "what libsndfile guesses"
    frame = 1152 if rate > 24000 else 576
    assert rate <= found.shape[1] <= rate + 3 * frame
    assert entry.stated_shape(Path("a.mp3")) == tuple(found.shape)
    known, _ = soundfile.read(io.BytesIO(whole), always_2d=True)
    shifts = [found[0, shift : shift + 3000].numpy() for shift in range(3 * frame)]
    assert max(np.corrcoef(known[:3000, 0], own)[0, 1] for own in shifts) > 0.99


def test_tags_before_and_behind_the_sound_do_not_count(folder):
    content = without_first_frame(sound(44100, 1))
    tag = b"ID3\x04\0\0" + bytes([0, 0, 2, 0]) + bytes(256)
    counted = with_length(content)
    assert counted is not None
    assert with_length(tag + content + b"TAG" + bytes(125)) == counted


def test_what_states_its_length_or_is_no_mp3_is_left_alone():
    assert with_length(sound(44100, 1)) is None
    for content in (b"", b"ID3", b"RIFF" + bytes(100), b"\xff\xfb", bytes(100_000)):
        assert with_length(content) is None
