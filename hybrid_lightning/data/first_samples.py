"""The first samples of training data that cannot be read by index, such as those of a stream."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning.errors import ConfigError


class FirstSamples:
    """Batches from the beginning of a stream, until there are `most` samples; each pass is a new one.

    The last batch stays whole. A dataset that remembers its place between two passes goes on behind these samples.
    """

    def __init__(self, loader: Any, most: int) -> None:
        self.loader = loader
        if isinstance(loader, DataLoader):
            # with a generator of its own, so that making an iterator draws nothing from the run's
            self.loader = DataLoader(
                loader.dataset,
                **_order(loader),
                collate_fn=loader.collate_fn,
                num_workers=loader.num_workers,
                worker_init_fn=loader.worker_init_fn,
                multiprocessing_context=loader.multiprocessing_context,
                generator=torch.Generator().manual_seed(0),
            )
        self.most = most
        self.count = 0  # samples of the newest pass

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        if iterator is self.loader:
            raise ConfigError(
                "parts that read training data before the first step would take their samples away from the training, "
                "because the loader is an iterator. Give a DataLoader, or an iterable that can be started anew.",
                "data",
            )
        self.count = 0
        for batch in iterator:
            self.count += max(_samples_in(batch), 1)
            yield batch
            if self.count >= self.most:
                return


def _order(loader: DataLoader[Any]) -> dict[str, Any]:
    """The arguments of a loader that say which samples make a batch."""
    if loader.batch_size is not None:
        return {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
    if loader.batch_sampler is not None:
        return {"batch_sampler": loader.batch_sampler}
    is_stream = isinstance(loader.dataset, IterableDataset)
    return {"batch_size": None, "sampler": None if is_stream else loader.sampler}


def _samples_in(batch: Any) -> int:
    """The length of the first tensor with a dimension; 0 if there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    entries = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(entries, str) or not hasattr(entries, "__iter__"):
        return 0
    for entry in entries:
        found = _samples_in(entry)
        if found:
            return found
    return 0
