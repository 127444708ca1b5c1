"""The kinds of input that a manifest can have."""

from collections.abc import Mapping
from typing import Any

from hybrid_lightning.data.entries.base import Entry


def parse_entries(inputs: Mapping[str, Any]) -> dict[str, Entry]:
    """The entries of a batch from the config."""
    raise NotImplementedError
