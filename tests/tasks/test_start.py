"""``start: probe``: training begins at a closed-form solution, which is validated before the first step."""

import csv
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler

from hybrid_lightning import HybridClassifier, HybridRegressor
from hybrid_lightning.data.in_memory import DictDataset, as_batch
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.network.blend import BlendFusion
from hybrid_lightning.network.modules.random_convolutions import RandomConvolutions
from hybrid_lightning.probe.score import score
from tests import small, tiny
from tests.processes import succeed_on
from tests.tasks.start_worker import begin

PARTS = {"x": {"module": "MLP", "args": {"hidden": [16]}}, "y": {"module": "torch.nn.Identity"}}


def entries(rows: int = 96, seed: int = 0) -> dict[str, Tensor]:
    """Two inputs of which the second decides the class, linearly."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(rows, 4, generator=generator), torch.randn(rows, 3, generator=generator)
    return {"x": x, "y": y, "target": y.argmax(1)}


def classifier(**changes: Any) -> HybridClassifier:
    pl.seed_everything(0)
    return HybridClassifier(**{"num_classes": 3, "parts": PARTS, "start": "probe", **changes})


def fit(model: Any, data: dict[str, Tensor], folder: Path, **changes: Any) -> pl.Trainer:
    options = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    checkpoint = ModelCheckpoint(folder, "best", monitor="val/loss", auto_insert_metric_name=False)
    trainer = pl.Trainer(**{**options, "logger": False, "log_every_n_steps": 1, "callbacks": [checkpoint], **changes})
    trainer.fit(model, small.loader(data, 32, shuffle=True), small.loader(entries(seed=1), 32))
    return trainer


class AtTheFirstBatch(pl.Callback):
    """Keeps what the model gives before the first step."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *rest: Any) -> None:
        if trainer.global_step == 0:
            modes = {module: module.training for module in pl_module.modules()}
            pl_module.eval()
            with torch.no_grad():
                self.outputs = pl_module(self.batch)
            for module, mode in modes.items():
                module.training = mode


def test_training_begins_at_a_linear_solution_that_the_default_start_does_not_have(tmp_path):
    data = entries()
    accuracies = {}
    for start in ("probe", "default"):
        first = AtTheFirstBatch(data)
        fit(classifier(start=start), data, tmp_path, callbacks=[first], enable_checkpointing=False)
        accuracies[start] = score(first.outputs, data["target"], "classes").value
    assert accuracies["probe"] > 0.95 > 0.7 > accuracies["default"]


def test_the_start_is_validated_as_step_0_and_may_be_the_best(tmp_path, capsys):
    # at this rate every step makes it worse
    trainer = fit(classifier(lr=1.0), entries(), tmp_path)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert best["global_step"] == 0
    assert trainer.checkpoint_callback.best_model_score < trainer.callback_metrics["val/loss"]
    assert "start: closed-form solution on 96 training rows, accuracy of rows held out" in capsys.readouterr().out


