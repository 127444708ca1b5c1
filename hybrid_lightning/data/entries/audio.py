"""Sound: a file per sample → its waveform, or how much energy its pitches have over time."""

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.entries.arrays import without_gaps
from hybrid_lightning.data.entries.checks import check_choice, check_column, check_count
from hybrid_lightning.data.entries.files import FileEntry
from hybrid_lightning.data.entries.series import window_start
from hybrid_lightning.errors import ConfigError, check_number

_WINDOW, _HOP = 0.025, 0.010
_FLOOR = 1e-6
_ZEROS, _ROLLOFF = 12, 0.95
_PIECE = 2**14
"""New samples that are computed at once; each needs about a hundred old ones in memory."""
_HIGHEST_RATE = 1_000_000


class AudioEntry(FileEntry):
    """A sound per sample (WAV, FLAC, OGG, MP3), read with soundfile (extra ``audio``): `(C, L)` float32 from -1 to 1.

    Args:
        key: The key of the batch.
        where: Config path, for errors.
        audio: Name of the column of paths.
        sample_rate: Samples per second; files with another rate are resampled, see `resample`.
        seconds: Length. Of longer files a part is read, a random one in training if `crop` says so; shorter ones end
            in silence. None reads whole files, which then have to be equally long within a batch.
        channels: 1 mixes all channels of a file; another number is the one that all files must have.
        crop: Which part of a longer file: ``random``, which is the middle unless training, ``start`` or ``end``.
        features: ``waveform``; or ``log_mel``, `(C, mels, frames)`, see `log_mel`, with a frame every 10 ms.
        mels: Number of bands of ``log_mel``.
        train: Transforms of each training sample, see `make_transforms`.
        eval: Transforms of each sample otherwise.

    Raises:
        ConfigError: If soundfile is missing, or an option is impossible.
    """

    def __init__(
        self,
        key: str,
        where: str,
        audio: Any,
        sample_rate: Any = 16000,
        seconds: Any = None,
        channels: Any = 1,
        crop: Any = "random",
        features: Any = "waveform",
        mels: Any = 64,
        train: Any = (),
        eval: Any = (),
    ) -> None:
        super().__init__(key, where, check_column(audio, f"{where}.audio"), train, eval)
        self.sample_rate = check_count(sample_rate, f"{where}.sample_rate", 100)
        self.channels = check_count(channels, f"{where}.channels")
        self.crop = check_choice(crop, f"{where}.crop", ("random", "start", "end"))
        self.features = check_choice(features, f"{where}.features", ("waveform", "log_mel"))
        self.mels = check_count(mels, f"{where}.mels")
        if seconds is not None:
            check_number(seconds, f"{where}.seconds", 1 / self.sample_rate)
        self.seconds: float | None = seconds
        if self.features == "log_mel" and not mel_filters(self.sample_rate, self.mels).any(1).all():
            raise ConfigError(f"{where}.mels: {mels} bands are narrower than the spectrum's resolution. Take fewer.")
        try:
            import soundfile  # noqa: F401
        except (ModuleNotFoundError, OSError) as error:  # OSError: no libsndfile
            raise ConfigError(
                f"{where}: sound is read with soundfile: {error}. Install it with: "
                f"pip install 'hybrid_lightning[audio]'"
            ) from None

    def load(self, path: Path, training: bool) -> Tensor:
        """`(C, L)`, or `(C, mels, frames)`."""
        sound, rate = self._read(path, training)
        if self.channels == 1:
            sound = sound.mean(0, keepdim=True)
        elif len(sound) != self.channels:
            raise ValueError(f"it has {len(sound)} channels, and 'channels' says {self.channels}")
        sound = resample(sound, rate, self.sample_rate)
        if self.seconds is not None:
            length = round(self.seconds * self.sample_rate)
            sound = functional.pad(sound[:, :length], (0, max(0, length - sound.shape[1])))
        return log_mel(sound, self.sample_rate, self.mels) if self.features == "log_mel" else sound

    def _read(self, path: Path, training: bool) -> tuple[Tensor, int]:
        """All channels `(C, L)` of the wanted part, and the file's rate."""
        import soundfile

        with soundfile.SoundFile(path) as file:
            rate, start, count = int(file.samplerate), 0, int(file.frames)
            if self.seconds is not None:
                wanted = math.ceil(self.seconds * rate)
                start, count = window_start(count, wanted, self.crop, training), min(count, wanted)
            if start:
                file.seek(start)
            samples = file.read(count, dtype="float32", always_2d=True)
        if not 1 <= rate <= _HIGHEST_RATE:
            raise ValueError(f"its rate of {rate} samples per second is not one of 1 to {_HIGHEST_RATE}")
        if not len(samples) or len(samples) < count:
            raise ValueError(f"it ends after {start + len(samples)} samples of {start + count}")
        return torch.from_numpy(without_gaps(samples, "refuse").T.copy()), rate

    def state(self, path: Path) -> tuple[int, ...]:
        """Channels and samples."""
        import soundfile

        info = soundfile.info(path)
        if not info.frames:
            raise ValueError("it has no samples")
        return int(info.channels), int(info.frames)


