"""Solar cells by electroluminescence: is this cell defective?"""

import torch
from torch.nn import functional

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule, stratified_mask
from hybrid_lightning.errors import ConfigError

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

    def __init__(self, batch_size: int = 32, size: int = 128, val_fraction: float = 0.15, seed: int = 0) -> None:
        super().__init__(batch_size)
        if not 1 <= size <= 300:
            raise ConfigError(f"data.size: {size} is not a number of pixels from 1 to 300.")
        if not 0 < val_fraction < 1:
            raise ConfigError(f"data.val_fraction: {val_fraction} is not between 0 and 1.")
        self.size, self.val_fraction, self.seed = size, val_fraction, seed

    def load(self) -> dict[str, DictDataset]:
        """The splits ``train``, ``val`` and ``test``."""
        try:
            from elpv_dataset.utils import load_dataset
        except ModuleNotFoundError:
            raise ConfigError(
                "data: ElpvDataModule needs elpv-dataset (CC BY-NC-SA 4.0, not for commercial use). Install it with: "
                "pip install 'hybrid_lightning[elpv]'"
            ) from None
        images, probabilities, types = load_dataset()
        target, poly = torch.from_numpy(probabilities > 0.5).long(), torch.from_numpy(types == "poly").long()
        chunks = torch.split(torch.from_numpy(images)[:, None], 128)
        small = torch.cat([functional.adaptive_avg_pool2d(chunk.float() / 255, self.size) for chunk in chunks])
        kinds = 2 * target + poly
        test = stratified_mask(kinds, TEST_SHARE, seed=0)
        rest = (~test).nonzero().flatten()
        val = stratified_mask(kinds[rest], self.val_fraction, self.seed)
        rows = {"train": rest[~val], "val": rest[val], "test": test.nonzero().flatten()}
        cells = functional.one_hot(poly, 2).float()
        return {
            split: DictDataset({"image": small[own].expand(-1, 3, -1, -1), "type": cells[own], "target": target[own]})
            for split, own in rows.items()
        }
