from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint

from hybrid_lightning import ConfigError, HybridTask
from hybrid_lightning.tasks.changed_config import changed_settings, describe_changes
from tests.small import CONFIG, changed, classifier, command, loader, table, trainer

STEPS_PER_EPOCH = 4
PARTS = {
    "x": {"module": "MLP", "args": {"hidden": [5]}, "lr_scale": 0.5},
    "y": {"module": "MLP", "args": {"hidden": [6]}, "input": "x", "unfreeze": "6 steps"},
}
SGD = {"class_path": "SGD", "init_args": {"momentum": 0.9}}


def data(classes: int = 3):
    return loader({"x": table(), "target": torch.arange(27) % classes})


def task(**options) -> HybridTask:
    torch.manual_seed(0)
    on_group_change = options.pop("on_group_change", "error")
    model = classifier(**{"parts": PARTS, "lr": 0.01, **options})
    model.on_group_change = on_group_change
    return model


class Start(pl.Callback):
    """What stands at the first step, before it is made, and the groups at each step."""

    def __init__(self) -> None:
        self.step: int | None = None
        self.rates: dict[int, dict[str, float]] = {}

    def on_train_batch_start(self, run, module, *_):
        if self.step is None:
            self.step, self.epoch = run.global_step, run.current_epoch
            names = {id(p): name for name, p in module.network.named_parameters()}
            [optimizer] = run.optimizers
            self.state = {names[id(p)]: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
            self.weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
            self.groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
            self.best = [c.best_score for c in run.early_stopping_callbacks]

    def on_before_optimizer_step(self, run, module, optimizer):
        self.rates[run.global_step] = {group["name"]: group["lr"] for group in optimizer.param_groups}


def fit(model: HybridTask, path: Path | None = None, loaders=None, callbacks=(), **options) -> Start:
    start = Start()
    run = trainer(callbacks=[start, *callbacks], **{"max_epochs": 4, **options})
    run.fit(model, *(loaders or (data(), data())), ckpt_path=path, weights_only=True)
    start.run = run
    return start


class Save(pl.Callback):
    """Saves once, at the end of an epoch."""

    def __init__(self, path: Path, epochs: int) -> None:
        self.path, self.epochs = path, epochs

    def on_train_epoch_end(self, run, module):
        if run.current_epoch == self.epochs - 1:
            run.save_checkpoint(self.path)


def saved(path: Path, model: HybridTask | None = None, epochs: int = 2, callbacks=()) -> Path:
    fit(model or task(), callbacks=[*callbacks, Save(path, epochs)])
    return path


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    return saved(tmp_path / "x.ckpt")


def state_in(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Parameter name → its optimizer state in a file, looked up by hand."""
    content = torch.load(path, weights_only=True)
    [optimizer], found = content["optimizer_states"], {}
    for group in optimizer["param_groups"]:
        for name, position in zip(content["hybrid_lightning"]["groups"][group["name"]], group["params"], strict=True):
            if position in optimizer["state"]:
                found[name] = optimizer["state"][position]
    return found


def equal(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# Settings of today


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({}, []),
        ({"lr": 0.5}, ["lr 0.01 → 0.5, applied from epoch 2"]),
        ({"weight_decay": 0.0}, ["weight_decay 0.01 → 0.0, applied from epoch 2"]),
        ({"label_smoothing": 0.1}, ["label_smoothing 0.0 → 0.1, applied from epoch 2"]),
        ({"class_weights": [1, 2, 3]}, ["class_weights null → [1.0, 2.0, 3.0], applied from epoch 2"]),
        ({"rates": {"shape": "cosine"}}, ["rates.shape null → cosine, applied from epoch 2"]),
        ({"optimizer": "AdamW"}, []),
        ({"optimizer": {"class_path": "torch.optim.AdamW", "init_args": None}}, []),
        (
            {"parts": {**PARTS, "x": {**PARTS["x"], "lr_scale": 0.25, "unfreeze": "9 steps"}}},
            [
                "parts.x.lr_scale 0.5 → 0.25, applied from epoch 2",
                "parts.x.unfreeze always → 9 steps, applied from epoch 2",
            ],
        ),
    ],
)
def test_what_has_changed_since_the_checkpoint_is_printed(options, lines, checkpoint, capsys):
    capsys.readouterr()
    fit(task(**options), checkpoint)
    assert [line for line in capsys.readouterr().out.splitlines() if "→" in line] == lines


class Fail(pl.Callback):
    def on_fit_start(self, run, module):
        raise RuntimeError("failed")


def test_a_fit_from_scratch_prints_no_changes_after_one_that_failed(checkpoint, capsys):
    model = task(lr=0.5)
    with pytest.raises(RuntimeError, match="failed"):
        fit(model, checkpoint, callbacks=[Fail()])
    capsys.readouterr()
    fit(model)
    assert "→" not in capsys.readouterr().out


def test_many_changes_are_counted():
    old, new = {f"fact{i}": i for i in range(12)}, {f"fact{i}": i + 1 for i in range(12)}
    lines = describe_changes(old, new, epoch=3)
    assert lines[0] == "fact0 0 → 1, applied from epoch 3"
    assert (len(lines), lines[-1]) == (9, "and 4 more")


def test_changes_are_found_at_every_depth():
    old = {"a": 1, "optimizer": {"init_args": {"eps": 1, "betas": (0, 1)}}, "parts": {"x": {"f": {"g": 1}}, "old": {}}}
    new = {"b": 2, "optimizer": {"init_args": {"betas": [0, 1]}}, "parts": {"x": {"f": {"g": 2}}, "new": {"f": 3}}}
    assert sorted(changed_settings(old, new)) == [("a", 1, None), ("b", None, 2), ("parts.x.f.g", 1, 2)]


def test_the_command_line_prints_it_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("fit") == 0
    capsys.readouterr()
    words = ["--ckpt_path", "last", "--trainer.max_epochs", "2", "--model.lr", "0.5", "--model.parts.stem.lr_scale=0.2"]
    assert command("fit", *words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "applied from" in line]
    assert lines == ["lr 0.001 → 0.5, applied from epoch 1", "parts.stem.lr_scale 1.0 → 0.2, applied from epoch 1"]


STEP_LR = {"class_path": "StepLR", "init_args": {"step_size": 1, "gamma": 0.5}}
COURSES = [
    {"rates": {"shape": "cosine"}},
    {"rates": {"shape": "linear", "warm_up": "2 steps"}},
    {"scheduler": STEP_LR},
    {"scheduler": {**STEP_LR, "interval": "step"}},
    {"scheduler": {**STEP_LR, "warm_up": "10%"}},
    {"scheduler": {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.3, "total_steps": 16}}},
    {"scheduler": {"class_path": "OneCycleLR", "init_args": {"max_lr": 0.3, "total_steps": 4}, "interval": "epoch"}},
]


@pytest.mark.parametrize("new", range(len(COURSES)))
@pytest.mark.parametrize("old", range(len(COURSES)))
def test_after_a_restart_the_course_is_that_of_todays_facts_at_the_step_of_the_fit(old, new, saved_course):
    """Rates, decays and the kind of course changed at once: as if today's facts had held from the start."""
    whole = course_of_today(new)
    again = fit(task(**today(new)), saved_course(old))
    assert again.step == 8
    assert again.rates == {step: rates for step, rates in whole.rates.items() if step >= 8}
    assert [g["weight_decay"] for g in again.groups] == [g["weight_decay"] for g in whole.groups]
    assert {g["weight_decay"] for g in again.groups} == {0.0, 0.3}


def today(new: int) -> dict[str, Any]:
    parts = {**PARTS, "x": {**PARTS["x"], "lr_scale": 0.1}}
    return {**COURSES[new], "lr": 0.2, "weight_decay": 0.3, "parts": parts}


@cache
def course_of_today(new: int) -> Start:
    """A run that never stopped, for all that it is compared with."""
    return fit(task(**today(new)))


@pytest.fixture(scope="module")
def saved_course(tmp_path_factory) -> Callable[[int], Path]:
    """Gives a checkpoint of the second epoch of a run with an old course, not to be changed."""
    folder = tmp_path_factory.mktemp("courses")

    @cache
    def path_of(old: int) -> Path:
        return saved(folder / f"{old}.ckpt", task(**COURSES[old]))

    return path_of


class Annealing(pl.Callback):
    """Somebody's own course of an optimizer argument."""

    def on_train_batch_end(self, run, *_):
        for group in run.optimizers[0].param_groups:
            group["eps"] = 1e-3 / (1 + run.global_step)


@pytest.mark.parametrize(
    ("before", "now", "betas", "line"),
    [
        ({}, {"betas": [0.5, 0.9]}, (0.5, 0.9), "optimizer.init_args.betas null → [0.5, 0.9]"),
        ({"betas": [0.7, 0.9]}, {"betas": [0.5, 0.9]}, (0.5, 0.9), "betas [0.7, 0.9] → [0.5, 0.9]"),
        ({"betas": [0.7, 0.9]}, {"betas": [0.7, 0.9]}, (0.7, 0.9), None),
        ({"betas": [0.7, 0.9]}, {}, (0.7, 0.9), None),
    ],
)
def test_an_optimizer_argument_that_was_changed_holds_and_the_others_stay(before, now, betas, line, tmp_path, capsys):
    optimizer = {"class_path": "AdamW", "init_args": before}
    path = saved(tmp_path / "x.ckpt", task(optimizer=optimizer), callbacks=[Annealing()])
    capsys.readouterr()
    start = fit(task(optimizer={"class_path": "AdamW", "init_args": now}), path)
    output = capsys.readouterr().out
    assert all(tuple(group["betas"]) == betas for group in start.groups)
    assert all(group["eps"] == pytest.approx(1e-3 / 9) for group in start.groups), "not a fact: as it was restored"
    assert line in output if line else "→" not in output


def test_a_second_fit_without_a_checkpoint_prints_and_restores_nothing(checkpoint, capsys):
    model = task(lr=0.5)
    fit(model, checkpoint)
    capsys.readouterr()
    assert fit(model).step == 0
    assert "→" not in capsys.readouterr().out


# Groups of today

MORE = {**PARTS, "z": {"module": "MLP", "args": {"hidden": [7]}, "input": "x"}}
RENAMED = {"x": PARTS["x"], "other": PARTS["y"]}
FEWER = {"x": PARTS["x"]}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"parts": MORE}, r"Groups added: 'z', 'z/no_decay', 'fusion', 'fusion/no_decay'\. Use"),
        ({"parts": RENAMED}, r"Groups added: 'other', 'other/no_decay'\. Groups removed: 'y', 'y/no_decay'\."),
        ({"parts": FEWER}, r"Groups removed: 'y', 'y/no_decay'\."),
        (
            {"parts": {**PARTS, "x": {**PARTS["x"], "decay_all": True}}},
            r"Groups removed: 'x/no_decay'\. Groups with other parameters: 'x'\.",
        ),
        ({"num_classes": 4}, r"Of another shape here: 'network\.parts\.head\.linear\.bias \(4,\)|weight \(4, 6\)"),
        ({"optimizer": SGD}, r"Its optimizer is AdamW, not SGD"),
    ],
)
def test_another_model_or_optimizer_is_an_error_that_lists_the_change_and_names_the_option(options, match, checkpoint):
    with pytest.raises(ConfigError, match=match) as caught:
        fit(task(**options), checkpoint)
    for word in ("--on_group_change", "weights_only", "match"):
        assert word in str(caught.value)