def resample(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """Band-limited interpolation (J. O. Smith, Digital Audio Resampling, ccrma.stanford.edu/~jos/resample).

    Each new sample is a sum over the old ones around it, weighted with a sinc of 12 zeros on each side under a Hann
    window. It lets frequencies pass up to 0.95 of half the lower of both rates.

    Args:
        sound: `(C, L)`.
        rate: Its samples per second.
        wanted: Those of the result.

    Returns:
        `(C, ceil(L × wanted / rate))`.
    """
    if rate == wanted:
        return sound
    common = math.gcd(rate, wanted)
    rate, wanted = rate // common, wanted // common
    weights = _weights(rate, wanted)
    taps = torch.arange(weights.shape[1])
    padded = functional.pad(sound, (len(taps) // 2 - 1, len(taps)))
    count, pieces = -(-sound.shape[1] * wanted // rate), []
    for start in range(0, count, _PIECE):
        new = torch.arange(start, min(count, start + _PIECE))
        windows = padded[:, (new * rate // wanted)[:, None] + taps]
        pieces.append(torch.einsum("cnt,nt->cn", windows, weights[new % wanted]))
    return torch.cat(pieces, dim=1)


@lru_cache(maxsize=8)
def _weights(rate: int, wanted: int) -> Tensor:
    """`(wanted, taps)`: the weights of the old samples around each of the places that a new one can have."""
    cutoff = _ROLLOFF * min(1.0, wanted / rate)  # of half the old rate
    half = math.ceil(_ZEROS / cutoff)
    place = (torch.arange(wanted, dtype=torch.float64) * rate % wanted / wanted)[:, None]
    distance = torch.arange(1 - half, half + 1, dtype=torch.float64) - place
    window = torch.cos(distance.clamp(-half, half) * (math.pi / 2 / half)) ** 2
    return (cutoff * torch.sinc(cutoff * distance) * window).float()


def log_mel(sound: Tensor, sample_rate: int, mels: int) -> Tensor:
    """Logarithm of the energy in bands of equal width on the mel scale.

    Windows of 25 ms (Hann) every 10 ms, centred on their time, with zeros beyond the ends; the spectrum's length is the
    smallest power of 2 of at least two windows. Energies are those of a window with sum 1, with 1e-6 added, so silence
    is -13.8.

    Args:
        sound: `(C, L)`.
        sample_rate: Samples per second.
        mels: Number of bands, from 0 to half the rate.

    Returns:
        `(C, mels, 1 + L // hop)`.
    """
    width, hop = round(_WINDOW * sample_rate), max(1, round(_HOP * sample_rate))
    window = torch.hann_window(width)
    spectrum = torch.stft(
        sound,
        _spectrum_length(sample_rate),
        hop,
        width,
        window / window.sum(),
        pad_mode="constant",
        return_complex=True,
    )
    return (mel_filters(sample_rate, mels) @ spectrum.abs().square() + _FLOOR).log()


def _spectrum_length(sample_rate: int) -> int:
    return 1 << (2 * round(_WINDOW * sample_rate) - 1).bit_length()


@lru_cache(maxsize=8)
def mel_filters(sample_rate: int, mels: int) -> Tensor:
    """`(mels, frequencies)`: triangles of height 1 between neighbours of `mels` + 2 equally spaced mels.

    The scale is that of HTK: 2595 log10(1 + f / 700) (Young et al., The HTK Book, 2006, section 5.6).
    """
    highest = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, highest, mels + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, _spectrum_length(sample_rate) // 2 + 1, dtype=torch.float64)
    low, middle, high = (edges[i : i + mels, None] for i in range(3))
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()
