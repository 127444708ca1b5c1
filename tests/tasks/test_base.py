import inspect
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import DataLoader

from hybrid_lightning import (
    ConfigError,
    GradientNormMonitor,
    GradualUnfreezing,
    HybridClassifier,
    HybridTask,
    InMemoryDataModule,
)
from hybrid_lightning.data.in_memory import DictDataset
from tests.processes import succeed
from tests.small import classifier, loader, regressor, table, trainer

TARGET = torch.arange(27) % 3


def data(**options):
    return loader({"x": table(), "target": TARGET}, **options)


class Plain(list):
    """A dataset of dicts of the most ordinary kind."""


class Batches:
    """A loader of somebody's own."""

    def __init__(self, *batches) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Module(InMemoryDataModule):
    def load(self):
        return {split: DictDataset({"x": table(), "target": TARGET}) for split in ("train", "val", "test")}


class Record(pl.Callback):
    """What was logged at each log step."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def on_train_batch_end(self, run, module, outputs, batch, batch_idx) -> None:
        self.values.append({name: float(value) for name, value in run.callback_metrics.items()})


# Data


def test_plain_loaders_with_the_default_collation_train_validate_test_and_predict():
    samples = Plain({"x": row, "target": label} for row, label in zip(table(), TARGET, strict=True))
    plain, model, run = DataLoader(samples, batch_size=8), classifier(), trainer()
    run.fit(model, plain, plain)
    assert {"val/loss", "val/accuracy"} <= run.callback_metrics.keys()
    assert "test/accuracy" in run.test(model, plain, verbose=False)[0]
    predicted = torch.cat(run.predict(model, plain))
    assert predicted.shape == (27, 3)
    with torch.no_grad():
        assert torch.equal(predicted, torch.cat([model.predictions(model.eval()({"x": x})) for x in table().split(8)]))


def test_labels_that_are_python_numbers_are_collated_and_learned():
    samples = Plain({"x": row, "target": int(label)} for row, label in zip(table(), TARGET, strict=True))
    trainer(limit_val_batches=0).fit(classifier(), DataLoader(samples, batch_size=8))


def test_a_data_module_serves_fit_test_and_fit_again():
    module, model = Module(batch_size=8), classifier()
    run = trainer()
    run.fit(model, datamodule=module)
    before = model.built().parts["x"].layer0[0].weight.clone()
    network = model.network
    run.test(model, datamodule=module, verbose=False)
    assert torch.equal(model.built().parts["x"].layer0[0].weight, before)
    trainer().fit(model, datamodule=module)
    assert model.network is network
    assert not torch.equal(model.built().parts["x"].layer0[0].weight, before)


@pytest.mark.parametrize(
    ("batches", "match"),
    [
        ([table(8)], r"data: a batch is a dict .*the loader gave Tensor"),
        ([(table(8), TARGET[:8])], r"data: a batch is a dict .*the loader gave tuple"),
        ([{"x": table(8)}], r"data: the batch has no 'target'. It has: 'x'"),
        ([{"y": table(8), "target": TARGET[:8]}], r"part 'x' reads 'x', .* The batch has: 'y', 'target'"),
        ([{"x": table(8), "target": TARGET[:8] + 5}], "labels run from 5 to 7, but the model allows 0 to 2"),
        ([{"x": table(8), "target": TARGET[:8].float()}], r"labels are torch\.float32"),
        ([{"x": table(8), "target": [0, 1, 2]}], r"data: target: a list is not a tensor"),
        ([{"x": table(8), "target": TARGET[:8]}, (table(8), TARGET[:8])], "a batch is a dict .*gave tuple"),
        ([], "the loader is empty"),
    ],
)  # fmt: skip
def test_a_batch_of_another_form_is_told_before_the_first_step(batches, match):
    model, steps = classifier(), []
    model.on_train_batch_end = lambda *_: steps.append(1)
    with pytest.raises(ConfigError, match=match):
        trainer(limit_val_batches=0).fit(model, Batches(*batches))
    assert len(steps) < max(len(batches), 1)


def test_a_label_out_of_range_deep_in_the_data_is_found_before_the_first_step():
    target = TARGET.clone()
    target[-1] = 7
    model, steps = classifier(), []
    model.on_train_batch_end = lambda *_: steps.append(1)
    with pytest.raises(ConfigError, match="data: train targets: labels run from 0 to 7"):
        trainer().fit(model, loader({"x": table(), "target": target}), data())
    with pytest.raises(ConfigError, match="labels run from 0 to 7"):
        trainer().fit(classifier(), data(), loader({"x": table(), "target": target}))
    assert not steps


class Own(Module):
    """A DataModule with the hook in which a batch may still be changed on the CPU."""

    def __init__(self, first_label: int) -> None:
        super().__init__(batch_size=8)
        self.first_label = first_label

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "target": batch["target"] + self.first_label}


def test_a_data_module_that_changes_batches_does_not_switch_off_the_check_of_their_targets():
    trainer().fit(classifier(), datamodule=Own(0))
    with pytest.raises(ConfigError, match=r"^data: target: labels run from 5 to 7, but the model allows 0 to 2"):
        trainer().fit(classifier(), datamodule=Own(5))


@pytest.mark.parametrize("module", [lambda: Module(batch_size=8), lambda: Own(0)], ids=["plain", "with the hook"])
def test_each_batch_is_checked_once_on_the_cpu_and_no_warning_is_given(module):
    model, run, seen = classifier(), trainer(num_sanity_val_steps=0), []
    model.check_batch = lambda batch: seen.append((run.state.stage.value, batch["target"].device.type, len(batch["x"])))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*on_before_batch_transfer.*")
        run.fit(model, datamodule=module())
    of_an_epoch = [(8, 8, 8, 3), (8, 8, 8, 3)]
    for stage, sizes in zip(("train", "validate"), of_an_epoch, strict=True):
        assert [entry for entry in seen if entry[0] == stage] == [(stage, "cpu", size) for size in sizes]


def test_importing_a_task_leaves_the_warning_filters_as_they_are():
    script = """
