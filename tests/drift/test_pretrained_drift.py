import copy
import csv
import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from hybrid_lightning import (
    ConfigError,
    ExactResume,
    GradualUnfreezing,
    HybridClassifier,
    PretrainedDrift,
    named_param_groups,
)
from hybrid_lightning.cli import main
from hybrid_lightning.resume.seeded_loaders import seed_cpu
from tests.drift.test_similarity import cka, hsic_of_song
from tests.network.test_compile import GRAPHS, counted
from tests.resume.resuming import Augmented, Run, first_difference
from tests.small import changed, loader, write
from tests.tiny import batches, hybrid, trainer
from tests.unfreezing.test_reestimate_statistics import Takes


class ByHand(pl.Callback):
    """Drift and similarity with numpy, from copies of the whole module, after each validation."""

    def __init__(self, parts: dict[str, str], inputs: dict[str, Tensor]) -> None:
        self.parts, self.inputs = parts, inputs
        self.rows: list[dict[str, float]] = []

    def features(self, module: Any, part: str) -> np.ndarray:
        with torch.no_grad():
            output = copy.deepcopy(module).get_submodule(self.parts[part]).eval()(self.inputs[part])
        return output.double().flatten(2).mean(2).numpy() if output.ndim > 2 else output.double().numpy()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.start = {path: value.double().numpy().copy() for path, value in pl_module.state_dict().items()}
        self.before = {part: self.features(pl_module, part) for part in self.parts}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        now = {name: p.detach().double().numpy() for name, p in pl_module.named_parameters()}
        expected = {}
        for part, path in self.parts.items():
            own = {name: value for name, value in now.items() if name.startswith(path + ".")}
            stages = {name.removeprefix(path + ".").split(".")[0] for name in own}
            stages = {f".{stage}": stage for stage in stages} if part == "old" else {}
            for suffix, stage in {"": "", **stages}.items():
                names = [name for name in own if name.startswith(f"{path}.{stage}")]
                moved = sum(float(((own[n] - self.start[n]) ** 2).sum()) for n in names)
                expected[f"drift/{part}{suffix}"] = (
                    moved / sum(float((self.start[n] ** 2).sum()) for n in names)
                ) ** 0.5
            after = self.features(pl_module, part)
            expected[f"similarity/{part}"] = cka(hsic_of_song, self.before[part], after)
        kinds = ("drift/", "similarity/")
        logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(kinds)}
        assert logged.keys() == expected.keys()
        assert logged == pytest.approx(expected, rel=2e-5, abs=1e-7)
        self.rows.append(logged)


def test_drift_and_similarity_equal_an_independent_computation() -> None:
    validation = batches(samples=30)
    first = {key: value[:20] for key, value in validation.dataset.entries.items()}  # type: ignore[attr-defined]
    by_hand = ByHand({"old": "network.parts.old", "new": "network.parts.new"}, first)
    model = hybrid("6 steps", lr=0.1)
    trainer(callbacks=[PretrainedDrift(["old", "new"], reference_samples=20), by_hand]).fit(
        model, batches(), validation
    )
    assert [row["drift/old"] > 0 for row in by_hand.rows] == [False, True, True, True]
    assert [row["similarity/old"] == 1 for row in by_hand.rows] == [True, False, False, False]
    assert by_hand.rows[-1]["similarity/old"] < 0.99


def test_maps_are_averaged_over_positions() -> None:
    images, target = torch.randn(24, 3, 5, 5), torch.arange(24) % 2
    data = loader({"image": images, "target": target})
    model = HybridClassifier(num_classes=2, parts={"image": {"module": nn.Conv2d(3, 4, 3)}}, lr=0.3)
    by_hand = ByHand({"image": "network.parts.image"}, {"image": images})
    trainer(callbacks=[PretrainedDrift(["image"]), by_hand], max_epochs=3).fit(model, data, data)
    assert by_hand.rows[-1]["similarity/image"] < 0.999


@pytest.mark.parametrize("validates", [True, False])
def test_a_frozen_part_drifts_by_exactly_0_and_stays_exactly_alike(validates: bool) -> None:
    rows = logged(hybrid("never"), PretrainedDrift(["old", "new"]), validates=validates)
    assert len(rows) == 4
    for row in rows:
        assert {v for k, v in row.items() if k.startswith("drift/old")} == {0.0}
        assert row["similarity/old"] == 1
    assert rows[-1]["drift/new"] > 0
    assert rows[-1]["similarity/new"] < 1


