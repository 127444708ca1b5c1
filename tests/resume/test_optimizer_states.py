import re
from pathlib import Path

import pytest
import torch

from tests.small import changed, command
from tests.tasks.test_changed_config import fit, saved, task

NAN = float("nan")


def of_first(key: str, value) -> "callable":
    """Changes an entry of the state of the first parameter that has one."""

    def change(optimizer: dict) -> None:
        state = optimizer["state"][min(optimizer["state"])]
        state[key] = value(state[key]) if callable(value) else value

    return change


def resume(fitted: Path, states) -> int:
    content = torch.load(fitted / "runs/small/version_0/checkpoints/last.ckpt", weights_only=True)
    if callable(states):
        states(content["optimizer_states"][0])
    else:
        content["optimizer_states"] = states
    torch.save(content, "e.ckpt")
    return command("fit", "--ckpt_path", "e.ckpt", "--trainer.max_epochs", "3")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("exp_avg", torch.zeros(7), "has shape (7,), not (4, 3, 3, 3)"),
        ("exp_avg", torch.zeros(100_000), "has shape"),
        ("exp_avg", torch.tensor(0.0), "has shape ()"),
        ("exp_avg_sq", torch.zeros(3), "has shape"),
        ("step", torch.ones(3), "has shape (3,), not ()"),
        ("step", torch.tensor(-1.0), "holds negative values"),
        ("step", torch.tensor(NAN), "not finite"),
        ("step", -1, "is -1"),
        ("step", "6", "is a str, not a tensor"),
        ("exp_avg", None, "is a NoneType, not a tensor"),
        ("exp_avg", lambda t: t.fill_(NAN), "not finite"),
        ("exp_avg_sq", lambda t: -t - 1, "holds negative values"),
        ("exp_avg", lambda t: t.long(), "holds torch.int64"),
        ("exp_avg", lambda t: t.to(torch.complex64), "holds torch.complex64"),
        ("exp_avg", lambda t: t.to(torch.float8_e4m3fn), "holds torch.float8_e4m3fn, not torch.float32"),
        ("exp_avg", lambda t: t.to_sparse(), "is not a plain tensor"),
        ("exp_avg", lambda t: t.to("meta"), "is not a plain tensor"),
        ("exp_avg", lambda t: torch.zeros(1).expand(t.shape), "is not a plain tensor"),
    ],
)
def test_a_state_that_does_not_fit_its_parameter_is_refused_by_name(key, value, words, fitted, folder, capsys):
    assert resume(fitted, of_first(key, value)) == 2
    error = capsys.readouterr().err
    assert "--ckpt_path: the optimizer state of the checkpoint is damaged: " in error
    assert "of the parameter 'parts.stem" in error
    assert words in error


@pytest.mark.parametrize(
    ("name", "option", "key"),
    [("SGD", {"momentum": 0.9}, "momentum_buffer"), ("AdamW", {"capturable": True}, "max_exp_avg_sq")],
)
def test_an_option_in_a_file_brings_no_entry_of_another_shape(name, option, key, folder, capsys):
    """Compiled steps write such an entry as if it were as large as the parameter."""
    config = changed({"init.optimizer": name})
    assert command("fit", config=config) == 0
    [path] = Path("runs").rglob("last.ckpt")
    content = torch.load(path, weights_only=True)
    [optimizer] = content["optimizer_states"]
    for group in optimizer["param_groups"]:
        group.update(option, fused=True)
        for index in group["params"]:
            optimizer["state"].setdefault(index, {})[key] = torch.tensor(0.0)
    torch.save(content, "e.ckpt")
    assert command("fit", "--ckpt_path", "e.ckpt", "--trainer.max_epochs", "2", config=config) == 2
    assert f"{key!r} has shape (), not (4, 3, 3, 3)" in capsys.readouterr().err


def without_a_moment(optimizer: dict) -> None:
    del optimizer["state"][min(optimizer["state"])]["exp_avg"]


def without_a_group(optimizer: dict) -> None:
    del optimizer["param_groups"][0]


def without_a_parameter(optimizer: dict) -> None:
    optimizer["param_groups"][0]["params"].pop()


def with_a_parameter_twice(optimizer: dict) -> None:
    for group in optimizer["param_groups"]:
        group["params"] = [0 for _ in group["params"]]


def with_groups_in_another_order(optimizer: dict) -> None:
    optimizer["param_groups"].reverse()


def with_a_state_of_nobody(optimizer: dict) -> None:
    optimizer["state"][999] = {}


