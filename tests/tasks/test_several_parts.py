"""Several parts that meet in a fusion: missing modalities, contributions, rebuilding."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_lightning import HybridClassifier
from hybrid_lightning.cli import main
from hybrid_lightning.errors import ConfigError
from tests.small import loader, table
from tests.tiny import trainer


def data(lacking: tuple[int, ...] = (), **more: Any) -> Any:
    """27 samples with two inputs; ``a`` is absent in some of them."""
    there = torch.ones(27, dtype=torch.bool)
    there[list(lacking)] = False
    entries = {"a": table(), "b": table(seed=2), "target": (table().sum(1) > 0).long(), "id": torch.arange(100, 127)}
    return loader({**entries, **({"present/a": there} if lacking else {}), **more})


def two_parts(**options: Any) -> HybridClassifier:
    parts = {name: {"module": "MLP", "args": {"hidden": [5]}} for name in ("a", "b")}
    return HybridClassifier(**{"num_classes": 2, "parts": parts, **options})


@pytest.mark.parametrize("given", [True, False, {"weight": 0.3}])
def test_an_option_that_was_removed_says_what_replaces_it(given: Any, tmp_path: Path, capsys: Any) -> None:
    message = r"part_heads: was removed: at the end of a run a table says what each part scores alone"
    with pytest.raises(ConfigError, match=rf"^model\.{message}"):
        two_parts(part_heads=given)
    config = tmp_path / "x.yaml"
    parts = {"a": "MLP", "b": "MLP"}
    arguments = {"num_classes": 2, "parts": parts, "part_heads": given}
    config.write_text(json.dumps({"model": {"class_path": "HybridClassifier", "init_args": arguments}}))
    assert main(["plan", "--config", str(config)]) == 2
    assert re.search(rf"model\.{message}", capsys.readouterr().err)


def test_late_fusion_needs_no_head_and_takes_one_that_is_named() -> None:
    batch = next(iter(data()))
    late = two_parts(fusion={"module": "LogitFusion"}).build(batch)
    assert not list(late.built().parts["head"].parameters())
    assert late(batch).shape == (8, 2)
    parts = {"a": "MLP", "b": "MLP", "head": {"module": "LinearHead"}}
    named = HybridClassifier(num_classes=2, parts=parts, fusion={"module": "LogitFusion"}).build(batch)
    assert list(named.built().parts["head"].parameters())


@pytest.mark.parametrize("module", ["ConcatFusion", "GatedFusion", "AttentionFusion", "LogitFusion"])
def test_every_fusion_fits_with_gaps_and_is_rebuilt_from_its_checkpoint(module: str, tmp_path: Path) -> None:
    model = two_parts(fusion={"module": module})
    runner = trainer(max_epochs=2)
    runner.fit(model, data((0, 5, 6)), data((1,)))
    runner.save_checkpoint(tmp_path / "x.ckpt")
    again = HybridClassifier.load_from_checkpoint(tmp_path / "x.ckpt")
    batch = next(iter(data((2,))))
    torch.testing.assert_close(again(batch), model.eval()(batch), rtol=0, atol=0)


def test_a_sample_with_nothing_is_an_error_that_names_its_row() -> None:
    there = torch.ones(27, dtype=torch.bool)
    there[[4, 20]] = False
    with pytest.raises(ConfigError, match=r"^data: samples with nothing that a part reads \(id\): '104'\."):
        trainer().fit(two_parts(), data((4, 7, 20), **{"present/b": there}))


def test_contributions_are_what_changes_without_the_part() -> None:
    model = two_parts()
    runner = trainer()
    runner.fit(model, data((0, 5, 6)))
    model.explain = True
    predicted = runner.predict(model, data((1, 2)))
    assert predicted is not None
    model.eval()
    batch = next(iter(data((1, 2))))
    probabilities = model(batch).softmax(1)
    lacking = model({**batch, "present/a": torch.zeros(8, dtype=torch.bool)}).softmax(1)
    chosen = probabilities.argmax(1)
    expected = probabilities[range(8), chosen] - lacking[range(8), chosen]
    torch.testing.assert_close(predicted[0]["contributions"]["a"], expected)  # type: ignore[call-overload]
    torch.testing.assert_close(predicted[0]["predictions"], probabilities)  # type: ignore[call-overload]
    assert (expected[[1, 2]] == 0).all()


def test_a_file_without_a_head_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = trainer(max_epochs=1)
    runner.fit(two_parts(), data())
    runner.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    del checkpoint["hybrid_lightning"]["parts"]["head"]
    checkpoint["hybrid_lightning"]["fusion"]["module"] = "chosen_by_a_stranger.Fusion"
    torch.save(checkpoint, tmp_path / "y.ckpt")
    (tmp_path / "chosen_by_a_stranger.py").write_text("class Fusion: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no head"):
        HybridClassifier.load_from_checkpoint(tmp_path / "y.ckpt")
    assert "chosen_by_a_stranger" not in sys.modules


def test_no_key_of_a_fit_is_the_folder_of_another(tmp_path):
    parts = {"old": {"module": "MLP", "input": "x", "clip": "agc", "l2sp": 0.1}, "new": {"module": "MLP", "input": "x"}}
    runner = trainer(max_epochs=1, gradient_clip_val=1.0, log_every_n_steps=1)
    batches = loader({"x": table(), "target": torch.arange(27) % 3})
    runner.fit(HybridClassifier(num_classes=3, parts=parts), batches, batches)
    keys = list(runner.callback_metrics)
    assert {"lr/old", "lr/old-no_decay", "val/accuracy"} <= set(keys)
    assert not [(one, other) for one in keys for other in keys if other.startswith(f"{one}/")]
