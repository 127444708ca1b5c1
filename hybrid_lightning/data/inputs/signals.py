"""What is computed of sounds: another rate, and the energy in bands of pitch."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from hybrid_lightning.data.table import Array

_WINDOW = 0.025
_HOP = 0.010  # seconds
_FLOOR = 1e-6
_ZEROS = 12  # zeros of the sinc on each side
_ROLLOFF = 0.95


def resample(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """Band-limited interpolation with `scipy.signal.resample_poly`, see `_low_pass` for its filter.

    Sound `(C, L)` with `rate` samples per second → `(C, ceil(L × wanted / rate))` with `wanted`.
    """
    from scipy.signal import resample_poly

    if rate == wanted:
        return sound
    common = math.gcd(rate, wanted)
    rate //= common
    wanted //= common
    samples = resample_poly(sound.numpy(), wanted, rate, axis=1, window=_low_pass(max(rate, wanted)))
    return torch.from_numpy(samples)


@lru_cache(maxsize=8)
def _low_pass(ratio: int) -> Array:
    """`(taps,)` float32: a sinc under a Hann window that cuts frequencies at 0.95 of half the lower of both rates."""
    from scipy.signal import firwin

    # that of scipy cuts at half the rate itself, and lets -12 dB of what is 5 % above it through, this one -28 dB
    cutoff = _ROLLOFF / ratio
    half = math.ceil(_ZEROS / cutoff)
    taps: Array = firwin(2 * half + 1, cutoff, window="hann").astype("float32")
    return taps


def log_mel(sound: Tensor, sample_rate: int, mels: int) -> Tensor:
    """Logarithm of the energy in bands of equal width on the mel scale.

    Windows of 25 ms (Hann) every 10 ms, centered on their time, with zeros beyond the ends. Energies are those of a
    window with sum 1, with 1e-6 added, so silence is -13.8. Bands lie between 0 and half the rate.

    Sound `(C, L)` → `(C, mels, 1 + L // hop)`.
    """
    width = round(_WINDOW * sample_rate)
    hop = _hop(sample_rate)
    size = _spectrum_length(sample_rate)
    window = torch.hann_window(width)
    window = window / window.sum()
    spectrum = torch.stft(sound, size, hop, width, window, pad_mode="constant", return_complex=True)
    energy = mel_filters(sample_rate, mels) @ spectrum.abs().square()
    return (energy + _FLOOR).log()


def count_frames(length: int, sample_rate: int) -> int:
    """Number of frames that `log_mel` makes of so many samples."""
    return 1 + length // _hop(sample_rate)


def _hop(sample_rate: int) -> int:
    """Samples from one frame to the next."""
    return max(1, round(_HOP * sample_rate))


def _spectrum_length(sample_rate: int) -> int:
    """The smallest power of 2 of at least two windows."""
    return 1 << (2 * round(_WINDOW * sample_rate) - 1).bit_length()


@lru_cache(maxsize=8)
def mel_filters(sample_rate: int, mels: int) -> Tensor:
    """`(mels, frequencies)`: triangles of height 1 between neighbors of `mels` + 2 equally spaced mels.

    The scale is that of HTK: 2595 log10(1 + f / 700) (Young et al., The HTK Book, 2006, section 5.6).
    """
    highest = 2595 * math.log10(1 + sample_rate / 2 / 700)
    pitches = torch.linspace(0, highest, mels + 2, dtype=torch.float64)
    edges = 700 * (10 ** (pitches / 2595) - 1)  # in Hz
    count = _spectrum_length(sample_rate) // 2 + 1
    frequencies = torch.linspace(0, sample_rate / 2, count, dtype=torch.float64)
    low = edges[:-2, None]
    middle = edges[1:-1, None]
    high = edges[2:, None]
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()
