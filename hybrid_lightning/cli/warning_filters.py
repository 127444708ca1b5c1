"""Warnings of Lightning that do not apply to what this program does."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_KNOWN = (
    # the data of this package are in memory; worker processes would cost more than they bring
    ".*does not have many workers.*",
    # a repeated sample counts once, see tasks/evaluation.py
    "Using `DistributedSampler` with the dataloaders",
    # of a stream, whose order is taken as it comes
    "Couldn't infer the batch indices fetched",
    # Lightning 2.6.6 calls a function that torch 2.13 deprecates
    ".*isinstance.treespec, LeafSpec.*",
    # --resume continues in the folder of its run
    "Checkpoint directory .* exists and is not empty",
    # a new run has its own folder, also when it starts from the checkpoint of another one
    "The dirpath has changed from",
)
"""Regular expressions that match the start of a message."""


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Ignores these warnings; afterwards the filters of the process are what they were."""
    with warnings.catch_warnings():
        for message in _KNOWN:
            warnings.filterwarnings("ignore", message)
        yield