import sys, warnings
for name in [name for name in sys.modules if name.startswith("hybrid_lightning")]:
    del sys.modules[name]
warnings.resetwarnings()
import hybrid_lightning.tasks.base
ours = [entry for entry in warnings.filters if "batch_transfer" in str(entry)]
assert not ours, ours
"""
    succeed("-c", script)


def test_a_model_that_was_validated_before_trains_and_validates():
    model = classifier()
    trainer().validate(model, data(), verbose=False)
    run = trainer()
    run.fit(model, data(), data())
    assert "val/accuracy" in run.callback_metrics


def test_prediction_needs_no_target():
    model, run = classifier(), trainer()
    run.fit(model, data())
    assert torch.cat(run.predict(model, Batches({"x": table(5)}))).shape == (5, 3)


def test_a_model_that_was_not_built_says_how_to_build_it():
    with pytest.raises(ConfigError, match=r"model\.build\(batch\)"):
        classifier()({"x": table()})
    built = classifier().build({"x": table()})
    assert built({"x": table(5)}).shape == (5, 3)
    with pytest.raises(ConfigError, match=r"^data: a batch is a dict such as .*; the loader gave Tensor"):
        built(table(5))


# Optimizer and logs


def test_the_same_training_written_by_hand_gives_the_same_weights():
    model = classifier(weight_decay=0.1, optimizer={"class_path": "AdamW", "init_args": {"fused": False}})
    model.build({"x": table()})
    twin = classifier().build({"x": table()})
    twin.load_state_dict(model.state_dict())
    trainer(max_epochs=2, gradient_clip_val=0.5, limit_val_batches=0).fit(model, data())
    decayed = [p for p in twin.network.parameters() if p.ndim > 1]
    others = [p for p in twin.network.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}])
    for _ in range(2):
        for x, target in zip(table().split(8), TARGET.split(8), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(twin({"x": x}), target).backward()
            nn.utils.clip_grad_norm_(twin.network.parameters(), 0.5)
            optimizer.step()
    for name, tensor in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


class Notebook(DummyLogger):
    """Keeps the settings by which runs are compared."""

    def log_hyperparams(self, params) -> None:
        self.settings = params


def test_every_logger_gets_the_settings_by_which_runs_are_compared(tmp_path):
    notebook = Notebook()
    loggers = [notebook, CSVLogger(tmp_path)]
    trainer(logger=loggers, log_every_n_steps=1, limit_val_batches=0).fit(
        classifier(lr=0.2, rates={"shape": "cosine"}), data()
    )
    settings = notebook.settings
    assert (settings["lr"], settings["rates.shape"]) == (0.2, "cosine")
    part = [settings[f"parts.x.{key}"] for key in ("module", "args.hidden", "lr_scale")]
    assert part == ["MLP", "[5]", 1.0]
    assert "lr: 0.2" in (tmp_path / "lightning_logs/version_0/hparams.yaml").read_text()
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())


class Refusing(DummyLogger):
    """Refuses the settings, as MLflow does if one has changed."""

    def log_hyperparams(self, params) -> None:
        raise ValueError("Changing param values is not allowed")


def test_a_logger_that_refuses_the_settings_costs_no_fit(caplog):
    trainer(logger=Refusing(), limit_val_batches=0, log_every_n_steps=1).fit(classifier(), data())
    assert "Refusing has not taken all settings: Changing param values" in caplog.text


def test_the_logged_training_loss_is_the_mean_since_the_last_log():
    model, record = classifier(), Record()
    losses = []
    original = model.training_step

    def step(batch, batch_idx):
        loss = original(batch, batch_idx)
        losses.append(loss.detach())
        return loss

    model.training_step = step
    trainer(log_every_n_steps=2, callbacks=[record], limit_val_batches=0).fit(model, data())
    assert len(losses) == 4
    assert record.values[1]["train/loss"] == pytest.approx(float(sum(losses[:2])) / 2)
    assert record.values[3]["train/loss"] == pytest.approx(float(sum(losses[2:])) / 2)


def test_the_logged_rates_are_those_of_the_step():
    parts = {"x": {"module": "MLP", "lr_scale": 0.5}, "y": {"module": "MLP", "input": "x"}}
    record = Record()
    options = {"max_epochs": 1, "log_every_n_steps": 1, "callbacks": [record], "limit_val_batches": 0}
    trainer(**options).fit(classifier(parts=parts, lr=0.1, rates={"shape": "linear"}), data())
    for step, values in enumerate(record.values):
        assert values["lr/y"] == pytest.approx(0.1 * (1 - step / 4), rel=1e-12)
        assert values["lr/x-no_decay"] == pytest.approx(0.05 * (1 - step / 4), rel=1e-12)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_is_the_trainers(algorithm):
    model, seen = classifier(), []
    model.build({"x": table()})
    original = model.on_before_zero_grad
    model.on_before_zero_grad = lambda optimizer: (
        seen.append([p.grad.clone() for p in model.parameters() if p.grad is not None]),
        original(optimizer),
    )[1]
    options = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm, "limit_val_batches": 0}
    trainer(**options).fit(model, data())
    for gradients in filter(None, seen):
        if algorithm == "norm":
            assert float(torch.cat([g.flatten() for g in gradients]).norm()) <= 0.01 * 1.001
        else:
            assert max(float(g.abs().max()) for g in gradients) <= 0.01


def test_negative_clipping_is_refused():
    with pytest.raises(ConfigError, match=r"trainer\.gradient_clip_val: -1"):
        trainer(gradient_clip_val=-1.0).fit(classifier(), data())


# Callbacks


class Slow(GradualUnfreezing):
    """A user's own kind of our callback."""


