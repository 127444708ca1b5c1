from pathlib import Path

import pytest
import torch

from hybrid_lightning import HybridClassifier
from hybrid_lightning.network.fusion import GatedFusion
from hybrid_lightning.network.registry import REGISTRY
from hybrid_lightning.tasks.checkpoint import CHECKPOINT_VERSION
from tests import small
from tests.checkpoints.make import PARTS

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["version_3", "version_3_paths"])
def test_a_checkpoint_of_before_the_files_moved_is_read(name):
    batch = torch.load(HERE / f"{name}_batch.pt", weights_only=True)
    path = HERE / f"{name}.ckpt"
    saved = torch.load(path, weights_only=True)["hybrid_lightning"]
    assert (saved["version"], saved["task"]) == (
        CHECKPOINT_VERSION,
        "hybrid_lightning.tasks.classifier.HybridClassifier",
    )
    model = HybridClassifier.load_from_checkpoint(path)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), batch["outputs"])


def test_a_fit_goes_on_from_a_checkpoint_that_names_modules_by_their_former_paths(tmp_path, capsys):
    parts = {
        "image": {"module": "ConvExtractor", "args": PARTS["image"]["args"], "unfreeze": "1 steps"},
        "x": PARTS["x"],
    }
    model = HybridClassifier(
        num_classes=3, parts=parts, fusion={"module": GatedFusion}, loss_function={"class_path": "FocalLoss"}
    )
    data = small.loader({"image": torch.randn(24, 2, 8, 8), "x": torch.randn(24, 4), "target": torch.arange(24) % 3})
    trainer = small.trainer(max_epochs=2)
    trainer.fit(model, data, ckpt_path=HERE / "version_3_paths.ckpt", weights_only=True)
    assert trainer.global_step == 6
    assert "applied from epoch" not in capsys.readouterr().out
    trainer.save_checkpoint(tmp_path / "new.ckpt", weights_only=False)
    saved = torch.load(tmp_path / "new.ckpt", weights_only=True)
    modules = [
        facts["module"] for facts in (*saved["hybrid_lightning"]["parts"].values(), saved["hybrid_lightning"]["fusion"])
    ]
    assert saved["hybrid_lightning"]["task"] == "HybridClassifier"
    assert modules == ["ConvExtractor", "MLP", "LinearHead", "GatedFusion"]
    assert "hybrid_lightning." not in repr(saved)


@pytest.mark.parametrize("name", REGISTRY)
def test_every_class_of_ours_is_written_by_its_registered_name(name):
    part = small.classifier(parts={"x": {"module": REGISTRY[name]}}).parts["x"]
    assert part.module == name
