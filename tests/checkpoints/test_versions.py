from pathlib import Path

import pytest
import torch

from hybrid_lightning import HybridClassifier
from hybrid_lightning.tasks.checkpoints import CHECKPOINT_VERSION

HERE = Path(__file__).parent


@pytest.mark.parametrize("version", range(1, CHECKPOINT_VERSION + 1))
def test_a_checkpoint_of_every_format_is_read(version):
    batch = torch.load(HERE / f"version_{version}_batch.pt", weights_only=True)
    path = HERE / f"version_{version}.ckpt"
    assert torch.load(path, weights_only=True)["hybrid_lightning"]["version"] == version
    model = HybridClassifier.load_from_checkpoint(path)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), batch["outputs"])
