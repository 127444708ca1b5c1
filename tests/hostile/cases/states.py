"""Kinds 1, 2 and 10: further places of a checkpoint and of a model's weights, and what refers to itself."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.hostile.cases.checkpoints import (
    CONTINUE,
    RUN,
    Content,
    continued,
    fit_loop,
    groups,
    of_callback,
    opened,
    ours,
    rebuilt,
    states,
)
from tests.hostile.harness import Box, case
from tests.small import changed

BIG = 10**400  # more than a float can hold


def laughs(times: int = 60) -> Any:
    """A list that is small in a file, and endless for whoever walks through it."""
    value: Any = ["ha"]
    for _ in range(times):
        value = [value, value]
    return value


def named_laughs(times: int = 60) -> Any:
    value: Any = {"ha": 1}
    for _ in range(times):
        value = {"a": value, "b": value}
    return value


# Structures that are larger than they look


def endless(place: str, says: str = "values|itself|damaged") -> Callable[[Callable[[Content], None]], None]:
    """Registers a place of a checkpoint that is given lists within lists, each twice the same."""

    def register(edit: Callable[[Content], None]) -> None:
        def run(box: Box) -> None:
            content = opened(box)
            edit(content)
            torch.save(content, "e.ckpt")
            for words in (CONTINUE, ("predict", "--config", "small.yaml", "--ckpt_path", "e.ckpt")):
                box.refused(*words, says=says)

        run.__name__ = edit.__name__
        case(10, place, "lists within lists, each twice", seconds=30)(run)

    return register


@endless("state of a callback")
def callback_of_laughs(content: Content) -> None:
    of_callback(content, "GradualUnfreezing")["x"] = laughs()


@endless("options of a part")
def options_of_laughs(content: Content) -> None:
    ours(content)["parts"]["stem"]["args"] = {"channels": laughs()}


@endless("settings of the task")
def settings_of_laughs(content: Content) -> None:
    ours(content)["settings"]["loss_function"] = named_laughs()


@endless("hyper_parameters")
def parameters_of_laughs(content: Content) -> None:
    content["hyper_parameters"] = named_laughs()


@endless("datamodule_hyper_parameters")
def data_of_laughs(content: Content) -> None:
    content["datamodule_hyper_parameters"] = laughs()


@endless("window of exact_resume")
def window_of_laughs(content: Content) -> None:
    content["exact_resume"]["window"] = named_laughs()


@endless("loops")
def loops_of_laughs(content: Content) -> None:
    fit_loop(content)["state_dict"] = named_laughs()


@endless("optimizer_states")
def optimizer_of_laughs(content: Content) -> None:
    groups(content)[0]["x"] = laughs()


@endless("state_dict")
def weights_of_laughs(content: Content) -> None:
    content["state_dict"]["network.x"] = named_laughs()


@endless("key of somebody else")
def key_of_laughs(content: Content) -> None:
    content["somebody"] = laughs()


@endless("a list within itself")
def list_within_itself(content: Content) -> None:
    own: list[Any] = []
    own.append(own)
    content["hyper_parameters"] = {"x": own}


@case(10, "weights of a part", "lists within lists, each twice", seconds=30)
def part_weights_of_laughs(box: Box) -> None:
    box.start_from("fitted")
    torch.save({"model": named_laughs()}, "w.pt")
    for key in ("init.parts.stem.weights", "init.init_from"):
        Path("w.yaml").write_text(yaml.safe_dump(changed({key: "w.pt"})))
        box.refused("fit", "--config", "w.yaml", says="values|nested|damaged")
    box.refused("export_part", "--ckpt_path", "w.pt", "--part", "a", "--output", "a.safetensors")


# Numbers that no float can hold


@continued("global_step", "a number of 400 digits", "bits", kind=10)
def step_of_many_digits(content: Content) -> None:
    content["global_step"] = BIG


@continued("epoch", "a number of 400 digits", "bits", kind=10)
def epoch_of_many_digits(content: Content) -> None:
    content["epoch"] = BIG


@continued("loops", "counters of 400 digits", "bits", kind=10)
def counters_of_many_digits(content: Content) -> None:
    for counter in fit_loop(content)["epoch_progress"].values():
        counter.update(dict.fromkeys(counter, BIG))


@continued("lr_schedulers", "a number of 400 digits", "bits", kind=10)
def schedule_of_many_digits(content: Content) -> None:
    content["lr_schedulers"][0]["last_epoch"] = BIG


@continued("version of the task", "a number of 400 digits", "bits", kind=10)
def version_of_many_digits(content: Content) -> None:
    ours(content)["version"] = BIG


@continued("options of a group", "a number of 400 digits", "bits", kind=10)
def rate_of_many_digits(content: Content) -> None:
    for group in groups(content):
        group["lr"] = BIG


@continued("optimizer_states", "a number of 400 digits", "bits", kind=10)
def moments_of_many_digits(content: Content) -> None:
    for state in states(content):
        state["step"] = BIG


@rebuilt("record of the network", "a number of 400 digits", "bits", kind=10)
def scale_of_many_digits(content: Content) -> None:
    ours(content)["network"]["scales"] = {"stem": {"mean": [10**400] * 3, "std": [1.0] * 3}}


@rebuilt("settings of the task", "a number of 400 digits", "bits", kind=10)
def classes_of_many_digits(content: Content) -> None:
    ours(content)["settings"]["num_classes"] = BIG


def put_back(content: dict[str, Any]) -> None:
    """Writes what both checkpoints of the run are to hold."""
    for name in ("last.ckpt", "best.ckpt"):
        torch.save(content, RUN / name)


@case(10, "global_step", "a number of 400 digits, at a resume")
def resume_of_many_digits(box: Box) -> None:
    content = opened(box)
    content["global_step"] = BIG
    put_back(content)
    box.refused("fit", "--config", "small.yaml", "--resume", "auto", "--trainer.max_epochs", "3")


@case(10, "metrics_rows", "a number of 400 digits")
def rows_of_many_digits(box: Box) -> None:
    content = opened(box)
    content["metrics_rows"] = BIG
    put_back(content)
    box.command("fit", "--config", "small.yaml", "--resume", "auto", "--trainer.max_epochs", "3")


# Other states


def with_callbacks(
    place: str, mechanism: str, callbacks: list[Any], says: str, kind: int = 1, **settings: Any
) -> Callable[[Callable[[Content], None]], None]:
    """Registers an edit of the checkpoint of a run with these callbacks or settings, to be refused at a resume."""

    def register(edit: Callable[[Content], None]) -> None:
        def run(box: Box) -> None:
            changes = {name.replace("__", "."): value for name, value in settings.items()}
            config = changed({"trainer.enable_progress_bar": False, "trainer.callbacks": callbacks, **changes})
            Path("small.yaml").write_text(yaml.safe_dump(config))
            box.accepted("fit", "--config", "small.yaml", "--trainer.max_epochs", "2")
            content = torch.load(RUN / "last.ckpt", weights_only=True)
            edit(content)
            torch.save(content, "e.ckpt")
            box.refused(*CONTINUE, says=says)

        run.__name__ = edit.__name__
        case(kind, place, mechanism, runs_programs=bool(callbacks))(run)  # torch looks for a compiler

    return register


STOPPING = [{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 9}}]
EMA = [{"class_path": "EMAWeightAveraging"}]
SWA = [{"class_path": "StochasticWeightAveraging", "init_args": {"swa_lrs": 0.001, "swa_epoch_start": 1}}]


@with_callbacks("state of EarlyStopping", "a best score that nothing beats", STOPPING, "EarlyStopping|best_score")
def stopping_score_is_nan(content: Content) -> None:
    of_callback(content, "EarlyStopping")["best_score"] = torch.tensor(math.nan)


@with_callbacks("state of EarlyStopping", "a best score of the other direction", STOPPING, "EarlyStopping|best_score")
def stopping_score_is_the_best_of_all(content: Content) -> None:
    of_callback(content, "EarlyStopping")["best_score"] = torch.tensor(-math.inf)


@with_callbacks("state of EarlyStopping", "a count of 400 digits", STOPPING, "bits")
def stopping_count_of_many_digits(content: Content) -> None:
    of_callback(content, "EarlyStopping")["wait_count"] = BIG


@with_callbacks("weights of EMAWeightAveraging", "nan", EMA, "finite", kind=2)
def averaged_weights_are_nan(content: Content) -> None:
    next(iter(content["current_model_state"].values())).fill_(math.nan)


@with_callbacks("weights of EMAWeightAveraging", "another shape", EMA, "shape|current_model_state")
def averaged_weights_of_another_shape(content: Content) -> None:
    name = next(iter(content["current_model_state"]))
    content["current_model_state"][name] = torch.zeros(3)


@with_callbacks("weights of EMAWeightAveraging", "whole numbers", EMA, "int64", kind=2)
def averaged_weights_are_whole(content: Content) -> None:
    name, tensor = next(iter(content["current_model_state"].items()))
    content["current_model_state"][name] = tensor.long()


@with_callbacks("weights of EMAWeightAveraging", "what is no mapping", EMA, "current_model_state")
def averaged_weights_are_a_list(content: Content) -> None:
    content["current_model_state"] = [1, 2]


@with_callbacks("state of EMAWeightAveraging", "another type", EMA, "averaging_state|EMAWeightAveraging")
def averaging_state_is_text(content: Content) -> None:
    content["averaging_state"] = {"n_averaged": "many"}


def ingredient(content: Content) -> Content:
    """The best weights that a `GreedySoup` keeps."""
    found: Content = of_callback(content, "GreedySoup")["ingredients"]["0"]
    return found


@with_callbacks("weights of AverageWeights", "nan", [], "finite", kind=2, init__average="ema")
def served_average_is_nan(content: Content) -> None:
    content["state_dict"]["network.parts.head.linear.weight"].fill_(math.nan)


@with_callbacks("weights beside an average", "nan", [], "finite", kind=2, init__average="ema")
def weights_beside_an_average_are_nan(content: Content) -> None:
    content["current_model_state"]["network.parts.head.linear.weight"].fill_(math.nan)


@with_callbacks("weights beside an average", "other names", [], "current_model_state", init__average="ema")
def weights_beside_an_average_have_other_names(content: Content) -> None:
    content["current_model_state"] = {"x": torch.zeros(1)}


@with_callbacks("state of AverageWeights", "a number of updates below 1", [], "AverageWeights", init__average="ema")
def updates_below_one(content: Content) -> None:
    of_callback(content, "AverageWeights")["updates"]["network.parts.head.linear.weight"] = 0


@with_callbacks("state of AverageWeights", "more updates than steps", [], "more updates", init__average="ema")
def more_updates_than_steps(content: Content) -> None:
    of_callback(content, "AverageWeights")["updates"]["network.parts.head.linear.weight"] = 10**9


@with_callbacks("state of AverageWeights", "what is no mapping", [], "AverageWeights", init__average="ema")
def updates_are_a_list(content: Content) -> None:
    of_callback(content, "AverageWeights")["updates"] = [1]


@with_callbacks("weights of GreedySoup", "nan", [], "finite", kind=2, init__average="soup")
def ingredient_is_nan(content: Content) -> None:
    next(iter(ingredient(content)["weights"].values())).fill_(math.nan)


@with_callbacks("weights of GreedySoup", "another shape", [], "shape", init__average="soup")
def ingredient_of_another_shape(content: Content) -> None:
    weights = ingredient(content)["weights"]
    weights[next(iter(weights))] = torch.zeros(3)


@with_callbacks("weights of GreedySoup", "names that the others do not have", [], "GreedySoup", init__average="soup")
def ingredients_of_other_names(content: Content) -> None:
    ingredient(content)["weights"].popitem()


@with_callbacks("state of GreedySoup", "a value that is nan", [], "GreedySoup", kind=2, init__average="soup")
def ingredient_of_no_value(content: Content) -> None:
    ingredient(content)["value"] = math.nan


STEP = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}}
COSINE = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 9}}
PLATEAU = {"class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau"}


@with_callbacks("state of a scheduler of torch", "a factor that is nan", [], "gamma", init__scheduler=STEP)
def factor_that_is_nan(content: Content) -> None:
    content["lr_schedulers"][0]["gamma"] = math.nan


@with_callbacks("state of a scheduler of torch", "a factor that is a text", [], "gamma", init__scheduler=STEP)
def factor_that_is_a_text(content: Content) -> None:
    content["lr_schedulers"][0]["gamma"] = "x"


@with_callbacks("state of a scheduler of torch", "another factor than the config's", [], "gamma", init__scheduler=STEP)
def factor_of_another_config(content: Content) -> None:
    content["lr_schedulers"][0]["gamma"] = 100.0


@with_callbacks("state of a scheduler of torch", "a length of zero", [], "T_max", init__scheduler=COSINE)
def length_of_zero(content: Content) -> None:
    content["lr_schedulers"][0]["T_max"] = 0


@with_callbacks("state of a scheduler of torch", "a best value that is nan", [], "best", init__scheduler=PLATEAU)
def plateau_that_is_nan(content: Content) -> None:
    content["lr_schedulers"][0]["best"] = math.nan


@continued("version of Lightning", "one of long ago, whose files are migrated", "")
def version_of_long_ago(content: Content) -> None:
    content["pytorch-lightning_version"] = "0.8.1"
    content["checkpoint_callback_best_model_path"] = "../outside/victim"
    content["early_stop_callback_wait"] = laughs(3)


@case(1, "version of Lightning", "of a later one")
def version_of_later(box: Box) -> None:
    content = opened(box)
    content["pytorch-lightning_version"] = "99.0.0"
    torch.save(content, "e.ckpt")
    box.command(*CONTINUE)


@case(1, "hyper_parameters", "a class to run")
def parameters_that_name_a_program(box: Box) -> None:
    content = opened(box)
    content["hyper_parameters"] = {"_instantiator": "os.system", "_class_path": "os.system"}
    content["datamodule_hyper_parameters"] = dict(content["hyper_parameters"])
    content["hparams_name"] = "kwargs"
    content["hparams_type"] = "os.system"
    torch.save(content, "e.ckpt")
    box.accepted(*CONTINUE)
    box.accepted("predict", "--config", "small.yaml", "--ckpt_path", "e.ckpt")
    told = box.command("load_from_checkpoint", "e.ckpt")
    assert told.code == 0, told
