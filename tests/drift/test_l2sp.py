import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from hybrid_lightning import (
    L2SP,
    ConfigError,
    GradientNormMonitor,
    GradualUnfreezing,
    HybridClassifier,
    PretrainedDrift,
    named_param_groups,
)
from hybrid_lightning.cli import main
from hybrid_lightning.network.part import Part
from tests.distributed.ddp_worker import plain_norm
from tests.small import changed, write
from tests.tiny import Foreign, Tower, batches, hybrid, trainer


class Penalized(Foreign):
    """Somebody's module that writes the penalty into its loss; 0 leaves it to the callback."""

    def __init__(self, optimizer: Any, strength: float = 0.0, **options: Any) -> None:
        super().__init__(optimizer)
        plain_norm(self)  # biases before batch statistics have no gradient but rounding, which AdamW enlarges
        self.strength, self.options = strength, options
        self.start = {name: p.detach().double() for name, p in self.named_parameters()}
        self.penalties: list[float] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        own = [(p, self.start[name]) for name, p in self.named_parameters() if "backbone" in name and p.requires_grad]
        penalty = sum((((p - start) ** 2).sum() for p, start in own), start=torch.zeros((), dtype=torch.float64))
        self.penalties.append(float(penalty.detach()) / 2 * 3)
        return super().training_step(batch, batch_idx) + self.strength / 2 * penalty

    def configure_optimizers(self) -> torch.optim.Optimizer:
        stages = {"backbone": ["backbone.first", "backbone.second", "backbone.third"]}
        parts = {"backbone": "backbone", "head": "head"}
        return self.optimizer_class(named_param_groups(self, parts, lr=0.01, stages=stages), **self.options)


