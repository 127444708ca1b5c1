import torch

from hybrid_lightning.data.in_memory import DictDataset, InMemoryDataModule


class ImagesAndTexts(InMemoryDataModule):
    """Random images `(N, 3, 64, 64)` and texts of up to 12 tokens, with their attention mask."""

    def load(self) -> dict[str, DictDataset]:
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(3, 13, (48,), generator=generator)
        text = {
            "input_ids": torch.randint(3, 50, (48, 12), generator=generator),
            "attention_mask": (torch.arange(12) < lengths[:, None]).long(),
        }
        entries = {"image": torch.rand(48, 3, 64, 64, generator=generator), "text": text}
        return dict.fromkeys(("train", "val", "test"), DictDataset({**entries, "target": torch.arange(48) % 3}))
