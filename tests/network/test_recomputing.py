import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from hybrid_lightning import ConfigError, HybridClassifier
from hybrid_lightning.network.batch import CACHED
from hybrid_lightning.network.recomputing import recomputed_modules, recomputing
from hybrid_lightning.network.short_circuit import is_inside
from tests import small
from tests.resume.resuming import differences
from tests.tiny import Tower, batches, trainer

CALLS: list[str] = []


class Counting(Tower):
    """A tower that counts the calls of its first and second stage."""

    def __init__(self, in_features: int, dropout: float = 0.5) -> None:
        super().__init__(in_features, dropout=dropout)
        self.first[0].register_forward_pre_hook(lambda *_: CALLS.append("first"))
        self.second[0].register_forward_pre_hook(lambda *_: CALLS.append("second"))


class Leading(Counting):
    """A tower of which a cache can keep what a layer within the last stage returns."""

    def __init__(self, in_features: int) -> None:
        super().__init__(in_features)
        self.third = nn.Sequential(nn.ReLU(), nn.Linear(6, 6))


def tower(is_checkpointed: bool, **options: Any) -> dict[str, Any]:
    return {"module": Counting, "checkpoint_activations": is_checkpointed, **options}


def classifier(parts: dict[str, Any], **options: Any) -> HybridClassifier:
    torch.manual_seed(0)
    return HybridClassifier(2, parts=parts, lr=0.01, **options)


def model(is_checkpointed: bool, module: type[nn.Module] = Counting, **options: Any) -> HybridClassifier:
    schedule = {"start": "6 steps", "every": "5 steps"}
    old = tower(is_checkpointed, module=module, unfreeze=schedule)
    return classifier({"old": old, "new": "MLP"}, **options)


def fitted(make: Callable[[], Any], **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of the model and of the optimizer after a run through the unfreezing of all three stages."""
    torch.manual_seed(3)
    task = make()
    run = trainer(gradient_clip_val=0.5, **options)
    run.fit(task, batches(), batches(samples=12))
    assert {group["unfrozen_at"] for group in run.optimizers[0].param_groups if group["part"] == "old"} == {6, 11, 16}
    return task.state_dict(), run.optimizers[0].state_dict()["state"]


def assert_equal(first: Any, second: Any) -> None:
    states, moments = zip(first, second, strict=True)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    for index, entries in moments[0].items():
        assert all(torch.equal(entry, moments[1][index][key]) for key, entry in entries.items())


@pytest.fixture(autouse=True)
def no_calls() -> None:
    CALLS.clear()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_dropout_and_running_statistics_are_bit_equal_through_unfreezings(precision):
    plain = fitted(lambda: model(False), precision=precision)
    CALLS.clear()
    recomputed = fitted(lambda: model(True), precision=precision)
    assert_equal(plain, recomputed)
    # 20 steps; a validation of 2 batches after each of 4 epochs, and 2 before; 9 steps train this stage
    assert CALLS.count("second") == 1 + 20 + 10 + 9


@pytest.mark.parametrize(("stem_trains", "runs"), [(True, 2), (False, 1)])
def test_what_is_frozen_runs_again_only_where_a_part_before_it_trains(stem_trains, runs):
    task = classifier({"stem": Tower, "top": tower(True, input="stem")})
    task.build({"stem": small.table()})
    task.train()
    CALLS.clear()
    task.network.parts["top"].requires_grad_(False)
    task.network.parts["stem"].requires_grad_(stem_trains)
    task.network({"stem": small.table()}).sum().backward()
    assert CALLS.count("second") == runs


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_run_with_it_continues_bit_equal(every, tmp_path):
    number, found = differences(lambda: model(True), "samples", tmp_path, every, max_epochs=4)
    assert number >= 12 // every
    assert not found


def test_modalities_that_are_there_in_one_sample_alone_run_again_as_they_ran():
    # with one sample, normalizations use their stored statistics
    batch = next(iter(batches()))
    batch["present/old"] = torch.arange(8) == 3
    gradients = []
    for is_checkpointed in (False, True):
        task = model(is_checkpointed)
        task.build(batch)
        task.train()
        torch.manual_seed(1)
        task.network(batch).square().sum().backward()
        found = {name: parameter.grad for name, parameter in task.network.named_parameters()}
        gradients.append({**found, **dict(task.network.named_buffers())})
    assert gradients[0]["parts.old.first.0.weight"].abs().sum() > 0
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


class Served(pl.Callback):
    """The places within parts at which batches of training begin."""

    def __init__(self) -> None:
        self.places: set[str] = set()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.places.update(place for place in batch.get(CACHED, {}) if is_inside(place))


@pytest.mark.parametrize(("module", "places"), [(Counting, {"old/second", "old/first"}), (Leading, {"old/third.0"})])
def test_it_is_bit_equal_where_a_cache_keeps_what_frozen_stages_return(module, places):
    served = Served()
    plain = fitted(lambda: model(False, module, cache=True))
    assert_equal(plain, fitted(lambda: model(True, module, cache=True), callbacks=[served]))
    assert places <= served.places


class Spectral(nn.Module):
    """Its buffers change in each forward in train mode, and its outputs with them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
        self.layers = nn.Sequential(nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Tensor]:
        return {"out": self.layers(self.layer(x) + shift)}


def test_buffers_that_the_forward_pass_writes_and_reads_are_those_that_it_read():
    torch.manual_seed(0)
    plain = Spectral()
    recomputed = copy.deepcopy(plain)
    x, shift = torch.randn(3, 4), torch.randn(4, requires_grad=True)
    for _ in range(3):
        found = []
        for module in (plain, recomputed):
            with recomputing([module] if module is recomputed else [], "model.parts.x"):
                output = module(x, shift=shift)["out"]
            found.append(torch.autograd.grad(output.square().sum(), [*module.parameters(), shift]))
        assert all(map(torch.equal, *found))
    assert all(map(torch.equal, plain.buffers(), recomputed.buffers()))
    assert "forward" not in vars(recomputed)


def test_two_backward_passes_over_one_graph_begin_with_the_same_buffers():
    module = Spectral()
    with recomputing([module], "model.parts.x"):
        loss = module(torch.randn(3, 4), shift=torch.zeros(4))["out"].square().sum()
    first = torch.autograd.grad(loss, [*module.parameters()], retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, [*module.parameters()])))


