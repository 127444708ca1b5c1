"""Mean and standard deviation of each channel, over the files of many rows."""

from typing import Any

import numpy as np

from hybrid_lightning.data.table import Array
from hybrid_lightning.errors import ConfigError

MOST_FITTED = 1000  # most files that moments are taken from; of more, so many at equal distances in the manifest


class Moments:
    """Merges means and sums of squares of one file after the other (Chan et al., 1979), in float64."""

    def __init__(self) -> None:
        self.count = self.mean = self.squares = np.zeros(())
        self.files = 0

    def add(self, steps: Array) -> None:
        """Adds a file's steps `(T, C)`, of which nan does not count."""
        steps = steps.astype(np.float64, copy=False)
        if self.mean.ndim and self.mean.shape != steps.shape[1:]:
            raise ValueError(f"it has {steps.shape[1]} channels, and those before it {len(self.mean)}")
        known = ~np.isnan(steps)
        own_count = known.sum(0)
        own_sum = np.where(known, steps, 0).sum(0)
        own_mean = own_sum / np.maximum(own_count, 1)
        centered = np.where(known, steps - own_mean, 0)
        own_squares = (centered**2).sum(0)
        total = np.maximum(self.count + own_count, 1)  # a channel may have had gaps only
        difference = own_mean - self.mean
        self.squares = self.squares + own_squares + difference**2 * self.count * own_count / total
        self.mean = self.mean + difference * own_count / total
        self.count = self.count + own_count
        self.files += 1

    def statistics(self, where: str) -> dict[str, Any]:
        """``mean`` and ``std`` of each channel, as plain data; a constant channel has std 1."""
        if not np.all(self.count):
            raise ConfigError(f"there is a channel without any value in the {self.files} training files.", where)
        std = np.sqrt(self.squares / self.count)
        varies = std > 1e-12 * np.abs(self.mean)  # relative: the rounding errors of a constant grow with it
        std = np.where(varies, std, 1.0)
        return {"mean": self.mean.tolist(), "std": std.tolist()}


def spread(rows: Array, most: int) -> list[int]:
    """At most so many rows, evenly spaced, the first and the last among them."""
    count = min(len(rows), most)
    places = np.linspace(0, len(rows) - 1, count).round()
    chosen: list[int] = np.asarray(rows)[places.astype(int)].tolist()
    return chosen