def test_an_unknown_choice_is_told(checkpoint):
    with pytest.raises(ConfigError, match=r"on_group_change: unknown value 'mach'. Did you mean 'match'"):
        fit(task(on_group_change="mach"), checkpoint)


CHANGES = {
    "more": {"parts": MORE},
    "renamed": {"parts": RENAMED},
    "fewer": {"parts": FEWER},
    "regrouped": {"parts": {**PARTS, "x": {**PARTS["x"], "decay_all": True}}},
    "classes": {"num_classes": 4},
    "optimizer": {"optimizer": SGD},
    "reordered": {"parts": {"y": PARTS["y"], "x": PARTS["x"]}},
    "same": {},
}


def check_weights(start: Start, fresh: dict[str, torch.Tensor], path: Path) -> int:
    """Compares each tensor with the file's, or with the new model's where the file has none; counts the former."""
    content, taken = torch.load(path, weights_only=True)["state_dict"], 0
    for name, tensor in start.weights.items():
        fits = name in content and content[name].shape == tensor.shape
        assert torch.equal(tensor, content[name] if fits else fresh[name]), name
        taken += fits
    return taken


def new_model(**options) -> tuple[HybridTask, dict[str, torch.Tensor]]:
    model = task(**options).build(next(iter(data())))
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("epochs", [1, 2], ids=["y frozen", "y trains"])
def test_match_keeps_what_has_the_same_name_and_goes_on(change, epochs, tmp_path, capsys):
    options = CHANGES[change]
    path = saved(tmp_path / "x.ckpt", epochs=epochs)
    capsys.readouterr()
    loaders = (data(4), data(4)) if change == "classes" else None
    model, fresh = new_model(**options, on_group_change="match")
    start = fit(model, path, loaders)
    output = capsys.readouterr().out
    assert (start.step, start.epoch) == (epochs * STEPS_PER_EPOCH, epochs)
    assert check_weights(start, fresh, path) >= 3
    content = state_in(path)
    wanted = {
        name: content[name]
        for name in content
        if f"network.{name}" in start.weights
        and content[name]["exp_avg"].shape == start.weights[f"network.{name}"].shape
        and change != "optimizer"
    }
    assert any("parts.y" in name for name in content) == (epochs == 2), "state may be missing for what was frozen"
    assert start.state.keys() == wanted.keys()
    assert all(equal(start.state[name], wanted[name]) for name in wanted)
    assert start.run.global_step == 16
    told = change not in ("reordered", "same")
    assert output.count(f"optimizer state of {len(wanted)} parameters is kept") == told
    assert output.count("kept: ") == told
    assert [g["name"] for g in start.groups] == [g["name"] for g in model.built().param_groups(1.0, 0.0)]


