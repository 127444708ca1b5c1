"""Scikit-learn's bundled handwritten digits as small color images."""

import torch
from torch.nn import functional

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule
from hybrid_lightning.errors import ConfigError


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
        if len(classes) < 2 or not set(classes) <= set(range(10)) or len(set(classes)) < len(classes):
            raise ConfigError(f"data.classes: {classes} are not at least two different digits from 0 to 9.")
        if size < 1:
            raise ConfigError(f"data.size: {size} is less than 1 pixel.")
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ConfigError("data: val_fraction and test_fraction are above 0, and together below 1.")
        self.classes, self.size, self.seed = classes, size, seed
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``."""
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ConfigError(
                "data: DigitsDataModule needs scikit-learn. Install it with: pip install 'hybrid_lightning[demo]'"
            ) from None
        digits = load_digits()
        images, labels = torch.from_numpy(digits.images), torch.from_numpy(digits.target).long()
        generator = torch.Generator().manual_seed(self.seed)
        chosen: dict[str, list[torch.Tensor]] = {"test": [], "val": [], "train": []}
        for digit in self.classes:
            indices = torch.nonzero(labels == digit).flatten()
            indices = indices[torch.randperm(len(indices), generator=generator)]
            test, val = (round(share * len(indices)) for share in (self.test_fraction, self.val_fraction))
            for split, part in zip(chosen, torch.split(indices, [test, val, len(indices) - test - val]), strict=True):
                chosen[split].append(part)
        return {split: self._dataset(images, labels, torch.cat(parts)) for split, parts in chosen.items()}

    def _dataset(self, images: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> DictDataset:
        small = images[indices].float()[:, None] / 16
        large = functional.interpolate(small, size=(self.size, self.size), mode="bilinear", align_corners=False)
        positions = {digit: position for position, digit in enumerate(self.classes)}
        target = torch.tensor([positions[int(label)] for label in labels[indices]])
        return DictDataset({"image": large.expand(-1, 3, -1, -1).contiguous(), "target": target})
