"""Heads of single parts: they look on, show what a part knows alone, and follow a checkpoint that has none."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch.nn import functional

from hybrid_lightning import GradientClipping, HybridClassifier, HybridRegressor, SpikeGuard
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.tasks.checkpoint import read_checkpoint
from tests.small import loader, table
from tests.tiny import batches, hybrid, trainer

HEADS = "network.parts.part_heads."


def data(lacking: tuple[int, ...] = (), **more: Any) -> Any:
    """27 samples with two inputs; ``a`` is absent in some of them."""
    there = torch.ones(27, dtype=torch.bool)
    there[list(lacking)] = False
    entries = {"a": table(), "b": table(seed=2), "target": (table().sum(1) > 0).long(), "id": torch.arange(100, 127)}
    return loader({**entries, **({"present/a": there} if lacking else {}), **more})


def two_parts(**options: Any) -> HybridClassifier:
    parts = {name: {"module": "MLP", "args": {"hidden": [5]}} for name in ("a", "b")}
    return HybridClassifier(**{"num_classes": 2, "parts": parts, **options})


@pytest.mark.parametrize(
    "clip", [{"gradient_clip_val": 0.1}, {"gradient_clip_val": 0.01, "accumulate_grad_batches": 2}]
)
def test_everything_else_trains_bit_by_bit_as_without_them(clip: dict[str, Any]) -> None:
    states, logged = [], []
    for part_heads in (True, False):
        model = hybrid("2 steps", part_heads=part_heads)
        runner = trainer(max_epochs=2, **clip)
        runner.fit(model, batches(shuffle=True), batches())
        states.append({name: value for name, value in model.state_dict().items() if not name.startswith(HEADS)})
        logged.append({name: value for name, value in runner.callback_metrics.items() if "/old" not in name})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    for name, value in logged[1].items():
        assert torch.equal(value, logged[0][name]), name


def test_they_learn() -> None:
    model = hybrid(part_heads=True)
    runner = trainer(max_epochs=16)
    runner.fit(model, batches(), batches())
    assert runner.callback_metrics["val/accuracy-new"] > 0.8
    group = next(group for group in runner.optimizers[0].param_groups if group["part"] == "part_heads")
    assert group["observer"]
    assert group["name"] == "part_heads"


def test_their_metrics_equal_an_independent_computation_over_the_samples_that_have_the_part() -> None:
    lacking = (0, 3, 8, 9, 26)
    model = two_parts()
    runner = trainer()
    runner.fit(model, data(lacking), data(lacking))
    model.eval()
    outputs, targets = [], []
    for batch in data(lacking):
        own, there = model.built().forward_parts(batch).alone["a"]
        outputs.append(own[there])
        targets.append(batch["target"][there])
    own, target = torch.cat(outputs), torch.cat(targets)
    assert len(target) == 22
    found = runner.callback_metrics
    torch.testing.assert_close(found["val/loss-a"], functional.cross_entropy(own, target))
    torch.testing.assert_close(found["val/accuracy-a"], (own.argmax(1) == target).float().mean())
    area = torchmetrics.functional.auroc(own.softmax(1), target, "multiclass", num_classes=2)
    torch.testing.assert_close(found["val/auroc-a"], area)
    assert found["val/loss-b"] != found["val/loss-a"]


def test_their_losses_train_the_parts_if_they_have_a_weight() -> None:
    results = []
    for part_heads in (True, {"weight": 0.5}):
        torch.manual_seed(0)
        model = two_parts(part_heads=part_heads)
        runner = trainer()
        runner.fit(model, data())
        results.append(model.state_dict()["network.parts.a.layer0.0.weight"])
        observers = {group["part"] for group in runner.optimizers[0].param_groups if group["observer"]}
        assert observers == ({"part_heads"} if part_heads is True else set())
    assert not torch.equal(results[0], results[1])


@pytest.mark.parametrize("given", [0.3, {"wieght": 1}, {}, {"weight": -1}, "yes"])
def test_an_impossible_choice_is_an_error(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"^model\.part_heads"):
        two_parts(part_heads=given)


def test_one_part_alone_has_none() -> None:
    model = HybridClassifier(num_classes=2, parts={"a": {"module": "MLP"}}).build(next(iter(data())))
    assert "part_heads" not in model.built().parts


def test_a_part_may_not_be_called_part_heads() -> None:
    with pytest.raises(ConfigError, match=r"'part_heads' cannot name a part"):
        HybridClassifier(num_classes=2, parts={"part_heads": {"module": "MLP"}})


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


def test_an_evaluation_of_a_checkpoint_without_them_leaves_them_out(tmp_path: Path) -> None:
    runner = trainer()
    runner.fit(two_parts(part_heads=False), data())
    runner.save_checkpoint(tmp_path / "x.ckpt")
    later = trainer()
    [values] = later.test(two_parts(), data(), ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True, verbose=False)
    assert "test/accuracy" in values
    assert "test/accuracy-a" not in values


def test_a_fit_that_continues_without_them_goes_on_without_them(tmp_path: Path) -> None:
    first = trainer()
    first.fit(two_parts(part_heads=False), data())
    first.save_checkpoint(tmp_path / "x.ckpt")
    model = two_parts()
    trainer(max_epochs=2).fit(model, data(), ckpt_path=str(tmp_path / "x.ckpt"), weights_only=True)
    assert "part_heads" not in model.built().parts
    assert model.settings.part_heads is False


def test_a_part_that_is_better_alone_is_named_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    model = two_parts()
    runner = trainer()
    runner.fit(model, data(), data())
    capsys.readouterr()
    runner.callback_metrics.update({"val/accuracy": torch.tensor(0.5), "val/accuracy-a": torch.tensor(0.75)})
    runner.callback_metrics["val/accuracy-b"] = torch.tensor(0.25)
    model._has_trained = True
    model.on_fit_end()
    printed = capsys.readouterr().out
    assert (
        "val/accuracy on 27 samples: all parts together have 0.5, and better alone, by their own heads: a 0.75."
        in printed
    )
    assert "b 0.25" not in printed


def test_a_part_that_is_better_by_chance_is_not_named(capsys: pytest.CaptureFixture[str]) -> None:
    """26 of 30 against 27 is one sample."""
    model = two_parts()
    runner = trainer()
    runner.fit(model, data(), data())
    capsys.readouterr()
    runner.callback_metrics.update({"val/accuracy": torch.tensor(0.8667), "val/accuracy-a": torch.tensor(0.9)})
    model._has_trained = True
    model.on_fit_end()
    assert "better alone" not in capsys.readouterr().out


def test_for_errors_less_is_better(capsys: pytest.CaptureFixture[str]) -> None:
    model = HybridRegressor(parts={name: {"module": "MLP"} for name in ("a", "b")})
    model.objective.main_metric = "mae"
    runner = trainer()
    entries = {"a": table(), "b": table(seed=2), "target": table().sum(1)}
    runner.fit(model, loader(entries), loader(entries))
    runner.callback_metrics.update(
        {f"val/mae{name}": torch.tensor(v) for name, v in (("", 1.0), ("-a", 2.0), ("-b", 0.5))}
    )
    model._has_trained = True
    model.on_fit_end()
    assert "alone, by their own heads: b 0.5." in capsys.readouterr().out


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


def test_a_model_built_as_a_checkpoint_without_them_has_none(tmp_path: Path) -> None:
    runner = trainer(max_epochs=1)
    runner.fit(two_parts(part_heads=False), data())
    runner.save_checkpoint(tmp_path / "x.ckpt")
    model = two_parts()
    model.rebuild_as(read_checkpoint(tmp_path / "x.ckpt")[0])
    [values] = trainer().test(model, data(), ckpt_path=tmp_path / "x.ckpt", weights_only=True, verbose=False)
    assert "test/accuracy" in values
    assert "test/accuracy-a" not in values


def test_heads_that_train_the_parts_are_not_dropped_for_a_checkpoint_without_them(tmp_path: Path) -> None:
    runner = trainer(max_epochs=1)
    runner.fit(two_parts(part_heads=False), data())
    runner.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(ConfigError, match="Groups added: 'part_heads'"):
        trainer().fit(two_parts(part_heads={"weight": 0.5}), data(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)


def test_a_fit_that_continues_lets_them_look_on_or_not_as_it_is_told_now(tmp_path: Path) -> None:
    for epochs, given in enumerate([True, {"weight": 0.5}, True], 1):
        runner = trainer(max_epochs=epochs)
        path = tmp_path / "x.ckpt"
        runner.fit(two_parts(part_heads=given), data(), ckpt_path=path if path.exists() else None, weights_only=True)
        runner.save_checkpoint(path)
        observers = {group["part"] for group in runner.optimizers[0].param_groups if group["observer"]}
        assert observers == ({"part_heads"} if given is True else set())


def test_a_guard_against_spikes_does_not_see_them() -> None:
    guard = SpikeGuard()
    trainer(max_epochs=1, callbacks=[guard]).fit(two_parts(), data())
    assert set(guard.state_dict()["histories"]) == {"a", "b", "fusion", "head"}


def test_a_limit_of_what_looks_on_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown part 'part_heads'"):
        trainer(callbacks=[GradientClipping({"part_heads": {"norm": 1.0}})]).fit(two_parts(), data())


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
    assert {"lr/old", "lr/old-no_decay", "val/accuracy", "val/accuracy-old"} <= set(keys)
    assert not [(one, other) for one in keys for other in keys if other.startswith(f"{one}/")]