def test_match_says_what_is_fresh_and_what_is_dropped(checkpoint, capsys):
    capsys.readouterr()
    fit(task(parts=RENAMED, on_group_change="match"), checkpoint)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [
        "kept: 4 of 6 tensors",
        "fresh: 'parts.other.layer0.0.weight', 'parts.other.layer0.0.bias'",
        "dropped: 'parts.y.layer0.0.weight', 'parts.y.layer0.0.bias'",
    ]


def test_a_new_part_starts_its_clock_at_the_restart_and_an_old_one_keeps_its_own(checkpoint):
    rates = {"shape": "constant", "warm_up": "4 steps"}
    start = fit(task(parts=MORE, on_group_change="match", rates=rates), checkpoint)
    groups = start.run.optimizers[0].param_groups
    assert {g["part"]: g["unfrozen_at"] for g in groups} == {"x": 0, "y": 6, "z": 8, "fusion": 8, "head": 0}
    assert start.rates[8]["z"] == pytest.approx(0.01 / 5)
    assert start.rates[8]["y"] == pytest.approx(0.01 * 3 / 5)
    assert start.rates[8]["x"] == 0.005


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in ("reordered", "same")])
def test_weights_only_starts_a_new_fit_with_the_weights_that_match(change, tmp_path, capsys):
    options = CHANGES[change]
    stopping = {"monitor": "val/loss", "patience": 99}
    path = saved(tmp_path / "x.ckpt", callbacks=[EarlyStopping(**stopping)])
    capsys.readouterr()
    loaders = (data(4), data(4)) if change == "classes" else None
    model, fresh = new_model(**options, on_group_change="weights_only")
    start = fit(model, path, loaders, callbacks=[EarlyStopping(**stopping)])
    assert (start.step, start.epoch, start.state) == (0, 0, {})
    assert start.best == [torch.inf]
    assert check_weights(start, fresh, path) >= 3
    assert start.run.global_step == 16
    assert capsys.readouterr().out.count("The run starts at step 0 with a new optimizer.") == 1


