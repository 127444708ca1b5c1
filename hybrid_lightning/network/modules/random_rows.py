"""A random sample of what one pass over training samples brings."""

from typing import Any

import torch
from torch import Tensor


def drawn_seed(seed: int | None) -> int:
    """The seed, or for None one from torch's random numbers, which follow ``seed_everything``."""
    return int(torch.randint(2**31, ())) if seed is None else seed


class RandomRows:
    """A uniform random sample, of a bounded size, of rows that come in batches of any size.

    Each row draws a number, and the rows with the smallest numbers stay. So the sample depends on the generator and on
    the order of the rows, not on how they are cut into batches.

    Args:
        count: Rows to keep at most.
        generator: Of the choice.
        values: Numbers in all kept rows together, at most, if all were as large as the largest; one row is kept in any
            case. None is no limit.
        dtype: Of the numbers that rows draw; another one chooses other rows.
    """

    def __init__(
        self,
        count: int,
        generator: torch.Generator,
        values: int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.count = count
        self.values = values
        self.dtype = dtype
        self._generator = generator
        self._kept: list[tuple[float, Tensor]] = []

    def add(self, rows: Tensor) -> None:
        """Offers rows `(B, ...)`; their other sizes may differ from batch to batch."""
        if not len(rows):
            return
        if self.values is not None:
            size = max(1, rows[0].numel())
            affordable = max(1, self.values // size)
            self.count = min(self.count, affordable)
        draws = torch.rand(len(rows), dtype=self.dtype, generator=self._generator)
        limit = 1.0
        if len(self._kept) >= self.count:
            limit, _ = self._kept[-1]
        chosen = (draws < limit).nonzero().flatten()
        for index in chosen.tolist():
            # a copy, because a view would keep the whole batch
            row = rows[index].detach().cpu().clone()
            self._kept.append((float(draws[index]), row))
        self._kept.sort(key=_draw)
        del self._kept[self.count :]

    def rows(self) -> list[Tensor]:
        """The kept rows on the CPU, in random order."""
        return [row for _, row in self._kept]


def inputs_by_name(inputs: list[Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A part's inputs as keyword arguments: a single dict is that already, others are positional."""
    if len(inputs) == 1 and isinstance(inputs[0], dict):
        return inputs[0]
    return dict(zip(names, inputs, strict=False))


def _draw(entry: tuple[float, Tensor]) -> float:
    return entry[0]