def test_it_is_logged_with_the_keys_of_every_validation(folder):
    config = small.changed({"init.start": "probe"})
    assert small.command("fit", config=config) == 0
    with Path("runs/small/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = [{key for key, value in row.items() if value and key.startswith("val/")} for row in rows]
    first, *_, last = [found for found in keys if found]
    assert first == last
    assert rows[0]["step"] == "0"


def test_one_part_begins_at_it_too(tmp_path):
    data = entries()
    first = AtTheFirstBatch(data)
    fit(classifier(parts={"y": "torch.nn.Identity"}), data, tmp_path, callbacks=[first], enable_checkpointing=False)
    assert score(first.outputs, data["target"], "classes").value > 0.95


@pytest.mark.parametrize("standardize", [True, False])
def test_a_regression_begins_at_it_in_the_units_of_the_target(tmp_path, standardize):
    data = entries()
    data["target"] = 100 + 10 * data["y"][:, 0] + data["x"][:, 1]
    pl.seed_everything(0)
    model = HybridRegressor(parts=PARTS, start="probe", standardize=standardize)
    first = AtTheFirstBatch(data)
    fit(model, data, tmp_path, callbacks=[first], enable_checkpointing=False)
    model.objective.scale.to("cpu")
    predicted = model.predictions(first.outputs)
    assert score(predicted[:, None], data["target"][:, None], "values").value > 0.9


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_labels_begin_at_it(tmp_path, kind):
    data = entries()
    labels = (data["y"] > 0).long()
    data["target"] = labels[:, 0] if kind == "binary" else labels
    val = entries(seed=1)
    val["target"] = (val["y"][:, 0] > 0).long() if kind == "binary" else (val["y"] > 0).long()
    model = classifier(kind=kind, num_classes=2 if kind == "binary" else 3)
    first = AtTheFirstBatch(data)
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[first],
    )  # fmt: skip
    trainer.fit(model, small.loader(data, 32), small.loader(val, 32))
    assert score(first.outputs, data["target"].reshape(96, -1), "labels").value > 0.95


def test_a_continued_fit_and_a_loaded_model_are_not_solved_again(tmp_path, capsys):
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(max_epochs=1, enable_checkpointing=False, **options)
    trainer.fit(classifier(), small.loader(entries(), 32))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert "closed-form" in capsys.readouterr().out
    again = classifier()
    longer = pl.Trainer(max_epochs=2, enable_checkpointing=False, **options)
    longer.fit(again, small.loader(entries(), 32), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    loaded = HybridClassifier.load_from_checkpoint(tmp_path / "last.ckpt")
    pl.Trainer(max_epochs=1, enable_checkpointing=False, **options).fit(loaded, small.loader(entries(), 32))
    assert "closed-form" not in capsys.readouterr().out


def test_random_features_are_prepared_before_the_first_step_and_never_train(tmp_path, capsys):
    data = {"series": torch.randn(40, 32).cumsum(1), "target": torch.arange(40) % 2}
    data["series"][::2] *= 3
    model = classifier(
        num_classes=2, parts={"series": {"module": "RandomConvolutions", "args": {"features": 168, "seed": 7}}}
    )
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = pl.Trainer(max_epochs=2, enable_checkpointing=False, **options)
    trainer.fit(model, small.loader(data, 8, shuffle=True))
    part = model.network.parts["series"]
    assert isinstance(part, RandomConvolutions)
    alone = RandomConvolutions([32], features=168, seed=7)
    alone.prepare([[data["series"]]])
    assert torch.equal(part.biases, alone.biases)
    shown = capsys.readouterr().out
    assert "'series': prepared with 40 training samples" in shown
    assert any(line.split()[:2] == ["series", "random"] and "never" in line for line in shown.splitlines())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": "middle"}, r"^model\.start: unknown start 'middle'"),
        ({"fusion": {"module": "GatedFusion"}}, r"^model\.fusion: 'GatedFusion' has no closed form"),
        ({"parts": {**PARTS, "head": "LinearHead"}}, r"^model\.parts\.head: with 'start: probe' the fusion makes"),
        ({"parts": {"y": "torch.nn.Identity", "head": "MLP"}}, r"^model\.start: a MLP cannot begin"),
    ],
)
def test_what_has_no_closed_form_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        fit(classifier(**changes), entries(), tmp_path)