def test_without_a_change_weights_only_goes_on_as_ever(checkpoint):
    assert fit(task(on_group_change="weights_only"), checkpoint).step == 8


def test_the_best_weights_of_another_model_are_forgotten(tmp_path):
    late = {**PARTS["y"], "unfreeze": {"start": "13 steps", "restore_best": "val/loss"}}
    path = saved(tmp_path / "x.ckpt", task(parts={**PARTS, "y": late}))
    content = torch.load(path, weights_only=True)
    content["callbacks"]["GradualUnfreezing"]["best"]["val/loss"]["value"] = 0.0  # nothing will be better
    torch.save(content, path)
    start = fit(task(parts={**MORE, "y": late}, on_group_change="match"), path)
    assert start.run.global_step == 16


def test_the_command_line_lists_the_groups_and_takes_the_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("fit") == 0
    [last] = Path("runs").rglob("last.ckpt")
    weights = {f"{n}.{k}": torch.full(s, 2.0) for n, k, s in (("1", "weight", (2, 768)), ("1", "bias", (2,)))}
    torch.save(weights, "start.pt")
    wide = {"module": f"{__name__}.Flat", "weights": "start.pt", "input": "image", "unfreeze": "always"}
    config = changed({"init.parts.wide": wide, "trainer.max_epochs": 2})
    words = ["--ckpt_path", str(last)]
    assert command("fit", *words, config=config) == 2
    message = capsys.readouterr().err
    assert "Groups added: 'wide'" in message
    assert "--on_group_change match" in message
    assert command("fit", *words, "--on_group_change", "match", "--model.lr", "1.0e-9", config=config) == 0
    assert "kept: " in capsys.readouterr().out
    newest = max(Path("runs").rglob("last.ckpt"), key=lambda file: file.stat().st_mtime)
    content = torch.load(newest, weights_only=True)
    assert content["global_step"] == 6
    assert content["state_dict"]["network.parts.wide.1.weight"] == pytest.approx(2.0), "a new part reads its weights"


