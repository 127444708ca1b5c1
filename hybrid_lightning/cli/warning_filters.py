"""Warnings of Lightning, and lines of its log, that do not apply to what this program does."""

import logging
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
_KNOWN_LINES = (
    # of products that nothing here uses
    "💡 Tip",
    "TPU available: False",
    # the command names its checkpoint itself
    "Restoring states from the checkpoint path",
    "Loaded model weights from the checkpoint",
)
"""How lines of Lightning's log start."""
_LIGHTNING = "lightning.pytorch.utilities.rank_zero"


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Ignores these warnings and lines; afterwards the filters of the process are what they were."""
    log = logging.getLogger(_LIGHTNING)
    log.addFilter(_is_news)
    try:
        with warnings.catch_warnings():
            for message in _KNOWN:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        log.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_KNOWN_LINES)
