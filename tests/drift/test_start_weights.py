import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from hybrid_lightning import L2SP, GradualUnfreezing, HybridClassifier, PretrainedDrift
from hybrid_lightning.drift.start_weights import STARTING_WEIGHTS_KEY, StartingWeightsCallback
from hybrid_lightning.tasks.formats import CHECKPOINT_KEY
from tests.drift.test_l2sp import pretrained
from tests.processes import succeed_on
from tests.resume.resuming import differences
from tests.tiny import batches, hybrid, trainer
from tests.unfreezing.test_reestimate_statistics import Takes

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
]


def held_by(runner: pl.Trainer) -> dict[nn.Parameter, Tensor]:
    """The starting weights, which all callbacks of a Trainer share."""
    callbacks = [c for c in runner.callbacks if isinstance(c, StartingWeightsCallback)]  # type: ignore[attr-defined]
    assert all(callback.start is callbacks[0].start for callback in callbacks)
    return callbacks[0].start.weights


@pytest.mark.parametrize(("accumulate", "every"), [(1, 5), (3, 7)])
def test_a_fit_with_both_continues_exactly_from_its_checkpoints(accumulate: int, every: int, tmp_path: Path) -> None:
    callbacks = [L2SP(["old", "new"], strength=1.0), PretrainedDrift(["old", "new"], reference_samples=8)]
    number, found = differences(
        partial(hybrid, {"start": "3 steps", "every": "2 steps"}, lr=0.05),
        "samples",
        tmp_path,
        every=every,
        callbacks=callbacks,
        accumulate_grad_batches=accumulate,
    )
    assert number >= 4
    assert not found


def test_both_share_one_copy_which_a_checkpoint_holds_once_as_plain_tensors(tmp_path: Path, caplog: Any) -> None:
    model = hybrid("always", dropout=0.0)
    model.build(next(iter(batches())))
    start = {name: value.clone() for name, value in model.named_parameters() if "parts.old" in name}
    runner = trainer(callbacks=[PretrainedDrift(["old"]), L2SP(["old"])])
    with caplog.at_level("INFO"):
        runner.fit(model, batches(), batches(samples=12))
    runner.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)[STARTING_WEIGHTS_KEY]
    assert saved.keys() == start.keys()
    assert all(torch.equal(value, saved[name]) for name, value in start.items())
    assert not torch.equal(saved["network.parts.old.third.weight"], model.built().parts["old"].third.weight)  # type: ignore[union-attr,arg-type]
    said = [record.message for record in caplog.records if "starting weights" in record.message]
    size = sum(value.numel() * 4 for value in start.values()) / 1e6
    assert said == [f"starting weights of 'old': {size:.3g} MB on cpu; saved in checkpoints"]
    rebuilt = HybridClassifier.load_from_checkpoint(tmp_path / "last.ckpt", trust=["tests"])
    assert torch.equal(rebuilt.state_dict()["network.parts.old.third.weight"], model.built().parts["old"].third.weight)  # type: ignore[union-attr,arg-type]


def test_the_next_fit_of_a_trainer_starts_from_weights_of_its_own() -> None:
    runner = trainer(callbacks=[PretrainedDrift(["backbone"])], max_epochs=1)
    runner.fit(model := Takes(), batches(), batches(samples=12))
    between = model.backbone.third.weight.detach().clone()
    runner.fit_loop.epoch_progress.reset()  # type: ignore[attr-defined]
    runner.fit_loop.max_epochs = 2  # type: ignore[attr-defined]
    runner.fit(model, batches(), batches(samples=12))
    assert torch.equal(held_by(runner)[model.backbone.third.weight], between)


def test_a_callback_that_is_used_again_forgets_what_the_parts_returned() -> None:
    model, watch = Takes(), PretrainedDrift(["backbone"])
    trainer(callbacks=[watch]).fit(model, batches(), batches(samples=12))
    runner = trainer(callbacks=[GradualUnfreezing({"backbone": "never"}), watch])
    runner.fit(model, batches(), batches(samples=12))
    assert runner.callback_metrics["similarity/backbone"] == 1
    assert runner.callback_metrics["drift/backbone"] == 0


def saved_at(path: Path, *callbacks: pl.Callback, model: Any = None) -> Any:
    runner = trainer(callbacks=list(callbacks), max_epochs=2)
    runner.fit(model or Takes(), batches(), batches(samples=12))
    runner.save_checkpoint(path)
    return runner


