"""What becomes of a convolution at a bias: how often, how far, where and how long it is above it."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

POOLS = ("share", "mean", "index", "stretch")
_WORD = 16  # positions


def pool_positives(
    activations: Tensor,
    counted: Tensor,
    biases: Tensor,
    pools: Sequence[str],
    length: int,
) -> Tensor:
    """Activations `(kernels, B, positions)` at biases `(kernels, thresholds)` → `(pools, kernels, thresholds, B)`."""
    activations = activations.unsqueeze(1)
    biases = biases[..., None, None]
    # floats, because torch compares into them and sums them several times as fast as into bool
    above = activations.new_empty(*biases.shape[:2], *counted.shape)
    torch.gt(activations, biases, out=above)
    times = above.sum(-1)
    at_least_once = times.clamp(min=1)
    pooled = []
    for pool in pools:
        if pool == "share":
            positions = counted.sum(-1)
            values = times / positions.clamp(min=1)
        elif pool == "mean":
            excess = (activations - biases).clamp_(min=0)
            values = excess.sum(-1) / at_least_once
        elif pool == "index":
            values = _mean_index(above, times, counted) / length
        else:
            # where zeros pad a series, most biases and the activations there are exactly 0
            reached = torch.empty_like(above)
            torch.ge(activations, biases, out=reached)
            values = _longest_stretch(reached) / length
        pooled.append(values)
    return torch.stack(pooled)


def _mean_index(above: Tensor, times: Tensor, counted: Tensor) -> Tensor:
    """Mean position of the ones of `(..., B, positions)`, where the first that counts is 1; 0 if there are none."""
    positions = above.shape[-1]
    index = torch.arange(1, positions + 1, device=above.device, dtype=above.dtype)
    first = counted.to(above.dtype).argmax(-1)
    total = above @ index - times * first
    return total / times.clamp(min=1)


def _longest_stretch(above: Tensor) -> Tensor:
    """Most ones of `(..., positions)` in a row, `(...)`."""
    # Words of 16 positions are looked up, because a scan over all positions takes several times as long.
    padded = functional.pad(above, (0, -above.shape[-1] % _WORD))
    powers = 2 ** torch.arange(_WORD, device=above.device, dtype=above.dtype)
    count = padded.shape[-1] // _WORD
    bits = padded.view(*padded.shape[:-1], count, _WORD)
    words = (bits @ powers).int()
    flat = words.flatten()
    of_words = []
    for run in _runs_of_words(above.device):
        found = run.index_select(0, flat)
        of_words.append(found.view(words.shape))
    at_start, at_end, inside = of_words
    ends = torch.arange(_WORD, padded.shape[-1] + 1, _WORD, device=above.device, dtype=inside.dtype)
    # where the run began that reaches the end of each word; one that fills the word began earlier
    own = (ends - at_end).where(at_end < _WORD, 0)
    begins = own.cummax(-1).values
    across = at_start[..., 1:] + ends[:-1] - begins[..., :-1]
    return torch.cat([inside, across], dim=-1).amax(-1).to(above.dtype)


@cache
def _runs_of_words(device: torch.device) -> Tensor:
    """Ones at the start, at the end and most in a row of each word `(3, 65536)`, lowest bit first."""
    codes = torch.arange(2**_WORD).unsqueeze(1)
    bits = codes.bitwise_right_shift(torch.arange(_WORD)) & 1
    at_start = bits.cumprod(1).sum(1)
    at_end = bits.flip(1).cumprod(1).sum(1)
    run = torch.zeros_like(at_start)
    longest = run
    for bit in bits.unbind(1):
        run = (run + 1) * bit
        longest = longest.maximum(run)
    return torch.stack([at_start, at_end, longest]).to(device, torch.float32)
