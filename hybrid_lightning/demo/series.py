"""Sets of series of the UCR and UEA archives, as the package sktime brings them."""

from collections.abc import Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid_lightning.data.in_memory import (
    DictDataset,
    InMemoryDataModule,
    checked_val_fraction,
    stratified_mask,
)
from hybrid_lightning.data.tensors import Tensors
from hybrid_lightning.errors import check_choice
from hybrid_lightning.importing import package_folder

SETS = ("ACSF1", "ArrowHead", "JapaneseVowels", "OSULeaf", "PLAID")


class Series(NamedTuple):
    """Some series of a set."""

    values: list[Tensor]  # of each series `(L,)`, of several channels `(C, L)`; the lengths may differ
    classes: Tensor  # (N,), int64, from 0

    def chosen(self, mask: Tensor) -> "Series":
        """Those where `mask` `(N,)` is True."""
        values = list(compress(self.values, mask))
        return Series(values, self.classes[mask])


class SeriesDataModule(InMemoryDataModule):
    """A set of series with its official split; a stratified share of the training series is for validation.

    | name | to tell apart | train, test | samples | channels |
    |---|---|---|---|---|
    | ``ACSF1`` | 10 kinds of appliances, by the power they draw | 100, 100 | 1460 | 1 |
    | ``ArrowHead`` | 3 kinds of projectile points, by their outlines | 36, 175 | 251 | 1 |
    | ``JapaneseVowels`` | 9 speakers, by their spectra | 270, 370 | 7 to 29 | 12 |
    | ``OSULeaf`` | 6 kinds of leaves, by their outlines | 200, 242 | 427 | 1 |
    | ``PLAID`` | 11 appliances, by their current; see `PlaidDataModule` | 537, 537 | 100 to 1344 | 1 |

    Sources: the UCR archive (Dau et al., arXiv 1810.07758), in which outlines and powers have mean 0 and deviation 1,
    and the UEA archive (Bagnall et al., arXiv 1811.00075). They state no license; sktime, whose files are read (extra
    ``demo``), is BSD. Each sample has

    - ``series``: ``values`` `(L,)`, of several channels `(C, L)`, as they were measured, L being the longest series of
      the set, zeros after the last sample; ``mask`` `(L,)` bool;
    - ``wave``: `(C, L)`, each channel standardized with the training series, zeros after the last sample;
    - ``target``: the class, from 0.

    Args:
        name: A set of the table above.
        batch_size: Samples per batch.
        val_fraction: Share of the training series used for validation, between 0 and 1.
        seed: Seed of the validation split; does not follow the seed of the model.

    Raises:
        ConfigError: If the name or fraction is impossible; in `setup`, if the package sktime is not installed.
    """

    def __init__(self, name: str, batch_size: int = 16, val_fraction: float = 0.15, seed: int = 0) -> None:
        super().__init__(batch_size)
        self.set_name = check_choice(name, "data.name", SETS, "set")
        self.val_fraction = checked_val_fraction(val_fraction)
        self.seed = seed

    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``."""
        whole, test = read_set(self.set_name)
        in_val = stratified_mask(whole.classes, self.val_fraction, self.seed)
        train = whole.chosen(~in_val)
        parts = {
            "train": train,
            "val": whole.chosen(in_val),
            "test": test,
        }
        longest = longest_of(whole.values + test.values)
        splits = {}
        for split, own in parts.items():
            entries = self.entries(own.values, train.values, longest)
            splits[split] = DictDataset({**entries, "target": own.classes})
        return splits

    def entries(
        self,
        series: list[Tensor],
        training: list[Tensor],
        longest: int,
    ) -> dict[str, Tensors]:
        """What the samples of some series have apart from the target; `training` gives what is to be fitted."""
        joined = torch.cat(training, dim=-1)
        std, mean = torch.std_mean(joined, dim=-1, keepdim=True)
        scaled = [(one - mean) / std for one in series]
        wave = as_measured(scaled, longest)["values"]
        if wave.ndim == 2:  # one channel
            wave = wave.unsqueeze(1)
        return {
            "series": as_measured(series, longest),
            "wave": wave,
        }


def read_set(name: str) -> tuple[Series, Series]:
    """The training and the test series of a set."""
    # the package is located, never imported, because it needs more than its data
    folder = package_folder("sktime", "demo", "SeriesDataModule") / "datasets" / "data" / name
    train = read_ts(folder / f"{name}_TRAIN.ts")
    test = read_ts(folder / f"{name}_TEST.ts")
    first = train.classes.min()  # some sets count their classes from 1
    train.classes.sub_(first)
    test.classes.sub_(first)
    return train, test


def read_ts(path: Path) -> Series:
    """Series of a ``.ts`` file without time stamps, ``value,value,...:label`` per row, with a field per channel."""
    _, _, data = path.read_text(encoding="utf-8").partition("@data")
    series = []
    classes = []
    for row in data.split():
        *fields, label = row.split(":")
        channels = []
        for field in fields:
            numbers = [float(value) for value in field.split(",")]
            channels.append(torch.tensor(numbers))
        series.append(channels[0] if len(channels) == 1 else torch.stack(channels))
        classes.append(int(label))
    return Series(series, torch.tensor(classes))


def longest_of(series: Sequence[Tensor]) -> int:
    """Samples of the longest one."""
    return max(one.shape[-1] for one in series)


def as_measured(series: Sequence[Tensor], length: int) -> dict[str, Tensor]:
    """The first samples of each `(..., L)`: ``values`` `(N, ..., length)`, ``mask`` `(N, length)`, zeros at the end."""
    count = len(series)
    channels = series[0].shape[:-1]
    values = torch.zeros(count, *channels, length)
    mask = torch.zeros(count, length, dtype=torch.bool)
    for row, one in enumerate(series):
        kept = one[..., :length]
        end = kept.shape[-1]
        values[row, ..., :end] = kept
        mask[row, :end] = True
    return {"values": values, "mask": mask}