class Rows(pl.Callback):
    """What was logged at each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step > len(self.rows):
            self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {}), (torch.optim.AdamW, {"fused": True})],
    ids=["sgd", "adamw", "fused"],
)
def test_it_equals_the_penalty_written_into_the_loss(optimizer: Any, options: Any) -> None:
    options_of_fit = {"accumulate_grad_batches": 2, "precision": "64-true"}
    results = []
    for by_hand in (True, False):
        model = Penalized(optimizer, 3.0 if by_hand else 0.0, **options)
        unfreezing = GradualUnfreezing({"backbone": {"start": "2 steps", "every": "2 steps"}})
        own = [] if by_hand else [L2SP(["backbone"], strength=3.0)]
        rows = Rows()
        callbacks = [unfreezing, *own, GradientNormMonitor(), rows]
        clip = {} if options.get("fused") else {"gradient_clip_val": 0.3}
        runner = trainer(callbacks=callbacks, log_every_n_steps=1, **options_of_fit, **clip)
        runner.fit(model, batches(samples=32))
        results.append((model.state_dict(), rows.rows))
    (by_hand, norms), (ours, rows) = results
    for name, value in by_hand.items():
        assert float((value - ours[name]).abs().max()) <= 1e-6, name
    for step, (expected, row) in enumerate(zip(norms, rows, strict=True)):
        penalty = row.pop("l2sp/backbone")
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-7), step
        assert penalty == pytest.approx(model.penalties[2 * step], rel=1e-4, abs=1e-9)
    assert penalty > 1e-4
    plain = Penalized(optimizer, **options)
    unfreezing = GradualUnfreezing({"backbone": {"start": "2 steps", "every": "2 steps"}})
    trainer(callbacks=[unfreezing], **options_of_fit, **clip).fit(plain, batches(samples=32))
    apart = plain.backbone.third.weight.detach() - ours["backbone.third.weight"]
    assert float(apart.abs().max()) > 1e-4


def test_each_part_has_a_strength_of_its_own() -> None:
    model = hybrid("always", dropout=0.0)
    runner = trainer(callbacks=[L2SP(strength={"old": 0.5, "new": 2.0})], log_every_n_steps=1)
    start: dict[str, float] = {}

    class Twice(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
            for part in ("old", "new"):
                own = [p.detach().clone() for g in optimizer.param_groups if g["part"] == part for p in g["params"]]
                first = start.setdefault(part, own)  # type: ignore[arg-type]
                moved = sum(float(((p - w) ** 2).sum()) for p, w in zip(own, first, strict=True))  # type: ignore[call-overload]
                self.expected = {
                    **getattr(self, "expected", {}),
                    f"l2sp/{part}": moved / 2 * {"old": 0.5, "new": 2}[part],
                }

    twice = Twice()
    runner.callbacks.insert(0, twice)  # type: ignore[attr-defined]
    runner.fit(model, batches())
    logged = {k: float(v) for k, v in runner.callback_metrics.items() if k.startswith("l2sp")}
    assert logged == pytest.approx(twice.expected, rel=1e-4)
    assert all(logged.values())


def pretrained(**facts: Any) -> HybridClassifier:
    torch.manual_seed(0)
    old = {"module": Tower(4, dropout=0.0), "weights": "pretrained", "unfreeze": "3 steps"}
    parts = {"old": old, "new": {"module": "MLP", "args": {"hidden": [5]}}}
    return HybridClassifier(num_classes=2, parts=parts, lr=0.05, **facts)


def fitted(model: HybridClassifier, *callbacks: pl.Callback, runner: pl.Trainer | None = None) -> dict[str, Tensor]:
    (runner or trainer(callbacks=list(callbacks), gradient_clip_val=0.5)).fit(model, batches())
    return model.state_dict()


def test_a_fact_of_the_pretrained_parts_is_enough() -> None:
    by_fact = fitted(pretrained(pretrained={"l2sp": 0.5}))
    by_callback = fitted(pretrained(), L2SP(strength=0.5))
    without = fitted(pretrained(pretrained={"l2sp": 0}))
    assert all(torch.equal(value, by_callback[name]) for name, value in by_fact.items())
    assert not torch.equal(without["network.parts.old.third.weight"], by_fact["network.parts.old.third.weight"])
    own = trainer()
    model = pretrained(pretrained={"l2sp": 0.5})
    model.parts["old"] = Part(**{**vars(model.parts["old"]), "l2sp": 0.0})
    fitted(model, runner=own)
    assert not any(isinstance(c, L2SP) for c in own.callbacks)  # type: ignore[attr-defined]


def test_the_fact_acts_before_whatever_measures_gradients_and_the_users_own_callback_takes_its_place() -> None:
    runner = trainer(callbacks=[GradientNormMonitor(), PretrainedDrift(["old"], reference_samples=0)])
    for _ in range(2):  # the second run finds the callbacks of the first
        fitted(pretrained(pretrained={"l2sp": 0.5}), runner=runner)
        kinds = [type(c) for c in runner.callbacks]  # type: ignore[attr-defined]
        assert kinds.count(L2SP) == 1
        assert kinds.index(L2SP) < kinds.index(GradientNormMonitor)
    fitted(pretrained(), runner=runner)
    assert not any(isinstance(c, L2SP) for c in runner.callbacks)  # type: ignore[attr-defined]
    mine = L2SP(strength=0.1)
    runner = trainer(callbacks=[mine])
    fitted(pretrained(pretrained={"l2sp": 0.5}), runner=runner)
    assert [c for c in runner.callbacks if isinstance(c, L2SP)] == [mine]  # type: ignore[attr-defined]


def test_what_is_impossible_is_an_error_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match=r"'GradientNormMonitor' stands before L2SP .* List L2SP first"):
        trainer(callbacks=[GradientNormMonitor(), L2SP(["backbone"])]).fit(Foreign(), batches())
    with pytest.raises(ConfigError, match=r"L2SP\.parts: unknown part 'heat'\. Did you mean 'head'"):
        trainer(callbacks=[L2SP(strength={"heat": 0.1})]).fit(Foreign(), batches())
    with pytest.raises(ConfigError, match=r"L2SP\.strength\.head: -1 is not a number at least 0"):
        L2SP(strength={"head": -1})
    with pytest.raises(ConfigError, match="leave it out; the parts are those that 'strength' names"):
        L2SP(["head"], strength={"head": 1.0})
    with pytest.raises(ConfigError, match=r"model\.parts\.old\.l2sp: 'much' is not a number"):
        HybridClassifier(num_classes=2, parts={"old": {"module": "MLP", "l2sp": "much"}})
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    runner = trainer(callbacks=[L2SP(["backbone"])], plugins=[precision])
    with pytest.raises(ConfigError, match=r"L2SP: AdamW\(fused=True\) unscales gradients"):
        runner.fit(Penalized(torch.optim.AdamW, fused=True), batches())


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before.*optimizer.step")
def test_a_loss_scale_does_not_change_it() -> None:
    results = []
    for scale in (2.0**3, 2.0**12):
        precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=scale))
        model = Penalized(torch.optim.SGD)
        trainer(callbacks=[L2SP(["backbone"], 0.5)], plugins=[precision]).fit(model, batches())
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-3, atol=1e-3)


def test_two_words_in_a_config_are_enough(folder: Path) -> None:
    assert main(["fit", "--config", write(changed({"init.lr": 0.05}))]) == 0
    [saved] = folder.rglob("best.ckpt")
    assert main(["export_part", "--ckpt_path", str(saved), "--part", "stem", "--output", "stem.safetensors"]) == 0
    before = set(folder.rglob("metrics.csv"))
    changes = {
        "init.parts.stem.weights": str(folder / "stem.safetensors"),
        "init.pretrained": {"l2sp": 0.01, "weight_decay": 0, "unfreeze": "always"},
        "trainer.callbacks": [{"class_path": "GradientNormMonitor"}],
    }
    assert main(["fit", "--config", write(changed(changes))]) == 0
    [table] = set(folder.rglob("metrics.csv")) - before
    with table.open() as file:
        values = [float(row["l2sp/stem"]) for row in csv.DictReader(file) if row.get("l2sp/stem")]
    assert len(values) == 3
    assert values[0] == 0 < values[1] < values[2]