def callbacks_of(run, kind):
    return [callback for callback in run.callbacks if isinstance(callback, kind)]


@pytest.mark.parametrize("kind", [GradualUnfreezing, Slow])
def test_a_users_own_unfreezing_takes_the_place_of_ours(kind, capsys):
    own = kind({"x": "never"})
    model, run = classifier(parts={"x": {"module": "MLP", "unfreeze": "50%"}}), trainer(callbacks=[own])
    model.build({"x": table()})
    before = model.built().parts["x"].layer0[0].weight.clone()
    run.fit(model, data())
    assert callbacks_of(run, GradualUnfreezing) == [own]
    assert torch.equal(model.built().parts["x"].layer0[0].weight, before)
    assert "never" in capsys.readouterr().out


def test_a_users_own_monitor_takes_the_place_of_ours():
    own, run = GradientNormMonitor(), trainer()
    run = trainer(callbacks=[own])
    run.fit(classifier(), data())
    assert callbacks_of(run, GradientNormMonitor) == [own]
    assert len(callbacks_of(run, GradualUnfreezing)) == 1


def test_our_callbacks_stay_single_over_fit_test_and_fit():
    model, run = classifier(), trainer()
    run.fit(model, data())
    run.test(model, data(), verbose=False)
    run.fit_loop.max_epochs = 2
    run.fit(model, data())
    for kind in (GradualUnfreezing, GradientNormMonitor):
        assert len(callbacks_of(run, kind)) == 1


def test_a_frozen_part_stays_as_it_is_and_the_plan_says_so(capsys):
    model = classifier(parts={"x": {"module": "MLP", "unfreeze": "never"}, "y": {"module": "MLP", "input": "x"}})
    model.build({"x": table()})
    before = {name: tensor.clone() for name, tensor in model.built().parts["x"].state_dict().items()}
    trainer().fit(model, data())
    assert all(torch.equal(before[name], t) for name, t in model.built().parts["x"].state_dict().items())
    assert "never" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("x "))


# Subclasses and arguments


def test_the_base_class_is_abstract():
    assert inspect.isabstract(HybridTask)
    with pytest.raises(TypeError, match="abstract"):
        HybridTask(parts={"x": "MLP"})


class Focal(HybridClassifier):
    """A user's task with a loss of its own."""

    def loss(self, outputs, target):
        weights = (1 - self.predictions(outputs).gather(1, target[:, None])[:, 0]) ** 2
        return (weights * nn.functional.cross_entropy(outputs, target, reduction="none")).mean()