class Flat(torch.nn.Sequential):
    def __init__(self) -> None:
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(768, 2))


# The end


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_epochs": 2}, "finished: 2 of 2 epochs are done; raise --trainer.max_epochs to train on"),
        ({"max_epochs": 9, "max_steps": 8}, "finished: 8 of 8 steps are done; raise --trainer.max_steps to train on"),
        ({"max_epochs": -1, "max_steps": 5}, "finished: 8 of 5 steps are done; raise --trainer.max_steps to train on"),
    ],
)
def test_a_finished_fit_says_so(options, line, checkpoint, capsys):
    capsys.readouterr()
    start = fit(task(), checkpoint, **options)
    assert start.step is None
    assert line in capsys.readouterr().out.splitlines()


def test_a_fit_past_its_end_says_so(tmp_path, capsys):
    fit(task(), max_epochs=3).run.save_checkpoint(tmp_path / "x.ckpt")
    capsys.readouterr()
    assert fit(task(), tmp_path / "x.ckpt", max_epochs=2).step is None
    assert "finished: 3 of 2 epochs are done; raise --trainer.max_epochs to train on" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("loops", "path"),
    [
        (None, "loops"),
        ({"fit_loop": 3}, "loops.fit_loop"),
        ({"fit_loop": {"epoch_progress": None}}, r"loops.fit_loop\S*"),
    ],
)
def test_damaged_loop_counters_are_refused(loops, path, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "loops": loops}, tmp_path / "damaged.ckpt")
    with pytest.raises(ConfigError, match=f"^--ckpt_path: the checkpoint is damaged: '{path}' is missing"):
        fit(task(), tmp_path / "damaged.ckpt")


