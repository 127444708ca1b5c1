"""Writes a checkpoint of today's format and what its model answers: ``python -m tests.checkpoints.make``.

Run before a format changes. Files that exist stay as they are: those of format 3 hold module paths, as before the
files of the package moved.
"""

from pathlib import Path

import lightning.pytorch as pl
import torch

from hybrid_lightning import HybridClassifier
from hybrid_lightning.tasks.formats import CHECKPOINT_VERSION
from tests import small

PARTS = {
    "image": {
        "module": "ConvExtractor",
        "args": {"channels": [3, 4], "norm": True},
        "layer_decay": 0.5,
        "unfreeze": {"start": "1 steps", "every": "1 steps"},
    },
    "x": {"module": "MLP", "args": {"hidden": [5]}},
}


def main() -> None:
    pl.seed_everything(0)
    model = HybridClassifier(num_classes=3, parts=PARTS)
    data = small.loader({"image": torch.randn(24, 2, 8, 8), "x": torch.randn(24, 4), "target": torch.arange(24) % 3})
    trainer = small.trainer()
    trainer.fit(model, data)
    here = Path(__file__).parent / f"version_{CHECKPOINT_VERSION}"
    if here.with_suffix(".ckpt").exists():
        raise SystemExit(f"{here}.ckpt exists")
    trainer.save_checkpoint(here.with_suffix(".ckpt"), weights_only=False)
    batch = next(iter(data))
    with torch.no_grad():
        outputs = model.eval()(batch)
    torch.save({"image": batch["image"], "x": batch["x"], "outputs": outputs}, f"{here}_batch.pt")


if __name__ == "__main__":
    main()