def test_the_random_numbers_of_a_fit_are_those_of_one_without_preparation(tmp_path):
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("prepared", torch.ones((), dtype=torch.int64))

        def prepare(self, batches: Any) -> None:
            list(batches)
            self.prepared.fill_(1)

        def forward(self, x: Tensor) -> Tensor:
            return x

    weights = []
    for prepared in (0, 1):
        own = Counts()
        own.prepared.fill_(prepared)
        model = classifier(start="default", parts={**PARTS, "y": own, "x": {"module": "MLP", "args": {"dropout": 0.5}}})
        fit(model, entries(), tmp_path)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks_begin_where_one_process_does(strategy, tmp_path):
    outputs = succeed_on(2, "-m", "tests.tasks.start_worker", strategy, str(tmp_path))
    assert "".join(outputs).count("closed-form solution") == 1
    begin("auto", tmp_path / "alone.pt")
    alone, first, second = (torch.load(tmp_path / name) for name in ("alone.pt", "0.pt", "1.pt"))
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
        assert torch.equal(tensor, alone["state"][name]), name
    assert first["metrics"] == second["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
    for rank in (0, 1):  # the run that goes on from the start
        later, continued = (torch.load(tmp_path / f"{rank}{name}.later") for name in ("", "-continued"))
        assert all(torch.equal(tensor, continued["state"][name]) for name, tensor in later["state"].items())


def test_a_fit_continued_from_its_start_is_the_fit_that_went_on(tmp_path):
    weights = []
    for path in (None, tmp_path / "0" / "best.ckpt"):
        # at this rate every step makes it worse, so that the best is the start
        model = classifier(lr=1.0, parts={**PARTS, "x": {"module": "MLP", "args": {"dropout": 0.5}}})
        options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}
        folder = tmp_path / str(len(weights))
        checkpoint = ModelCheckpoint(folder, "best", monitor="val/loss", auto_insert_metric_name=False)
        trainer = pl.Trainer(max_epochs=1, callbacks=[checkpoint], **options)
        loaders = small.loader(entries(), 32, shuffle=True), small.loader(entries(seed=1), 32)
        if path is not None:
            assert torch.load(path, weights_only=True)["global_step"] == 0
        trainer.fit(model, *loaders, ckpt_path=path, weights_only=True)
        assert trainer.global_step == 3
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_rows_that_the_loader_leaves_out_are_not_read(tmp_path, capsys):
    dataset = DictDataset(entries())
    train, val = SubsetRandomSampler(range(0, 96, 2)), SubsetRandomSampler(range(1, 96, 2))
    loaders = [DataLoader(dataset, 16, sampler=sampler, collate_fn=as_batch) for sampler in (train, val)]
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier(), *loaders)
    assert "closed-form solution on 48 training rows" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
@pytest.mark.parametrize("val", [[], {"a": small.loader(entries(seed=1), 32)}, [small.loader(entries(seed=1), 32)]])
def test_validation_data_may_be_missing_or_in_a_collection(tmp_path, val):
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(classifier(), small.loader(entries(), 32), val)
    assert trainer.global_step == 3


def test_a_fast_dev_run_leaves_no_file(folder):
    config = small.changed({"init.start": "probe", "trainer.fast_dev_run": 1})
    assert small.command("fit", config=config) == 0
    assert not list(folder.rglob("*.ckpt"))


@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
def test_an_average_of_weights_begins_at_the_start(tmp_path):
    average = EMAWeightAveraging(decay=0.999)
    checkpoint = ModelCheckpoint(tmp_path, "best", monitor="val/loss", auto_insert_metric_name=False)
    trainer = fit(classifier(selection="none"), entries(), tmp_path, callbacks=[average, checkpoint], max_steps=1)
    measured = trainer.validate(classifier(), small.loader(entries(seed=1), 32), tmp_path / "best.ckpt", verbose=False)
    assert measured[0]["val/loss"] < 0.5


def test_the_statistics_of_a_random_part_are_those_of_training_samples(tmp_path):
    layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    data = {**entries(), "x": 50 + entries()["x"]}
    model = classifier(start="default", parts={**PARTS, "x": {"module": layers, "origin": "random"}})
    fit(model, data, tmp_path)
    features = model.network.eval().features(data)["x"]
    assert 0.2 < float(features.detach().mean()) < 0.8