def test_a_fit_that_trained_says_nothing_of_the_kind(checkpoint, capsys):
    start = fit(task(), checkpoint)
    assert "finished" not in capsys.readouterr().out
    start.run.fit(task(), data(), data())
    assert capsys.readouterr().out.count("finished: 4 of 4 epochs") == 1


def test_the_command_line_says_so_and_ends_well(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command("fit") == 0
    assert "finished" not in capsys.readouterr().out
    assert command("fit", "--ckpt_path", "last") == 0
    assert "finished: 1 of 1 epochs are done" in capsys.readouterr().out
    assert CONFIG["trainer"]["max_epochs"] == 1


def averaged_fit(classes, folder, path=None, average=True, on_group_change="error", **options):
    """A run with averaged weights that saves ``x.ckpt`` after 3 steps."""
    model = classifier(num_classes=classes)
    model.on_group_change = on_group_change
    callbacks = [ModelCheckpoint(folder, filename="x", every_n_train_steps=3, enable_version_counter=False)]
    if average:
        callbacks.append(EMAWeightAveraging(decay=0.9))
    runner = trainer(callbacks=callbacks, enable_checkpointing=True, **options)
    runner.fit(
        model,
        loader({"x": table(24), "target": torch.arange(24) % 2}),
        ckpt_path=path,
        weights_only=True if path else None,
    )
    return runner, model


AVERAGING = pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")


@AVERAGING
@pytest.mark.parametrize("on_group_change", ["match", "weights_only"])
def test_both_copies_of_the_weights_of_an_averaged_fit_are_adapted(tmp_path, on_group_change, capsys):
    averaged_fit(2, tmp_path)
    path = tmp_path / "x.ckpt"
    options = {"max_epochs": 2, "on_group_change": on_group_change}
    _, model = averaged_fit(3, tmp_path / "again", path, **options)
    assert model.built().parts["head"].linear.weight.shape[0] == 3
    assert "kept: 2 of 4 tensors" in capsys.readouterr().out


@AVERAGING
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # Lightning's words for the same
def test_a_fit_without_averaging_goes_on_from_the_weights_in_training(tmp_path, capsys):
    averaged_fit(2, tmp_path)
    path = tmp_path / "x.ckpt"
    saved = torch.load(path, weights_only=True)
    _, model = averaged_fit(2, tmp_path / "again", path, average=False, max_epochs=1)
    assert "goes on from those in training" in capsys.readouterr().out
    own = model.state_dict()
    assert all(torch.equal(own[name], saved["current_model_state"][name]) for name in own)
    assert not all(torch.equal(own[name], saved["state_dict"][name]) for name in own)


@AVERAGING
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("current_model_state", {"network.parts.head.linear.weight": torch.zeros(2, 7)}),
        ("current_model_state", None),
        ("averaging_state", {"n_averaged": torch.zeros(3)}),
        ("averaging_state", 5),
    ],
)
def test_a_damaged_second_copy_is_refused(tmp_path, key, value):
    averaged_fit(2, tmp_path)
    path = tmp_path / "x.ckpt"
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, key: value}, path)
    with pytest.raises(ConfigError, match=f"the checkpoint is damaged: .*{key}"):
        averaged_fit(2, tmp_path / "again", path, max_epochs=2)