def logged(model: Any, *callbacks: pl.Callback, validates: bool = True, **options: Any) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []

    class Rows(pl.Callback):
        def keep(self, trainer: pl.Trainer, *_: Any) -> None:
            kinds = ("drift/", "similarity/")
            found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(kinds)}
            if not trainer.sanity_checking:
                rows.append(found)

        on_validation_end = keep

    runner = trainer(callbacks=[*callbacks, Rows()], **options)
    runner.fit(model, batches(), batches(samples=12) if validates else None)
    if not validates:
        Rows.on_validation_end(Rows(), runner)
        rows *= runner.max_epochs or 1
    return rows


class Everything(Dataset[dict[str, Tensor]]):
    """Validation data with random transforms."""

    def __init__(self) -> None:
        self.samples = Augmented(12)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.samples[index]


class Noisy(Takes):
    """Draws in its forward, in its hooks of batches, and has dropout and batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone.second[2].p = 0.5

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        noise = torch.randn_like(batch["old"]) * (3 if self.trainer.training else 0.1)
        return {**batch, "old": batch["old"].add_(noise)}

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch) * (1 + 0.1 * torch.rand(()))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch), batch["target"])


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("validates", [True, False])
def test_a_fit_with_it_is_bit_equal_to_the_fit_without(exact: bool, validates: bool) -> None:
    states = []
    for callbacks in ([], [PretrainedDrift(["backbone"])]):
        torch.manual_seed(0)
        model = Noisy()
        unfreezing = GradualUnfreezing({"backbone": "3 steps"})
        runner = trainer(callbacks=[unfreezing, ExactResume(enabled=exact), *callbacks], num_sanity_val_steps=0)
        seed_cpu(3)
        data = DataLoader(Everything(), 4)
        runner.fit(model, DataLoader(Augmented(28), 4, shuffle=True), data if validates else None)
        val = {k: v for k, v in runner.callback_metrics.items() if k.startswith("val")}
        states.append([model.state_dict(), runner.optimizers[0].state_dict(), val, torch.rand(()), np.random.rand()])
        if callbacks:
            assert "similarity/backbone" in runner.callback_metrics
    assert first_difference(*states, "state") is None


def test_a_task_with_it_sees_the_same_batches_modes_and_losses() -> None:
    plain = Run(partial(hybrid, "3 steps"), "samples")
    watched = Run(partial(hybrid, "3 steps"), "samples", callbacks=[PretrainedDrift(["old"])])
    own = [event for event in watched.recorder.events if event[0] != "validated"]
    assert first_difference([e for e in plain.recorder.events if e[0] != "validated"], own, "events") is None
    states = [{k: v for k, v in run.state().items() if k != "metrics"} for run in (plain, watched)]
    assert first_difference(*states, "state") is None


@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training")
def test_what_a_training_batch_goes_through_on_the_device_does_not_count() -> None:
    class Once(Noisy):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return Takes.forward(self, batch)

    for validates in (True, False):
        callbacks = [GradualUnfreezing({"backbone": "never"}), PretrainedDrift(["backbone"])]
        rows = logged(Once(), *callbacks, validates=validates, max_epochs=2)
        assert [row["similarity/backbone"] for row in rows] == [1, 1]


def test_a_checkpoint_can_monitor_it(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, monitor="similarity/old", mode="max")
    runner = trainer(callbacks=[PretrainedDrift(["old"]), best], enable_checkpointing=True)
    runner.fit(hybrid("8 steps", lr=0.1), batches(), batches(samples=12))
    assert best.best_model_score == 1
    assert torch.load(best.best_model_path, weights_only=True)["global_step"] == 5


def test_without_a_reference_batch_only_drift_is_logged() -> None:
    rows = logged(hybrid("always"), PretrainedDrift(["old"], reference_samples=0))
    assert {key.split("/")[0] for key in rows[-1]} == {"drift"}


class Split(Takes):
    """A part of two modules, and one that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.pair = nn.LSTM(6, 6)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.pair(self.backbone(self.before(batch["old"])))[0])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch), batch["target"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parts = {"body": ["before", "backbone"], "pair": "pair", "head": "head"}
        return torch.optim.SGD(named_param_groups(self, parts, lr=0.01))


def test_a_part_without_a_module_or_a_tensor_of_its_own_has_no_similarity_and_that_is_said_once() -> None:
    text = r"similarity is not logged for 'body', 'pair': they are not one module, or do not return one tensor"
    with pytest.warns(UserWarning, match=text) as caught:
        rows = logged(Split(), PretrainedDrift(["body", "pair", "head"]))
    assert len([each for each in caught if "similarity" in str(each.message)]) == 1
    assert rows[-1].keys() == {"drift/body", "drift/pair", "drift/head", "similarity/head"}


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(batches())


@pytest.mark.parametrize(
    ("model", "data", "text"),
    [
        (type("Blind", (Takes,), {"forward": pl.LightningModule.forward}), lambda: batches(), "NotImplementedError"),
        (Takes, lambda: DataLoader(Stream(), batch_size=None), "cannot be read by index"),
        (Takes, lambda: batches(samples=3), "there are 3 samples, fewer than 4"),
    ],
    ids=["no forward", "stream", "few samples"],
)
def test_a_batch_that_cannot_be_compared_is_said_once_and_the_fit_goes_on_as_ever(
    model: Any, data: Any, text: str
) -> None:
    model = type(
        "Trains", (model,), {"training_step": lambda self, batch, index: self.head(self.backbone(batch["old"])).mean()}
    )
    states = []
    for callbacks in ([], [PretrainedDrift(["backbone"])]):
        torch.manual_seed(5)
        runner = trainer(callbacks=callbacks, max_epochs=1, limit_val_batches=0)
        if callbacks:
            with pytest.warns(UserWarning, match=f"not logged for 'backbone': .*{text}"):
                runner.fit(module := model(), data())
            assert "drift/backbone" in runner.callback_metrics
            assert "similarity/backbone" not in runner.callback_metrics
        else:
            runner.fit(module := model(), data())
        states.append([module.state_dict(), torch.rand(())])
    assert first_difference(*states, "state") is None


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # inside torch.compile
def test_a_compiled_part_has_the_same_similarity_and_is_not_compiled_more_often() -> None:
    torch._dynamo.register_backend(counted, name="counted_drift")

    def fit(compiled: Any, *callbacks: pl.Callback) -> tuple[list[dict[str, float]], int]:
        GRAPHS.clear()
        torch._dynamo.reset()
        model = hybrid("6 steps", dropout=0.0)
        model.parts["old"] = dataclasses.replace(model.parts["old"], compile=compiled)
        return logged(model, *callbacks), len(GRAPHS)

    backend = {"backend": "counted_drift"}
    (plain, none), (watched, graphs) = fit(False, PretrainedDrift(["old"])), fit(backend, PretrainedDrift(["old"]))
    assert (none, graphs) == (0, fit(backend)[1])
    assert graphs > 1
    for one, other in zip(plain, watched, strict=True):
        assert other == pytest.approx(one, rel=1e-4)
    assert watched[0]["similarity/old"] == 1 > watched[-1]["similarity/old"]


def test_what_is_impossible_is_an_error_before_the_first_step() -> None:
    with pytest.raises(
        ConfigError, match=r"PretrainedDrift\.parts: unknown part 'backbonne'\. Did you mean 'backbone'"
    ):
        trainer(callbacks=[PretrainedDrift(["backbonne"])]).fit(Takes(), batches())
    with pytest.raises(
        ConfigError, match=r"the groups do not say what is pretrained\. Name .* among: 'backbone', 'head'"
    ):
        trainer(callbacks=[PretrainedDrift()]).fit(Takes(), batches())
    with pytest.raises(ConfigError, match=r"no part is pretrained\. Name .* among: 'old', 'new', 'fusion', 'head'"):
        trainer(callbacks=[PretrainedDrift()]).fit(hybrid(), batches())
    with pytest.raises(ConfigError, match="reference_samples: 3 is not possible"):
        PretrainedDrift(reference_samples=3)


def test_a_config_that_names_the_callback_has_its_columns_and_goes_on_with_them(folder: Path) -> None:
    config = changed({"init.lr": 0.05})
    assert main(["fit", "--config", write(config)]) == 0
    [saved] = (
        Path("lightning_logs").rglob("best.ckpt") if Path("lightning_logs").exists() else folder.rglob("best.ckpt")
    )
    assert main(["export_part", "--ckpt_path", str(saved), "--part", "stem", "--output", "stem.safetensors"]) == 0
    watched = {
        "init.parts.stem.weights": str(folder / "stem.safetensors"),
        "init.pretrained": {"unfreeze": "2 steps"},
        "trainer.max_epochs": 3,
        "trainer.callbacks": [{"class_path": "PretrainedDrift"}],
    }
    config = changed({"init.lr": 0.05, **watched})
    before = set(folder.rglob("metrics.csv"))
    assert main(["fit", "--config", write(config)]) == 0
    [table] = set(folder.rglob("metrics.csv")) - before
    with table.open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("drift/stem")]
    assert [int(row["step"]) for row in rows] == [2, 5, 8]
    assert all(float(row["similarity/stem"]) < 1 for row in rows)
    drifts = [float(row["drift/stem"]) for row in rows]
    assert 0 < drifts[0] < drifts[-1]
    assert not any("drift/body" in row for row in rows)
