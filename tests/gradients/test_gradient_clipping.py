import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from hybrid_lightning import ConfigError, GradientClipping, GradientNormMonitor, HybridClassifier
from tests.gradients.test_gradient_norm_monitor import ByHand, compare, logged
from tests.small import changed, command
from tests.tiny import Foreign, Tower, batches, hybrid, trainer

PARTS = {
    "old": {"module": Tower, "args": {"dropout": 0.0}, "clip": "zclip"},
    "new": {"module": "MLP", "args": {"hidden": [5]}, "clip": {"norm": 0.05}},
    "head": {"module": "LinearHead", "clip": {"value": 0.01}},
}


def limited(clip: dict[str, Any], **options: Any) -> HybridClassifier:
    torch.manual_seed(0)
    parts = {name: {**facts, "clip": clip.get(name)} for name, facts in PARTS.items()}
    fusion = {"args": {"standardize": "features"}, "clip": clip.get("fusion")}
    return HybridClassifier(num_classes=2, parts=parts, fusion=fusion, lr=0.01, **options)


class Record(pl.Callback):
    """Gradients and weights before anything is clipped, and what the optimizer saw."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    @staticmethod
    def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    def on_before_optimizer_step(self, runner: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.before.append(self.gradients(pl_module))
        self.weights.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    def on_train_batch_end(self, runner: pl.Trainer, pl_module: Any, *_: Any) -> None:
        self.after.append(self.gradients(pl_module))


def recorded(model: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> Record:
    record = Record()
    trainer(callbacks=[record, *callbacks], **options).fit(model, batches())
    return record


def of(gradients: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name: g for name, g in gradients.items() if name.startswith(f"network.parts.{part}.")}


def norm(gradients: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(g.double().square().sum().item() for g in gradients.values()))


def test_each_part_has_its_own_limit_and_the_others_stay_as_they_are() -> None:
    record = recorded(limited({"new": {"norm": 0.05}, "head": {"value": 0.01}}))
    active = False
    for before, after in zip(record.before, record.after, strict=True):
        factor = min(1.0, 0.05 / (norm(of(before, "new")) + 1e-6))
        active |= factor < 0.9
        for name, gradient in before.items():
            if name.startswith("network.parts.new."):
                torch.testing.assert_close(after[name], gradient * factor)
            elif name.startswith("network.parts.head."):
                assert torch.equal(after[name], gradient.clamp(-0.01, 0.01))
            else:
                assert torch.equal(after[name], gradient)
    assert active


def test_adaptive_clipping_limits_each_unit_by_its_weights_and_leaves_the_head_alone() -> None:
    record = recorded(limited({"old": {"agc": 0.002}, "head": {"agc": 0.002}}))
    shares = []
    for before, weights, after in zip(record.before, record.weights, record.after, strict=True):
        for name, gradient in before.items():
            if not name.startswith("network.parts.old."):
                assert torch.equal(after[name], gradient)
                continue
            units = range(len(gradient)) if gradient.ndim > 1 else [slice(None)]
            for unit in units:
                limit = 0.002 * max(weights[name][unit].norm().item(), 1e-3)
                factor = min(1.0, limit / max(gradient[unit].norm().item(), 1e-12))
                shares.append(factor)
                torch.testing.assert_close(after[name][unit], gradient[unit] * factor, rtol=1e-5, atol=1e-9)
    assert min(shares) < 0.5
    assert max(shares) == 1


class Spike(pl.Callback):
    """Makes the gradients of one part huge at one step, as an untrained part does."""

    def __init__(self, part: str, step: int) -> None:
        self.part, self.step = part, step

    def on_before_optimizer_step(self, runner: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        for name, parameter in pl_module.named_parameters():
            if runner.global_step == self.step and name.startswith(self.part) and parameter.grad is not None:
                parameter.grad.mul_(1e4)


@pytest.mark.parametrize("limit", [{"norm": 0.5}, "agc", {"zclip": {"warm_up": "5 steps"}}, {"value": 0.1}], ids=str)
def test_a_spike_in_one_part_leaves_the_updates_of_the_others_unchanged(limit: Any) -> None:
    """Bit by bit, until the spiky part's own update has changed the loss of the next step."""

    def run(*spike: pl.Callback, **options: Any) -> dict[str, torch.Tensor]:
        clip = {"new": limit} if not options else {}
        record = recorded(limited(clip, optimizer="SGD", weight_decay=0.0), *spike, **options)
        return {
            n: new - old for (n, old), new in zip(record.weights[15].items(), record.weights[16].values(), strict=True)
        }

    calm, spiky = run(), run(Spike("network.parts.new.", 15))
    for name in calm:
        assert name.startswith("network.parts.new.") or torch.equal(calm[name], spiky[name])
    assert norm(of(spiky, "new")) < 20 * norm(of(calm, "new"))
    # one global limit lets everybody pay
    calm, spiky = run(gradient_clip_val=1.0), run(Spike("network.parts.new.", 15), gradient_clip_val=1.0)
    assert norm(of(spiky, "old")) < 0.01 * norm(of(calm, "old"))


