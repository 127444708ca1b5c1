"""What is computed of sounds: another rate, and the energy in bands of pitch."""

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW = 0.025
_HOP = 0.010  # seconds
_FLOOR = 1e-6
_ZEROS = 12  # zeros of the sinc on each side
_ROLLOFF = 0.95
_PIECE = 2**14  # new samples that are computed at once; each needs about a hundred old ones in memory
_DENSE = 2**18  # largest product of both rates, without common factors, for which a matrix is small enough


def resample(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """Band-limited interpolation (J. O. Smith, Digital Audio Resampling, ccrma.stanford.edu/~jos/resample).

    Each new sample is a sum over the old ones around it, weighted with a sinc of 12 zeros on each side under a Hann
    window. Frequencies are cut at 0.95 of half the lower of both rates.

    Sound `(C, L)` with `rate` samples per second → `(C, ceil(L × wanted / rate))` with `wanted`.
    """
    if rate == wanted:
        return sound
    common = math.gcd(rate, wanted)
    rate //= common
    wanted //= common
    count = -(-sound.shape[1] * wanted // rate)  # rounded up
    if rate * wanted <= _DENSE:
        return _resample_by_matrix(sound, rate, wanted)[:, :count]
    weights = _weights(rate, wanted)
    count_taps = weights.shape[1]
    taps = torch.arange(count_taps)
    padded = functional.pad(sound, (count_taps // 2 - 1, count_taps))
    pieces = []
    for start in range(0, count, _PIECE):
        new = torch.arange(start, min(count, start + _PIECE))
        first = new * rate // wanted  # the old sample that the window of each new one begins with
        windows = padded[:, first[:, None] + taps]
        pieces.append(torch.einsum("cnt,nt->cn", windows, weights[new % wanted]))
    return torch.cat(pieces, dim=1)


def _resample_by_matrix(sound: Tensor, rate: int, wanted: int) -> Tensor:
    """The same as products of blocks with one matrix, which is faster where the ratio is that of small numbers."""
    matrix = _matrix(rate, wanted)
    new, old = matrix.shape
    step = new // wanted * rate  # old samples from one block to the next
    blocks = -(-sound.shape[1] // step)
    before = (old - step) // 2 - 1
    after = blocks * step + old - before - sound.shape[1]
    padded = functional.pad(sound, (before, after))
    windows = padded.unfold(1, old, step)[:, :blocks]
    return (windows @ matrix.T).flatten(1)


@lru_cache(maxsize=8)
def _matrix(rate: int, wanted: int) -> Tensor:
    """`(new, old)`: the weights of the old samples around a block of at least 32 new ones, zeros between them."""
    weights = _weights(rate, wanted)
    taps = weights.shape[1]
    periods = -(-32 // wanted)
    matrix = torch.zeros(periods * wanted, periods * rate + taps)
    for new, row in enumerate(matrix):
        first = new * rate // wanted
        row[first : first + taps] = weights[new % wanted]
    return matrix


@lru_cache(maxsize=8)
def _weights(rate: int, wanted: int) -> Tensor:
    """`(wanted, taps)`: the weights of the old samples around each of the places that a new one can have."""
    cutoff = _ROLLOFF * min(1.0, wanted / rate)  # of half the old rate
    half = math.ceil(_ZEROS / cutoff)
    place = torch.arange(wanted, dtype=torch.float64) * rate % wanted / wanted
    taps = torch.arange(1 - half, half + 1, dtype=torch.float64)
    distance = taps - place[:, None]
    angle = distance.clamp(-half, half) * (math.pi / 2 / half)
    window = torch.cos(angle) ** 2  # Hann
    return (cutoff * torch.sinc(cutoff * distance) * window).float()


def log_mel(sound: Tensor, sample_rate: int, mels: int) -> Tensor:
    """Logarithm of the energy in bands of equal width on the mel scale.

    Windows of 25 ms (Hann) every 10 ms, centered on their time, with zeros beyond the ends. Energies are those of a
    window with sum 1, with 1e-6 added, so silence is -13.8. Bands lie between 0 and half the rate.

    Sound `(C, L)` → `(C, mels, 1 + L // hop)`.
    """
    width = round(_WINDOW * sample_rate)
    hop = max(1, round(_HOP * sample_rate))
    size = _spectrum_length(sample_rate)
    window = torch.hann_window(width)
    window = window / window.sum()
    spectrum = torch.stft(sound, size, hop, width, window, pad_mode="constant", return_complex=True)
    energy = mel_filters(sample_rate, mels) @ spectrum.abs().square()
    return (energy + _FLOOR).log()


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
