"""What is computed of sounds: another rate, and the energy in bands of pitch."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW, _HOP = 0.025, 0.010
_FLOOR = 1e-6
_ZEROS, _ROLLOFF = 12, 0.95
_PIECE = 2**14
"""New samples that are computed at once; each needs about a hundred old ones in memory."""
_DENSE = 2**18
"""Largest product of both rates, without common factors, for which a matrix is small enough."""


def resample(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """Band-limited interpolation (J. O. Smith, Digital Audio Resampling, ccrma.stanford.edu/~jos/resample).

    Each new sample is a sum over the old ones around it, weighted with a sinc of 12 zeros on each side under a Hann
    window. Frequencies are cut at 0.95 of half the lower of both rates.

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
    count = -(-sound.shape[1] * wanted // rate)
    if rate * wanted <= _DENSE:
        return _resampled_in_blocks(sound, rate, wanted)[:, :count]
    weights = _weights(rate, wanted)
    taps = torch.arange(weights.shape[1])
    padded, pieces = functional.pad(sound, (len(taps) // 2 - 1, len(taps))), []
    for start in range(0, count, _PIECE):
        new = torch.arange(start, min(count, start + _PIECE))
        windows = padded[:, (new * rate // wanted)[:, None] + taps]
        pieces.append(torch.einsum("cnt,nt->cn", windows, weights[new % wanted]))
    return torch.cat(pieces, dim=1)


def _resampled_in_blocks(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """The same as products with one matrix, which is faster where the ratio is that of small numbers."""
    matrix = _matrix(rate, wanted)
    times = len(matrix) // wanted
    blocks = -(-sound.shape[1] // (times * rate))
    span = matrix.shape[1]
    before = (span - times * rate) // 2 - 1
    padded = functional.pad(sound, (before, blocks * times * rate + span - before - sound.shape[1]))
    return (padded.unfold(1, span, times * rate)[:, :blocks] @ matrix.T).flatten(1)


@lru_cache(maxsize=8)
def _matrix(rate: int, wanted: int) -> Tensor:
    """`(new, old)`: the weights of the old samples around a block of at least 32 new ones, zeros between them."""
    weights, times = _weights(rate, wanted), -(-32 // wanted)
    taps = weights.shape[1]
    matrix = torch.zeros(times * wanted, times * rate + taps)
    for new, row in enumerate(matrix):
        first = new * rate // wanted
        row[first : first + taps] = weights[new % wanted]
    return matrix


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

    Windows of 25 ms (Hann) every 10 ms, centered on their time, with zeros beyond the ends; the spectrum's length is
    the smallest power of 2 of at least two windows. Energies are those of a window with sum 1, with 1e-6 added, so
    silence is -13.8.

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
    """`(mels, frequencies)`: triangles of height 1 between neighbors of `mels` + 2 equally spaced mels.

    The scale is that of HTK: 2595 log10(1 + f / 700) (Young et al., The HTK Book, 2006, section 5.6).
    """
    highest = 2595 * math.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, highest, mels + 2, dtype=torch.float64) / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, _spectrum_length(sample_rate) // 2 + 1, dtype=torch.float64)
    low, middle, high = (edges[i : i + mels, None] for i in range(3))
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()