def test_histories_limit_a_spike_to_what_is_usual() -> None:
    record = recorded(limited({"new": {"zclip": {"warm_up": "5 steps"}}}), Spike("network.parts.new.", 15))
    norms = [norm(of(after, "new")) for after in record.after]
    assert norms[15] < 2 * max(norms[:15])


MODELS = {
    "task": lambda: (limited({"old": "agc", "new": {"norm": 0.05}, "fusion": "zclip", "head": {"value": 0.01}}), []),
    "foreign": lambda: (Foreign(), [GradientClipping({"backbone": {"norm": 0.1}, "head": {"value": 0.02}})]),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("total", [None, 0.05])
def test_what_is_logged_is_what_the_optimizer_saw(kind: str, total: Any, tmp_path: Path) -> None:
    model, callbacks = MODELS[kind]()
    by_hand = ByHand()
    monitor = GradientNormMonitor(stages=True)
    rows = logged(model, tmp_path, by_hand, *callbacks, monitor, gradient_clip_val=total)
    compare(rows, by_hand)
    rates = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0] if key.startswith("clip_rate/")}
    assert rates["clip_rate/total"] > 0


def test_clip_rates_count_every_step_in_a_foreign_module_too(tmp_path: Path) -> None:
    model, by_hand = Foreign(), ByHand()
    clipping = GradientClipping({"backbone": {"norm": 0.55}})
    rows = logged(model, tmp_path, by_hand, clipping, GradientNormMonitor(), log_every_n_steps=5)
    for row in rows:
        steps = range(row["step"] - 4, row["step"] + 1)
        clipped = [by_hand.after[s]["backbone"] < by_hand.before[s]["backbone"] * (1 - 1e-6) for s in steps]
        assert row["clip_rate/backbone"] == pytest.approx(sum(clipped) / 5)
        assert row["clip_rate/head"] == 0
    assert 0 < sum(row["clip_rate/backbone"] for row in rows) < 4


def test_a_callback_of_the_users_takes_the_place_of_the_facts() -> None:
    own = GradientClipping({"head": {"norm": 1e-3}})
    record = recorded(limited({"new": {"norm": 1e-3}}), own)
    assert all(norm(of(after, "head")) <= 1.001e-3 for after in record.after)
    assert norm(of(record.after[0], "new")) == norm(of(record.before[0], "new"))


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"clip: unknown part 'bakbone'\. Did you mean 'backbone'"):
        trainer(callbacks=[GradientClipping({"bakbone": "agc"})]).fit(Foreign(), batches())


def test_facts_of_an_origin_limit_its_parts(folder: Path) -> None:
    facts = {"init.untrained": {"clip": {"norm": 1e-4}}}
    assert command("fit", config=changed(facts)) == 0
    [table] = folder.glob("runs/*/version_0/metrics.csv")
    head, *rows = [line.split(",") for line in table.read_text().splitlines()]
    for part in ("stem", "body", "head"):
        column = head.index(f"grad_norm_clipped/{part}")
        values = [float(row[column]) for row in rows if row[column]]
        assert values
        assert all(value <= 1.0001e-4 for value in values)


def test_a_wrong_limit_is_told_with_its_place(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("fit", config=changed({"init.parts.body.clip": "zlip"})) != 0
    assert "model.parts.body.clip: unknown limit 'zlip'. Did you mean 'zclip'" in capsys.readouterr().err


def test_a_part_that_is_not_there_has_no_limit() -> None:
    torch.manual_seed(0)
    model = hybrid("always", untrained={"clip": "zclip"})
    trainer(max_epochs=1).fit(model, batches())
