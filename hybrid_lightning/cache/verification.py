"""How much cached features differ from those of a live forward, and how much they may."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from hybrid_lightning.cache.splits import Outputs, Split, computing, outputs_of
from hybrid_lightning.network.batch import CACHED
from hybrid_lightning.network.hybrid_network import HybridNetwork
from hybrid_lightning.network.short_circuit import is_inside, parts_of


def largest_difference(
    trainer: Trainer,
    pl_module: LightningModule,
    network: HybridNetwork,
    split: Split,
    features: Outputs,
) -> tuple[float, float]:
    """The largest relative difference of features to a live forward, of one full and one ragged batch; what may be.

    For places within parts that is also the difference of what these parts make of them.
    """
    inside = [place for place in features if is_inside(place)]
    ends = sorted(parts_of(inside))
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(split.rows, generator=generator)
    ragged = max(1, split.size // 4 - 1)
    largest = 0.0
    allowed = 0.0
    with computing(trainer, network, split):
        for rows in (order[: split.size], order[-ragged:]):
            batch = split.read(rows.tolist())
            kept = {place: tensor[rows] for place, tensor in features.items()}
            live = outputs_of(trainer, pl_module, network, batch, [*kept, *ends])
            if inside:
                given = {place: kept[place] for place in inside}
                kept |= outputs_of(trainer, pl_module, network, {**batch, CACHED: given}, ends)
            for place, tensor in live.items():
                gap = relative_difference(kept[place], tensor)
                largest = max(largest, gap)
                allowed = max(allowed, tolerance(tensor.dtype))
    return largest, allowed


def relative_difference(kept: Tensor, live: Tensor) -> float:
    """The largest difference relative to the largest value; infinite where one is not a number and the other is."""
    kept = kept.double()
    live = live.double()
    if not torch.equal(kept.isfinite(), live.isfinite()):
        return float("inf")
    if not live.numel():
        return 0.0
    kept = kept.nan_to_num(0, 0, 0)
    live = live.nan_to_num(0, 0, 0)
    difference = kept - live
    gap = float(difference.abs().amax())
    size = float(live.abs().amax())
    return gap / size if size else gap


def tolerance(dtype: torch.dtype) -> float:
    """The relative difference that may come from batches of other sizes."""
    is_half = dtype in (torch.float16, torch.bfloat16)
    # of a sum in 16 bits that is rounded otherwise the last two bits may differ
    return 4 * torch.finfo(dtype).eps if is_half else 1e-5