def test_a_callback_that_is_added_later_starts_from_the_checkpoints_weights_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "two.ckpt"
    saved_at(path)
    weights = torch.load(path, weights_only=True)["state_dict"]
    runner = trainer(callbacks=[L2SP(["backbone"]), PretrainedDrift(["backbone"])], max_epochs=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(model := Takes(), batches(), batches(samples=12), ckpt_path=path)
    said = " ".join(str(each.message) for each in caught)
    assert said.count("no starting weights of") == said.count("'backbone' returned for these samples") == 1
    held = held_by(runner)
    assert all(torch.equal(held[p], weights[f"backbone.{name}"]) for name, p in model.backbone.named_parameters())


def test_groups_know_their_origin_and_a_checkpoint_from_before_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "old.ckpt"
    runner = saved_at(path, PretrainedDrift(), model=pretrained())
    groups = runner.optimizers[0].param_groups
    assert {g["part"]: g["origin"] for g in groups} == {
        "old": "pretrained",
        "new": "untrained",
        "fusion": "untrained",
        "head": "untrained",
    }
    checkpoint = torch.load(path, weights_only=True)
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        del group["origin"]
    torch.save(checkpoint, tmp_path / "older.ckpt")
    states = []
    for name in ("old.ckpt", "older.ckpt"):
        runner = trainer(callbacks=[PretrainedDrift()], max_epochs=4)
        runner.fit(model := pretrained(), batches(), batches(samples=12), ckpt_path=tmp_path / name)
        states.append(model.state_dict())
        assert float(runner.callback_metrics["drift/old"]) > 0
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("change", ["match", "weights_only"])
def test_a_fit_with_other_groups_keeps_the_starting_weights_only_if_it_goes_on(change: str, tmp_path: Path) -> None:
    path = tmp_path / "two.ckpt"
    saved_at(path, PretrainedDrift(), model=pretrained(pretrained={"l2sp": 0.1}))
    checkpoint = torch.load(path, weights_only=True)
    assert "l2sp" in checkpoint[CHECKPOINT_KEY]["parts"]["old"]
    model = pretrained(pretrained={"l2sp": 0.1}, optimizer="SGD")
    model.on_group_change = change
    runner = trainer(callbacks=[PretrainedDrift()], max_epochs=4)
    runner.fit(model, batches(), batches(samples=12), ckpt_path=path)
    held = held_by(runner)[model.built().parts["old"].third.weight]  # type: ignore[union-attr,index]
    name = "network.parts.old.third.weight"
    assert torch.equal(held, checkpoint[STARTING_WEIGHTS_KEY if change == "match" else "state_dict"][name])
    assert not torch.equal(checkpoint[STARTING_WEIGHTS_KEY][name], checkpoint["state_dict"][name])


# Several ranks


def run(name: str, folder: Path, **facts: Any) -> dict[str, Any]:
    """Results of all ranks, which have to be equal."""
    ranks = 1 if facts["strategy"] == "one" else 2
    words = ["-m", "tests.drift.worker", name, json.dumps({"folder": str(folder), **facts})]
    succeed_on(ranks, *words)
    results = [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(ranks)]
    assert results[0]["logged"] == results[-1]["logged"]
    assert all(torch.equal(value, results[-1]["model"][name]) for name, value in results[0]["model"].items())
    return results[0]  # type: ignore[no-any-return]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, value in one["model"].items():
        assert float((value - other["model"][name]).abs().max()) <= 1e-6, name
    assert len(one["logged"]) == len(other["logged"]) > 3
    for alone, together in zip(one["logged"], other["logged"], strict=True):
        assert together == pytest.approx(alone, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "strategies", "restarts"),
    [
        ("task", ["ddp", "fsdp2"], [("ddp", "fsdp2"), ("fsdp2", "one")]),
        ("foreign", ["folder"], [("folder", "fsdp2"), ("one", "folder")]),
    ],
)
def test_two_ranks_equal_one_process_and_go_on_from_each_others_checkpoints(
    kind: str, strategies: list[str], restarts: list[tuple[str, str]], tmp_path: Path
) -> None:
    one = run("one", tmp_path, kind=kind, strategy="one")
    watched = {key for row in one["logged"] for key in row}
    assert {"drift/old", "drift/old.first", "similarity/old", "l2sp/old"} <= watched
    assert one["logged"][-1]["similarity/old"] < 0.999
    for strategy in strategies:
        assert_same(one, run(strategy, tmp_path, kind=kind, strategy=strategy))
    for before, after in restarts:
        resumed = run(f"{after}-from-{before}", tmp_path, kind=kind, strategy=after, resume=f"{before}.ckpt")
        assert_same({**one, "logged": one["logged"][-len(resumed["logged"]) :]}, resumed)
        assert len(resumed["logged"]) < len(one["logged"])