def with_a_rate_of_many_values(optimizer: dict) -> None:
    optimizer["param_groups"][0]["lr"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("lr", "0.1", "'lr' of the group 'stem.*' is a str, not a float"),
        ("lr", None, "is a NoneType, not a float"),
        ("lr", True, "is a bool, not a float"),
        ("betas", (0.9, "x"), "'betas' of the group 'stem.*' is a str, not a float"),
        ("betas", 0.9, "is a float, not a tuple"),
        ("amsgrad", {}, "is a dict, not a bool"),
        ("unfrozen_at", -3, "'unfrozen_at' of the group 'stem.*' is -3, not a step"),
        ("betas", (0.9, NAN), "'betas' of the group 'stem.*' is nan"),
        ("maximize", True, "'maximize' of the group 'stem.*' is True, which neither the config"),
        ("betas", (1.5, 0.9), "torch refuses the options of the group 'stem.*': Invalid beta parameter"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(option, value, words, fitted, folder, capsys):
    assert resume(fitted, lambda optimizer: optimizer["param_groups"][0].update({option: value})) == 2
    assert re.search(f"state of the checkpoint is damaged: .*{words}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ([], "holds no optimizer state"),
        (None, "holds no optimizer state"),
        ([{}, {}], "not that of one optimizer"),
        ([3], "not that of one optimizer"),
        ([{"state": [], "param_groups": 5}], "not that of one optimizer"),
        (without_a_moment, "lacks 'exp_avg'"),
        (without_a_group, "its groups are not those"),
        (without_a_parameter, "its groups are not those"),
        (with_a_parameter_twice, "its groups are not those"),
        (with_groups_in_another_order, "its groups are not those"),
        (with_a_state_of_nobody, "its groups are not those"),
        (with_a_rate_of_many_values, "'lr' of the group"),
    ],
)
def test_a_fit_goes_on_only_from_the_state_of_its_optimizer(states, words, fitted, folder, capsys):
    assert resume(fitted, states) == 2
    assert words in capsys.readouterr().err


class Coded(torch.optim.SGD):
    """An optimizer of somebody else, whose state has shapes and types of its own."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    codes = torch.zeros(2 * parameter.numel(), dtype=torch.uint8)
                    self.state[parameter] = {"codes": codes, "scale": torch.ones(4)}
        return super().step(closure)


@pytest.mark.parametrize(
    "optimizer",
    [
        *("Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
        {"class_path": "AdamW", "init_args": {"amsgrad": True, "foreach": True}},
        {"class_path": "RMSprop", "init_args": {"momentum": 0.9, "centered": True}},
        {"class_path": "SGD", "init_args": {"momentum": 0.9}},
        {"class_path": f"{__name__}.Coded", "init_args": {"momentum": 0.9}},
    ],
    ids=str,
)
def test_a_state_that_an_optimizer_made_is_taken(optimizer, tmp_path):
    path = saved(tmp_path / "x.ckpt", task(optimizer=optimizer))
    assert fit(task(optimizer=optimizer), path, max_epochs=3).step == 8


def test_the_state_of_somebody_elses_optimizer_keeps_its_shapes(tmp_path):
    options = {"optimizer": f"{__name__}.Coded"}
    path = saved(tmp_path / "x.ckpt", task(**options))
    content = torch.load(path, weights_only=True)
    content["optimizer_states"][0]["state"][0]["codes"] = torch.zeros(3, dtype=torch.uint8)
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"'codes' has shape \(3,\)"):
        fit(task(**options), path, max_epochs=3)


def test_an_optimizer_that_forgets_its_averages_goes_on_without_them(tmp_path):
    """Its momentum was asked for in the first part only, or only now."""
    for before, after in ((0.9, 0.0), (0.0, 0.9)):
        specs = [{"class_path": "SGD", "init_args": {"momentum": momentum}} for momentum in (before, after)]
        path = saved(tmp_path / "x.ckpt", task(optimizer=specs[0]))
        assert fit(task(optimizer=specs[1]), path, max_epochs=3).step == 8


def test_the_part_of_a_group_is_that_of_today(fitted, folder):
    def change(optimizer: dict) -> None:
        for group in optimizer["param_groups"]:
            group.update(part="zzz", stage=9, fixed=True)

    assert resume(fitted, change) == 0
    [path] = Path("runs").rglob("last.ckpt")
    [optimizer] = torch.load(path, weights_only=True)["optimizer_states"]
    assert {group["part"] for group in optimizer["param_groups"]} == {"stem", "body", "head"}
    assert not any(group["fixed"] for group in optimizer["param_groups"])
