"""Which samples of a batch are repetitions, that a sampler added so that all ranks get equally many."""

from typing import Any

from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

_KNOWN_ORDERS = (DistributedSampler.__iter__, DistributedSamplerWrapper.__iter__)


def own_samples(loaders: Any, batch_index: int, size: int) -> int:
    """How many samples of a batch, from its first on, are no repetitions; those after them are.

    torch's `DistributedSampler` deals a list of samples to the ranks, one by one. If they do not come out even, it puts
    the first samples at the end of the list once more, so repetitions are the last samples of a rank. A loader that
    does not take its batches from such a sampler in order has none that could be told: all its samples count.

    Args:
        loaders: A loader, or a list of one, as the Trainer uses it.
        batch_index: Number of the batch, from 0.
        size: Its number of samples.
    """
    loader = loaders[0] if isinstance(loaders, list | tuple) and len(loaders) == 1 else loaders
    if not isinstance(loader, DataLoader) or type(loader.batch_sampler) is not BatchSampler:
        return size
    batches = loader.batch_sampler
    sampler = batches.sampler
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or type(sampler).__iter__ not in _KNOWN_ORDERS:
        return size
    count: int = len(sampler.dataset)  # type: ignore[arg-type]
    own = len(range(sampler.rank, count, sampler.num_replicas)) - batch_index * batches.batch_size
    return min(max(own, 0), size)
