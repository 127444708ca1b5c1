import copy
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from hybrid_lightning import HybridClassifier
from hybrid_lightning.network.fusion import GatedFusion
from hybrid_lightning.network.registry import REGISTRY
from hybrid_lightning.tasks.checkpoint import is_same_network
from hybrid_lightning.tasks.formats import READABLE
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
        ("version_5", "HybridClassifier"),
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


class StateAtStart(pl.Callback):
    """What the optimizer holds at the start of a run: group → state of each of its parameters."""

    def on_train_start(self, trainer, pl_module):
        [optimizer] = trainer.optimizers
        self.groups = {}
        for group in optimizer.param_groups:
            self.groups[group["name"]] = [copy.deepcopy(optimizer.state[parameter]) for parameter in group["params"]]


def test_a_fit_goes_on_from_format_4_without_the_heads_of_its_parts(capsys):
    path = HERE / "version_4.ckpt"
    model = HybridClassifier(num_classes=3, parts=PARTS)
    data = small.loader({"image": torch.randn(24, 2, 8, 8), "x": torch.randn(24, 4), "target": torch.arange(24) % 3})
    state = StateAtStart()
    trainer = small.trainer(max_epochs=2, callbacks=[state])
    trainer.fit(model, data, ckpt_path=path, weights_only=True)
    assert trainer.global_step == 6
    [saved] = torch.load(path, weights_only=True)["optimizer_states"]
    kept = [group for group in saved["param_groups"] if group["part"] != "part_heads"]
    assert len(kept) < len(saved["param_groups"])
    assert list(state.groups) == [group["name"] for group in kept]
    for group in kept:
        for index, found in zip(group["params"], state.groups[group["name"]], strict=True):
            assert found.keys() == saved["state"][index].keys()
            assert all(torch.equal(found[key], value) for key, value in saved["state"][index].items())
    assert "on_group_change" not in capsys.readouterr().out


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


WIDE = {"a": {"module": "torch.nn.Identity"}, "b": {"module": "MLP", "args": {"hidden": [5]}}}


@pytest.fixture
def before_shrinking(tmp_path):
    """A checkpoint of a run as files were before wide parts were shrunk, its data, and the outputs of its model."""
    data = small.loader({"a": torch.randn(24, 90), "b": torch.randn(24, 4), "target": torch.arange(24) % 3})
    model = HybridClassifier(num_classes=3, parts=WIDE, fusion={"args": {"shrink_above": None}})
    trainer = small.trainer()
    trainer.fit(model, data)
    path = tmp_path / "before.ckpt"
    trainer.save_checkpoint(path, weights_only=False)
    saved = torch.load(path, weights_only=True)
    del saved["hybrid_lightning"]["fusion"]["args"]
    assert "shrink_above" not in saved["hybrid_lightning"]["network"]["sizes"]["fusion"]
    torch.save(saved, path)
    batch = next(iter(data))
    with torch.no_grad():
        return path, data, batch, model.eval()(batch)


def test_a_model_of_before_wide_parts_were_shrunk_is_rebuilt_as_it_was(before_shrinking):
    path, _, batch, outputs = before_shrinking
    model = HybridClassifier.load_from_checkpoint(path)
    with torch.no_grad():
        assert torch.equal(model(batch), outputs)


def test_a_fit_goes_on_from_a_model_of_before_wide_parts_were_shrunk(before_shrinking, tmp_path):
    path, data, batch, _ = before_shrinking
    model = HybridClassifier(num_classes=3, parts=WIDE)
    trainer = small.trainer(max_epochs=2)
    trainer.fit(model, data, ckpt_path=path, weights_only=True)
    assert model.built().parts["fusion"].shrink_above is None
    trainer.save_checkpoint(tmp_path / "after.ckpt", weights_only=False)
    again = HybridClassifier.load_from_checkpoint(tmp_path / "after.ckpt")
    with torch.no_grad():
        assert torch.equal(again(batch), model.eval()(batch))


def test_a_fit_that_starts_from_such_weights_starts_at_what_they_computed(before_shrinking):
    path, _, batch, outputs = before_shrinking
    model = HybridClassifier(num_classes=3, parts=WIDE, init_from=str(path)).build(batch).eval()
    with torch.no_grad():
        assert torch.equal(model(batch), outputs)
