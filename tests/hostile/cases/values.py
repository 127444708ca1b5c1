"""Kind 2: scales, statistics and names of a checkpoint that parse and are wrong."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from tests.hostile.cases.checkpoints import (
    Content,
    ours,
    rebuilt,
)
from tests.hostile.harness import Box, case


def edited(
    train: Callable[[Box], None], place: str, mechanism: str, says: str
) -> Callable[[Callable[[Content], None]], None]:
    """Registers an edit of the checkpoint of what `train` has trained."""

    def register(edit: Callable[[Content], None]) -> None:
        def run(box: Box) -> None:
            train(box)
            content = torch.load("runs/x/version_0/checkpoints/last.ckpt", weights_only=True)
            edit(content)
            torch.save(content, "e.ckpt")
            box.refused("predict", "--config", "x.yaml", "--ckpt_path", "e.ckpt", says=says)

        run.__name__ = edit.__name__
        case(2, place, mechanism)(run)

    return register


def train_numbers(box: Box) -> None:
    from tests.hostile.cases.data import config, table

    table(label=lambda row: row % 7 + row / 9)
    config(model="HybridRegressor")
    box.accepted("fit", "--config", "x.yaml")


def train_classes(box: Box) -> None:
    from tests.hostile.cases.data import config, table

    table(site=lambda row: f"s{row % 3}")
    config({"x": {"numeric": ["size"]}, "c": {"categorical": ["site"], "one_hot": True}})
    box.accepted("fit", "--config", "x.yaml", "--model.class_weights", "balanced")


regression = partial(edited, train_numbers)
classified = partial(edited, train_classes)


def scales(content: Content) -> dict[str, Any]:
    return {name: tensor for name, tensor in content["state_dict"].items() if "scale.std" in name}


@regression("scale of a regression", "a deviation below zero", "std")
def scale_below_zero(content: Content) -> None:
    assert scales(content), sorted(content["state_dict"])
    for tensor in scales(content).values():
        tensor.neg_()


@regression("scale of a regression", "a deviation of zero", "std")
def scale_of_nothing(content: Content) -> None:
    for tensor in scales(content).values():
        tensor.zero_()


@regression("statistics of columns", "a deviation so small that numbers become infinite", "std|finite")
def denormal_deviation(content: Content) -> None:
    content["ManifestDataModule"]["inputs"]["x"]["statistics"]["std"] = {"size": 5e-324}


@regression("statistics of columns", "a mean of 400 digits", "bits")
def mean_of_many_digits(content: Content) -> None:
    content["ManifestDataModule"]["inputs"]["x"]["statistics"]["mean"] = {"size": 10**400}


@regression("statistics of columns", "of columns that are others", "size|columns|mean")
def statistics_of_others(content: Content) -> None:
    statistics = content["ManifestDataModule"]["inputs"]["x"]["statistics"]
    for name in statistics:
        statistics[name] = {"other": 1.0}


@regression("statistics of columns", "none", "statistics|mean|size")
def no_statistics(content: Content) -> None:
    content["ManifestDataModule"]["inputs"]["x"]["statistics"] = {}


def target(content: Content) -> Content:
    found: Content = content["ManifestDataModule"]["target"]
    return found


@classified("names of classes", "one name twice", "target|names")
def class_names_twice(content: Content) -> None:
    target(content)["names"] = ["a", "a"]


@classified("names of classes", "fewer than the model has", "target|names|classes")
def class_names_too_few(content: Content) -> None:
    target(content)["names"] = ["a"]


@classified("names of classes", "none", "target|names|classes")
def class_names_none(content: Content) -> None:
    target(content)["names"] = []


@rebuilt("settings of the task", "weights of classes below zero", "class_weights", kind=2)
def class_weights_below_zero(content: Content) -> None:
    ours(content)["settings"]["class_weights"] = [-1.0, 1.0, 1.0]


@classified("record of the network", "features shrunk by a number below zero", "shrink_above")
def shrunk_below_zero(content: Content) -> None:
    ours(content)["network"]["sizes"]["fusion"]["shrink_above"] = -64


def evaluated(mechanism: str, says: str) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    """Registers an edit of the options of an input with which ``evaluate`` has to be refused."""

    def register(edit: Callable[[dict[str, Any]], None]) -> None:
        def run(box: Box) -> None:
            train_classes(box)
            content = torch.load("runs/x/version_0/checkpoints/last.ckpt", weights_only=True)
            edit(content["ManifestDataModule"]["inputs"]["x"])
            torch.save(content, "e.ckpt")
            box.refused("evaluate", "m.csv", "--ckpt_path", "e.ckpt", says=says)

        run.__name__ = edit.__name__
        case(1, "options of an input", mechanism)(run)

    return register


COMMAND = {"class_path": "os.system", "init_args": {"command": "touch ../outside/pwned"}}


@evaluated("a transform that is a program", "a file may not name")
def option_that_runs(known: dict[str, Any]) -> None:
    known["options"] = {"image": "size", "eval": [COMMAND]}


@evaluated("a program within the arguments of a transform", "a file may not name")
def option_that_runs_within(known: dict[str, Any]) -> None:
    known["options"] = {"image": "size", "eval": [{"class_path": "Normalize", "init_args": {"mean": [COMMAND]}}]}


@evaluated("transforms of training", "damaged: not plain data")
def option_of_training(known: dict[str, Any]) -> None:
    known["options"] = {"image": "size", "train": [COMMAND]}


@evaluated("images of a billion pixels a side", "damaged: it holds .* GiB")
def option_of_a_huge_size(known: dict[str, Any]) -> None:
    known["options"] = {"image": "size", "size": 10**9}


@evaluated("the answer as an input", "the model would be given the answer")
def option_that_reads_the_answer(known: dict[str, Any]) -> None:
    known["options"] = {"numeric": ["label"]}