def test_stages_run_again_one_by_one_and_parts_of_single_layers_as_a_whole():
    tower = Tower(4)
    stages = {"first": ["first"], "second": ["second"], "third": ["third"]}
    assert recomputed_modules(tower, stages) == [tower.first, tower.second]
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert recomputed_modules(layers, {"0": ["0"], "2": ["2"]}) == [layers]
    blocks = nn.ModuleList([nn.LSTM(4, 4), nn.Sequential(nn.Linear(4, 4))])
    assert recomputed_modules(nn.ModuleDict({"blocks": blocks}), {"all": ["*"]}) == [*blocks]


class InPlace(nn.Module):
    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(in_features, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_stage_that_overwrites_its_input_is_refused_by_name():
    parts = {"x": {"module": InPlace, "checkpoint_activations": True}}
    with pytest.raises(ConfigError, match=r"^model\.parts\.x\.checkpoint_activations: InPlace overwrites what"):
        small.trainer().fit(small.classifier(parts=parts), small.loader({"x": small.table(), **targets()}))


def targets() -> dict[str, Tensor]:
    return {"target": torch.arange(27) % 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"init.parts.stem.checkpoint_activations": True, "init.parts.stem.compile": True},
            "model.parts.stem.checkpoint_activations: a compiled part decides by itself",
        ),
        (
            {"init.untrained": {"checkpoint_activations": "yes, please"}},
            "checkpoint_activations: 'yes, please' is neither true nor false.",
        ),
    ],
)
def test_what_it_cannot_be_is_refused(changes, message, folder, capsys):
    assert small.command("fit", config=small.changed(changes)) == 2
    assert message in capsys.readouterr().err


def test_a_run_takes_it_from_the_defaults_and_continues_without_it(folder, capsys):
    config = small.changed({"init.untrained": {"checkpoint_activations": True}})
    assert small.command("fit", config=config) == 0
    assert small.command("fit", "--resume", "auto", "--trainer.max_epochs", "2", config=small.changed()) == 0
    assert "parts.stem.checkpoint_activations True → null, applied from epoch 1" in capsys.readouterr().out