def test_the_fusion_gets_the_kind_of_the_objective_by_any_name():
    for module in ("BlendFusion", BlendFusion, "hybrid_lightning.network.blend.BlendFusion"):
        model = HybridRegressor(parts=PARTS, fusion={"module": module, "args": {"kind": "classes"}})
        assert model.fusion.args["kind"] == "values"
    with pytest.raises(ConfigError, match="kind: unknown value 'valeus'"):
        BlendFusion({"a": 2}, 2, "valeus")


class Stream(IterableDataset):
    """Samples without an end."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        while True:
            yield {"series": torch.randn(16, generator=generator), "target": torch.tensor(1)}


def of_stream() -> HybridClassifier:
    parts = {"series": {"module": "RandomConvolutions", "args": {"features": 168}}}
    return classifier(start="default", num_classes=2, parts=parts)


def test_parts_are_prepared_with_the_first_samples_of_a_stream(capsys):
    model = of_stream()
    small.trainer(max_steps=1).fit(model, DataLoader(Stream(), 30))
    assert "'series': prepared with the first 2,070 training samples" in capsys.readouterr().out
    first = [sample["series"] for sample in islice(Stream(), 2070)]
    alone = RandomConvolutions([16], features=168, seed=model.network.parts["series"].seed)
    alone.prepare([[torch.stack(first)]])
    assert torch.equal(model.network.parts["series"].biases, alone.biases)


def test_a_continued_fit_prepares_nothing_from_a_stream(tmp_path, capsys):
    model, run = of_stream(), small.trainer(max_steps=1)
    run.fit(model, DataLoader(Stream(), 30))
    run.save_checkpoint(tmp_path / "a.ckpt")
    capsys.readouterr()
    again = of_stream()
    small.trainer(max_steps=2).fit(again, DataLoader(Stream(), 30), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert "prepared" not in capsys.readouterr().out
    assert torch.equal(model.network.parts["series"].biases, again.network.parts["series"].biases)


def test_a_closed_form_start_is_refused_for_a_stream():
    parts = {"series": {"module": "torch.nn.Identity"}}
    with pytest.raises(ConfigError, match=r"^data: closed-form fits .* a stream may never end\. .*'start: probe'"):
        small.trainer(max_steps=1).fit(classifier(num_classes=2, parts=parts), DataLoader(Stream(), 30))


def test_features_that_cannot_be_fitted_are_told_by_their_part(tmp_path):
    data = entries()
    data["y"][3, 1] = torch.nan
    with pytest.raises(ConfigError, match=r"^model\.parts\.y\.features: 1 of 96 rows have values that are not finite"):
        fit(classifier(), data, tmp_path)


class Looking(pl.Callback):
    """What a callback of somebody's own sees at the start of a run."""

    def setup(self, run, module, stage) -> None:
        self.names = [name for name, _ in module.named_parameters()]

    def on_fit_start(self, run, module) -> None:
        old = module.network.parts["old"]
        self.flags = {parameter.requires_grad for parameter in old.parameters()}
        self.modes = {child.training for child in old.modules()}


def test_callbacks_find_the_network_in_setup_and_what_is_frozen_frozen_at_the_start():
    looking = Looking()
    tiny.trainer(callbacks=[looking], max_epochs=1).fit(tiny.hybrid("never"), tiny.batches())
    assert "network.parts.old.third.weight" in looking.names
    assert (looking.flags, looking.modes) == ({False}, {False})


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_several_loaders_of_a_split_are_refused_in_our_words(verb):
    model, runner = tiny.hybrid("never"), tiny.trainer(max_epochs=1)
    several = [tiny.batches(), tiny.batches()]
    split = "test" if verb == "test" else "val"
    with pytest.raises(ConfigError, match=f"data: there are 2 {split} loaders.*ConcatDataset"):
        runner.fit(model, tiny.batches(), several) if verb == "fit" else getattr(runner, verb)(model, several)
