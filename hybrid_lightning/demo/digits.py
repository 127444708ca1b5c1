"""Scikit-learn's bundled handwritten digits as small color images."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule
from hybrid_lightning.errors import ConfigError, check_number
from hybrid_lightning.importing import import_extra


class DigitsDataModule(InMemoryDataModule):
    """1797 real 8×8 digits, upsampled (bilinear) to 3×64×64 with values in [0, 1].

    Batches have ``image`` `(B, 3, size, size)` float32 and ``target`` `(B,)` int64, the position of the digit in
    ``classes``. Each class is split alike: 60 % train, 20 % validation, 20 % test, by default.

    Args:
        classes: Digits to keep, 0 to 9.
        batch_size: Samples per batch.
        size: Height and width of the images in pixels.
        val_fraction: Share of each class for validation.
        test_fraction: Share of each class for the test.
        seed: Seed of the split; the model's seed does not change it.

    Raises:
        ConfigError: If scikit-learn (extra ``demo``) is missing, or a digit or fraction is impossible.
    """

    def __init__(
        self,
        classes: list[int],
        batch_size: int = 32,
        size: int = 64,
        val_fraction: float = 0.2,
        test_fraction: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size)
        if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
            raise ConfigError(f"{classes} are not at least two different digits from 0 to 9.", "data.classes")
        check_number(size, "data.size", 1)
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ConfigError("val_fraction and test_fraction are above 0, and together below 1.", "data")
        self.classes = classes
        self.size = size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed

    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``."""
        images, labels = _digits(import_extra("sklearn.datasets", "demo", "DigitsDataModule"))
        generator = torch.Generator().manual_seed(self.seed)
        test_rows = []
        val_rows = []
        train_rows = []
        for digit in self.classes:
            own = torch.nonzero(labels == digit).flatten()
            own = own[torch.randperm(len(own), generator=generator)]
            test = round(self.test_fraction * len(own))
            val = round(self.val_fraction * len(own))
            test_rows.append(own[:test])
            val_rows.append(own[test : test + val])
            train_rows.append(own[test + val :])
        splits = {}
        for split, parts in (("test", test_rows), ("val", val_rows), ("train", train_rows)):
            rows = torch.cat(parts)
            splits[split] = self._dataset(images[rows], labels[rows])
        return splits

    def _dataset(self, images: Tensor, labels: Tensor) -> DictDataset:
        small = images.float()[:, None] / 16  # gray levels are 0 to 16
        size = (self.size, self.size)
        large = functional.interpolate(small, size=size, mode="bilinear", align_corners=False)
        color = large.expand(-1, 3, -1, -1).contiguous()  # pretrained models take three channels
        target = torch.tensor([self.classes.index(digit) for digit in labels.tolist()])
        return DictDataset({"image": color, "target": target})


@cache
def _digits(datasets: Any) -> tuple[Tensor, Tensor]:
    """The images `(1797, 8, 8)` with gray levels 0 to 16 and their digits, which are not to be changed."""
    digits = datasets.load_digits()
    return torch.from_numpy(digits.images), torch.from_numpy(digits.target)
