"""Kinds 3 and 13: settings that would mean the opposite of what they say, and messages at the wrong place."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.hostile.cases.data import config, table
from tests.hostile.harness import Box, case
from tests.small import DELETE

FIT = ("fit", "--config", "x.yaml")
CHECK = ("check", "--config", "x.yaml")
TWO = {"x": {"numeric": ["size"]}, "y": {"numeric": ["age"]}}


def write(changes: Mapping[str, Any]) -> None:
    """Writes a small table and ``x.yaml`` with two parts, changed at dotted paths; ``init.`` is that of the model."""
    table(age=lambda row: row % 7)
    config(TWO)
    content = yaml.safe_load(Path("x.yaml").read_text())
    for path, value in changes.items():
        *sections, last = path.replace("init.", "model.init_args.").replace("data.", "data.init_args.").split(".")
        place = content
        for section in sections:
            place = place.setdefault(section, {})
        if value is DELETE:
            del place[last]
        elif value == RENAMED.get(last):
            place[value] = place.pop(last)
        else:
            place[last] = value
    Path("x.yaml").write_text(yaml.safe_dump(content))


RENAMED = {"model": "modle", "inputs": "inptus", "parts": "prats"}
"""Key → how it is misspelt."""


def refused(
    kind: int, place: str, mechanism: str, changes: Mapping[str, Any], says: str, words: tuple[str, ...] = FIT
) -> None:
    """Registers a case: a config with these changes that a command has to refuse."""

    def run(box: Box) -> None:
        write(changes)
        box.refused(*words, says=says)

    run.__name__ = f"{place}_{mechanism}".replace(" ", "_")
    case(kind, place, mechanism)(run)


def accepted(place: str, mechanism: str, words: tuple[str, ...]) -> Callable[..., None]:
    """Registers a check of the folder of a run with further words on the command line."""

    def register(check: Callable[[Path], None]) -> None:
        def run(box: Box) -> None:
            write({})
            box.accepted(*FIT, *words)
            check(Path("runs/x/version_0"))

        run.__name__ = check.__name__
        case(3, place, mechanism)(run)

    return register


# 3: the direction of a metric


@accepted("checkpoint", "a metric that is better when high", ("--checkpoint.monitor", "val/accuracy"))
def best_by_accuracy(run: Path) -> None:
    assert yaml.safe_load((run / "config.yaml").read_text())["checkpoint"]["mode"] == "max"


@accepted("checkpoint", "another metric than the main one", ("--checkpoint.monitor", "val/macro_f1"))
def best_by_another_metric(run: Path) -> None:
    assert yaml.safe_load((run / "config.yaml").read_text())["checkpoint"]["mode"] == "max"


def callback(name: str, **arguments: Any) -> list[dict[str, Any]]:
    return [{"class_path": name, "init_args": arguments}]


PLATEAU = {"plateau": "val/accuracy", "patience": "1 validations", "mode": "min"}
WRONG_WAY = "'val/accuracy' is better when high.*'mode: max'"
refused(
    3,
    "checkpoint",
    "the opposite is stated",
    {"checkpoint": {"monitor": "val/loss", "mode": "max"}},
    "'val/loss' is better when low",
)
refused(
    3, "checkpoint", "nobody knows the direction", {"checkpoint.monitor": "trainable/x"}, r"checkpoint\.mode: whether"
)
refused(
    3,
    "early stopping",
    "its own default",
    {"trainer.callbacks": callback("EarlyStopping", monitor="val/accuracy")},
    f"EarlyStopping.mode: {WRONG_WAY}",
)
refused(
    3,
    "ModelCheckpoint in callbacks",
    "its own default",
    {"trainer.callbacks": callback("ModelCheckpoint", monitor="val/accuracy")},
    WRONG_WAY,
)
refused(
    3,
    "ReduceLROnPlateau",
    "the opposite is stated",
    {
        "init.scheduler": {
            "class_path": "ReduceLROnPlateau",
            "monitor": "val/accuracy",
            "init_args": {"mode": "min"},
        }
    },
    rf"model\.scheduler.*{WRONG_WAY}",
)
refused(3, "plateau", "the opposite is stated", {"init.parts.x.unfreeze": PLATEAU}, rf"parts\.x\.unfreeze.*{WRONG_WAY}")
refused(
    3,
    "restore_best",
    "the opposite is stated",
    {
        "init.parts.x.unfreeze": {
            "start": "0%",
            "every": "1 steps",
            "restore_best": {"metric": "val/loss", "mode": "max"},
        }
    },
    "'val/loss' is better when low",
)

refused(
    3,
    "checkpoint",
    "the loss of training, the wrong way",
    {"checkpoint": {"monitor": "train/loss", "mode": "max"}},
    "'train/loss' is better when low",
)
refused(
    3,
    "checkpoint",
    "a name that turns the metric round",
    {"checkpoint.monitor": "lr/neg_loss"},
    r"checkpoint\.mode: whether",
)

# 3: what is frozen

refused(
    3,
    "pretrained",
    "no part is pretrained",
    {"init.pretrained": {"unfreeze": "never"}},
    "no part is pretrained.*'origin: pretrained'",
)
refused(
    3, "unfreeze", "only heads that look on train", {"init.untrained": {"unfreeze": "never"}}, "everything is frozen"
)
refused(3, "lr_scale", "all rates are 0", {"init.untrained": {"lr_scale": 0}}, "has the rate 0")
refused(
    3,
    "freeze",
    "later only heads that look on train",
    {"init.untrained": {"unfreeze": {"start": "0%", "every": "0 steps", "freeze": "50%"}}, "trainer.max_epochs": 4},
    "on nothing trains",
)

BREAKING = {
    "weight averaging": callback("StochasticWeightAveraging", swa_lrs=0.1),
    "fine-tuning": callback("BackboneFinetuning"),
    "pruning": callback("ModelPruning", pruning_fn="l1_unstructured"),
    "accumulation": callback("GradientAccumulationScheduler", scheduling={0: 2}),
}
for mechanism, callbacks in BREAKING.items():
    refused(3, "callbacks", mechanism, {"trainer.callbacks": callbacks}, "trainer.callbacks: ", CHECK)


@case(3, "inputs", "a copy of the target under another name")
def copy_of_the_target(box: Box) -> None:
    table(copy=lambda row: row % 2)
    config({"x": {"numeric": ["size", "copy"]}})
    told = box.accepted(*CHECK)
    assert "column 'copy' tells the target of each row" in told.out


# 13: the first wrong word

refused(13, "config", "a misspelt section", {"model": "modle"}, "unknown key 'modle'. Did you mean 'model'")
refused(
    13, "data", "a misspelt argument with children", {"data.inputs": "inptus"}, "data: unknown key 'inptus'.*'inputs'"
)
refused(13, "model", "a misspelt argument with children", {"init.parts": "prats"}, "model: unknown key 'prats'")
refused(
    13,
    "flag",
    "a misspelt argument of the model",
    {},
    "model: unknown key 'part'. Did you mean 'parts'",
    (*FIT, "--model.part.x.lr_scale", "1"),
)
refused(
    13,
    "flag",
    "a misspelt section",
    {},
    "unknown option '--trianer'. Did you mean '--trainer'",
    (*FIT, "--trianer.max_epochs", "1"),
)
refused(
    13,
    "model",
    "a misspelt init_args",
    {"model.init_arg": {"a": 1}},
    "unknown key 'init_arg'. Did you mean 'init_args'",
)
refused(13, "model", "no class", {"model.class_path": DELETE}, "model: 'class_path' is missing.*'HybridClassifier'")
refused(13, "model", "an abstract class", {"model.class_path": "HybridTask"}, "is abstract.*'HybridClassifier'")

# 13: words in the wrong place

refused(13, "command", "the config before it", {}, "write 'fit --config x.yaml'", ("--config", "x.yaml", "fit"))
refused(13, "command", "a file alone", {}, "'fit x.yaml'", ("x.yaml",))
refused(13, "config", "a word that is no file", {}, "there is no file 'x.yml'", ("fit", "x.yaml", "x.yml"))
refused(13, "config", "an option without its value", {}, "--config: its value is missing", ("fit", "--config"))
refused(13, "flag", "one dash", {}, "two dashes: --trainer.max_epochs", (*FIT, "-trainer.max_epochs", "2"))
refused(13, "command", "two of them", {}, "'validate' is a second command", ("fit", "validate", "--config", "x.yaml"))

# 13: found at the start, and by check

MISSING = {"data.path": "missing.csv"}
refused(
    13,
    "early stopping",
    "a metric that is never logged",
    {"trainer.callbacks": callback("EarlyStopping", monitor="val_loss"), **MISSING},
    "EarlyStopping.monitor: unknown metric 'val_loss'. Did you mean 'val/loss'",
)
refused(
    13,
    "checkpoint",
    "a metric that is never logged",
    {"checkpoint": {"monitor": "val/acc", "mode": "max"}, **MISSING},
    "checkpoint.monitor: unknown metric 'val/acc'. Did you mean 'val/accuracy'",
)
refused(13, "part", "a misspelt module", {"init.parts.x.module": "MPL", **MISSING}, "'MPL'. Did you mean 'MLP'", CHECK)
refused(
    13,
    "part",
    "a misspelt argument",
    {"init.parts.x.args": {"hiden": [3]}, **MISSING},
    r"parts\.x\.args: unknown argument 'hiden'",
    CHECK,
)
refused(
    13, "part", "no weights", {"init.parts.x.weights": "no.pt", **MISSING}, r"parts\.x\.weights: there is no", CHECK
)
refused(
    13,
    "loss",
    "one for another kind",
    {"init.loss_function": {"class_path": "BCEWithLogitsLoss"}, **MISSING},
    r"BCEWithLogitsLoss cannot take outputs \(B, 2\)",
)
refused(
    13, "check", "a stage that is not there", {"init.parts.x.unfreeze": {"stages": {"no": "1%"}}}, "stage 'no'", CHECK
)
refused(13, "check", "an unfreezing after the end", {"init.parts.x.unfreeze": "9 epochs"}, "before these would", CHECK)
refused(13, "check", "a limit below 0", {"trainer.gradient_clip_val": -1}, "gradient_clip_val: -1 is negative", CHECK)
refused(
    13,
    "check",
    "validations further apart than an epoch",
    {"trainer.val_check_interval": 500},
    r"val_check_interval: 500 batches are more",
    CHECK,
)
refused(13, "fit", "what Lightning refuses", {"trainer.val_check_interval": 500}, "error: .*val_check_interval")
refused(
    13,
    "early stopping",
    "a metric of training that is never logged",
    {"trainer.callbacks": callback("EarlyStopping", monitor="train/lss"), **MISSING},
    "EarlyStopping.monitor: unknown metric 'train/lss'. Did you mean 'train/loss'",
)
refused(
    13,
    "check",
    "a metric where nothing is validated",
    {"trainer.limit_val_batches": 0, "init.parts.x.unfreeze": {"plateau": "val/loss", "patience": "1 validations"}},
    "would wait for a metric, but nothing is validated",
    CHECK,
)
refused(13, "checkpoint", "an unknown word", {"checkpoint.mode": "auto", **MISSING}, r"checkpoint\.mode: unknown mode")
