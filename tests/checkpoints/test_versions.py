from pathlib import Path

import pytest
import torch

from hybrid_lightning import HybridClassifier
from hybrid_lightning.network.fusion import GatedFusion
from hybrid_lightning.network.registry import REGISTRY
from hybrid_lightning.tasks.checkpoint import READABLE, is_same_network
from tests import small
from tests.checkpoints.make import PARTS

HERE = Path(__file__).parent


def test_every_format_that_is_read_has_a_file():
    assert {int(path.stem.split("_")[1]) for path in HERE.glob("version_*.ckpt")} == set(READABLE)


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("version_3", "hybrid_lightning.tasks.classifier.HybridClassifier"),
        ("version_3_paths", "hybrid_lightning.tasks.classifier.HybridClassifier"),
        ("version_4", "HybridClassifier"),
    ],
)
def test_a_checkpoint_of_every_format_is_read(name, task):
    batch = torch.load(HERE / f"{name}_batch.pt", weights_only=True)
    path = HERE / f"{name}.ckpt"
    saved = torch.load(path, weights_only=True)["hybrid_lightning"]
    assert (saved["version"], saved["task"]) == (int(name.split("_")[1]), task)
    model = HybridClassifier.load_from_checkpoint(path)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), batch["outputs"])


def test_options_of_format_3_get_their_names_of_today(tmp_path):
    parts = {
        "image": PARTS["image"] | {"batch_norm": "recalibrate", "normalize": {"mean": [0.5] * 2, "std": [1.0] * 2}}
    }
    parts |= {"x": PARTS["x"]}
    model = HybridClassifier(num_classes=3, parts=parts, fusion={"args": {"standardize": "features"}})
    batch = {"image": torch.randn(4, 2, 8, 8), "x": torch.randn(4, 4)}
    checkpoint = {"state_dict": model.build(batch).eval().state_dict()}
    model.on_save_checkpoint(checkpoint)
    saved = checkpoint["hybrid_lightning"]
    saved["version"] = 3
    saved["facts"] = saved.pop("settings")
    image = saved["parts"]["image"]
    image["norm"], image["normalise"] = "stats", image.pop("normalize")
    del image["batch_norm"]
    saved["fusion"]["args"] = {"standardise": "features"}
    heads = saved["network"]["sizes"]["part_heads"]
    heads["standardise"] = heads.pop("standardize")
    torch.save(checkpoint, tmp_path / "old.ckpt")
    again = HybridClassifier.load_from_checkpoint(tmp_path / "old.ckpt")
    assert {name: part.plain() for name, part in again.parts.items()} == {n: p.plain() for n, p in model.parts.items()}
    assert again.fusion.plain() == model.fusion.plain()
    with torch.no_grad():
        assert torch.equal(again(batch), model(batch))


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


def test_a_network_saved_with_the_former_default_of_normalize_is_the_one_without_it():
    model = HybridClassifier(num_classes=3, parts={"x": {"module": "MLP"}})
    model.build({"x": torch.randn(4, 4)})
    checkpoint = {}
    model.on_save_checkpoint(checkpoint)
    saved = checkpoint["hybrid_lightning"]
    own = {"parts": {name: part.plain() for name, part in model.parts.items()}, "fusion": model.fusion.plain()}
    assert is_same_network(saved, own)
    saved["parts"]["x"]["normalize"] = saved["fusion"]["normalize"] = False
    assert is_same_network(saved, own)
    saved["parts"]["x"]["normalize"] = True
    assert not is_same_network(saved, own)