def test_a_subclass_with_a_loss_of_its_own_trains():
    model, run = Focal(num_classes=3, parts={"x": {"module": "MLP"}}), trainer()
    run.fit(model, data(), data())
    with torch.no_grad():
        batches = zip(table().split(8), TARGET.split(8), strict=True)
        expected = sum(float(model.loss(model.eval()({"x": x}), t)) * len(t) for x, t in batches) / 27
    assert float(run.callback_metrics["val/loss"]) == pytest.approx(expected, rel=1e-5)


def test_a_method_that_belongs_to_an_objective_is_refused_in_a_task():
    with pytest.raises(TypeError, match=r"Own: 'make_metrics' belong to the task's Objective, see docs/own_task\.md"):
        type("Own", (HybridClassifier,), {"make_metrics": lambda self: None})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"lr": 0}, r"model\.lr: 0 is not a number above 0"),
        ({"lr": "fast"}, r"model\.lr: 'fast'"),
        ({"weight_decay": -1}, r"model\.weight_decay: -1"),
        ({"rates": {"shap": "cosine"}}, "Did you mean 'shape'"),
        ({"rates": {"shape": "cosine"}, "scheduler": "StepLR"}, "either 'rates' or 'scheduler'"),
        ({"pretrained": {"unfreez": "never"}}, "Did you mean 'unfreeze'"),
        ({"parts": {}}, "at least one part"),
    ],
)
def test_an_impossible_argument_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        classifier(**options)


def test_a_fusion_is_described_by_facts():
    parts = {"x": {"module": "MLP"}, "y": {"module": "MLP", "input": "x"}, "z": {"module": "MLP", "input": "x"}}
    model = regressor(parts=parts, fusion={"args": {"width": 5}}).build({"x": table()})
    assert model({"x": table(3)}).shape == (3, 1)
    assert model.built().parts["head"].linear.in_features == 10


def test_a_part_without_parameters_of_its_own_needs_no_unfreezing():
    """A module without any, and one that is the same module as another part."""
    shared = torch.nn.Linear(4, 3)
    parts = {
        "flat": {"module": "torch.nn.Flatten", "input": "x"},
        "one": {"module": shared, "weights": "pretrained", "input": "flat"},
        "two": {"module": shared, "weights": "pretrained", "input": "x"},
    }
    parts["flat"]["unfreeze"] = "1 steps"
    model = HybridClassifier(num_classes=3, parts=parts, pretrained={"unfreeze": "2 steps"})
    run = trainer(max_epochs=1)
    run.fit(model, data())
    assert {g["part"]: g["unfrozen_at"] for g in run.optimizers[0].param_groups} == {"two": 2, "fusion": 0, "head": 0}


def test_defaults_of_untrained_parts_reach_the_fusion_and_the_head():
    parts = {"a": {"module": "MLP", "input": "x"}, "b": {"module": "MLP", "input": "x"}}
    model = HybridClassifier(num_classes=3, parts=parts, lr=1.0, untrained={"lr_scale": 0.5})
    groups = model.build(next(iter(data()))).built().param_groups(1.0, 0.0)
    assert {g["part"]: g["lr"] for g in groups} == {"a": 0.5, "b": 0.5, "fusion": 0.5, "head": 0.5}


def test_defaults_of_pretrained_parts_without_any_are_refused():
    with pytest.raises(
        ConfigError, match=r"^model\.pretrained: no part is pretrained, so 'unfreeze' would hold for none"
    ):
        classifier(pretrained={"unfreeze": "never"})
    classifier(pretrained={"unfreeze": None})


def test_a_live_module_that_counts_as_untrained_is_told(capsys):
    for options, is_told in (({}, True), ({"origin": "untrained"}, False), ({"origin": "pretrained"}, False)):
        model = classifier(parts={"x": {"module": torch.nn.Linear(4, 3), **options}})
        trainer().fit(model, data())
        assert ("x: its live module counts as untrained" in capsys.readouterr().out) is is_told


def test_a_part_that_reads_another_part_rather_than_the_key_of_the_same_name_is_told(capsys):
    reader = {"module": "MLP", "input": "x"}
    for name, is_told in (("x", True), ("tower", False)):
        first = {"module": "MLP", "args": {"hidden": [4]}, "input": "x"}
        trainer().fit(classifier(parts={name: first, "deep": reader}), data())
        assert ("deep: reads the part 'x', not 'x' of the batch" in capsys.readouterr().out) is is_told


def test_a_tensor_is_no_batch():
    model = classifier().build(next(iter(data())))
    with pytest.raises(ConfigError, match="a batch is a dict"):
        model(table())
