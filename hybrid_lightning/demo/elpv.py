"""Solar cells by electroluminescence: is this cell defective?"""

import torch
from torch.nn import functional

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule, checked_val_fraction, stratified_rows
from hybrid_lightning.errors import check_number
from hybrid_lightning.importing import import_extra

TEST_SHARE = 0.25


class ElpvDataModule(InMemoryDataModule):
    """2,624 electroluminescence images of solar cells with the type of the cell (Deitsch et al., Solar Energy 2019).

    A cell counts as defective (class 1, 31 % of all) if experts gave it a probability above one half. Batches have
    ``image`` `(B, 3, size, size)` float32 in [0, 1], the gray image on three channels; ``type`` `(B, 2)` float32, one
    for monocrystalline or polycrystalline; ``target`` `(B,)` int64. A quarter of the cells of each class and type is
    the test split, chosen once for all seeds.

    The data (extra ``elpv``) are licensed CC BY-NC-SA 4.0: not for commercial use.

    Args:
        batch_size: Samples per batch.
        size: Height and width of the images in pixels, at most 300, to which they are averaged down.
        val_fraction: Share of the training cells, of each class and type, for validation.
        seed: Seed of the choice of the validation split; the model's seed does not change it.

    Raises:
        ConfigError: If the package is missing, or a size or fraction is impossible.
    """

    def __init__(
        self,
        batch_size: int = 32,
        size: int = 128,
        val_fraction: float = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size)
        check_number(size, "data.size", 1, 300)
        self.size = size
        self.val_fraction = checked_val_fraction(val_fraction)
        self.seed = seed

    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``."""
        user = "ElpvDataModule (data under CC BY-NC-SA 4.0, not for commercial use)"
        images, probabilities, types = import_extra("elpv_dataset.utils", "elpv", user).load_dataset()
        target = torch.from_numpy(probabilities > 0.5).long()
        is_poly = torch.from_numpy(types == "poly").long()
        small = []
        for chunk in torch.split(torch.from_numpy(images)[:, None], 128):  # all at once would take 1 GB as floats
            unit = chunk.float() / 255
            small.append(functional.adaptive_avg_pool2d(unit, self.size))
        image = torch.cat(small)
        kind = functional.one_hot(is_poly, 2).float()

        strata = 2 * target + is_poly
        parts = stratified_rows(strata, TEST_SHARE, self.val_fraction, self.seed)
        splits = {}
        for split, rows in parts.items():
            color = image[rows].expand(-1, 3, -1, -1)
            splits[split] = DictDataset({"image": color, "type": kind[rows], "target": target[rows]})
        return splits
