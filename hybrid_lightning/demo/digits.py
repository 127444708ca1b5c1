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
        different = set(classes)
        if len(different) < 2 or len(different) < len(classes) or not different <= set(range(10)):
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
        digits = import_extra("sklearn.datasets", "demo", "DigitsDataModule").load_digits()
        images = torch.from_numpy(digits.images)
        labels = torch.from_numpy(digits.target)
        generator = torch.Generator().manual_seed(self.seed)
        rows: dict[str, list[Tensor]] = {"test": [], "val": [], "train": []}
        for digit in self.classes:
            own = torch.nonzero(labels == digit).flatten()
            own = own[torch.randperm(len(own), generator=generator)]
            test = round(self.test_fraction * len(own))
            val = round(self.val_fraction * len(own))
            rows["test"].append(own[:test])
            rows["val"].append(own[test : test + val])
            rows["train"].append(own[test + val :])
        return {split: self._dataset(images, labels, torch.cat(parts)) for split, parts in rows.items()}

    def _dataset(self, images: Tensor, labels: Tensor, rows: Tensor) -> DictDataset:
        small = images[rows].float()[:, None] / 16  # gray levels are 0 to 16
        large = functional.interpolate(small, size=(self.size, self.size), mode="bilinear", align_corners=False)
        target = torch.tensor([self.classes.index(digit) for digit in labels[rows].tolist()])
        return DictDataset({"image": large.expand(-1, 3, -1, -1).contiguous(), "target": target})
