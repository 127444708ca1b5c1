"""Scikit-learn's bundled handwritten digits as small color images."""

import torch
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule
from hybrid_lightning.errors import ConfigError, check_number
from hybrid_lightning.importing import import_extra


class DigitsDataModule(InMemoryDataModule):
    """1797 real 8×8 digits, upsampled (bilinear) to 3×64×64 with values in [0, 1].

    Batches have ``image`` `(B, 3, size, size)` float32 and ``target`` `(B,)` int64, the position of the digit in
    ``classes``. Each class is split alike: 60 % train, 20 % validation, 20 % test.

    Args:
        classes: Digits to keep, 0 to 9.
        batch_size: Samples per batch.
        size: Height and width of the images in pixels.
        seed: Seed of the split; the model's seed does not change it.
    """

    def __init__(self, classes: list[int], batch_size: int = 32, size: int = 64, seed: int = 0) -> None:
        super().__init__(batch_size)
        if len(classes) < 2 or len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
            raise ConfigError(f"{classes} are not at least two different digits from 0 to 9.", "data.classes")
        check_number(size, "data.size", 1)
        self.classes = classes
        self.size = size
        self.seed = seed

    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``."""
        digits = import_extra("sklearn.datasets", "demo", "DigitsDataModule").load_digits()
        images = torch.from_numpy(digits.images)
        labels = torch.from_numpy(digits.target)
        generator = torch.Generator().manual_seed(self.seed)
        rows_of_split: dict[str, list[Tensor]] = {"test": [], "val": [], "train": []}
        for digit in self.classes:
            own = torch.nonzero(labels == digit).flatten()
            own = own[torch.randperm(len(own), generator=generator)]
            share = round(0.2 * len(own))
            rows_of_split["test"].append(own[:share])
            rows_of_split["val"].append(own[share : 2 * share])
            rows_of_split["train"].append(own[2 * share :])
        splits = {}
        for split, parts in rows_of_split.items():
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
