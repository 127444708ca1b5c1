from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from hybrid_lightning import ConfigError, GradualUnfreezing
from hybrid_lightning.tasks.monitored import check_monitors, directions_of
from tests.small import classifier, regressor

TWO = {"a": {"module": "MLP"}, "b": {"module": "MLP"}}


def test_each_metric_says_its_own_direction() -> None:
    of_validation = {"val/loss": "min", "val/mae": "min", "val/rmse": "min", "val/r2": "max"}
    assert directions_of(regressor()) == {**of_validation, "train/loss": "min"}


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (EarlyStopping("val/accuracy"), r"^EarlyStopping\.mode: 'val/accuracy' is better when high"),
        (ModelCheckpoint(monitor="val/auroc"), r"^checkpoint\.mode: 'val/auroc' is better when high"),
        (EarlyStopping("val_loss"), r"^EarlyStopping\.monitor: unknown metric 'val_loss'. Did you mean 'val/loss'"),
        (EarlyStopping("train/los"), r"unknown metric 'train/los'. Did you mean 'train/loss'"),
        (EarlyStopping("vla/loss"), r"unknown metric 'vla/loss'. Did you mean 'val/loss'"),
        (ModelCheckpoint(monitor="test/loss"), r"^checkpoint\.monitor: unknown metric 'test/loss'"),
        (ModelCheckpoint(monitor="train/loss", mode="max"), r"^checkpoint\.mode: 'train/loss' is better when low"),
        (EarlyStopping("loss"), r"unknown metric 'loss'. Did you mean 'val/loss'"),
        (
            GradualUnfreezing({"x": {"plateau": "val/r2", "patience": "1 validations"}}),
            r"^GradualUnfreezing\.x: unknown metric 'val/r2'",
        ),
    ],
)
def test_a_callback_that_follows_the_wrong_way_or_nothing_is_refused(callback: Callback, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_monitors(classifier(), [callback])


def test_what_goes_the_right_way_is_not_refused() -> None:
    right = [EarlyStopping("val/accuracy", mode="max"), ModelCheckpoint(monitor="val/loss"), ModelCheckpoint()]
    check_monitors(classifier(), [*right, EarlyStopping("drift/x"), EarlyStopping("train/loss")])


class Logging(Callback):
    """A user's own, which may log anything, and has words of its own."""

    monitor, mode = "val/loss", "online"


def test_what_others_may_log_is_not_known_to_be_missing() -> None:
    check_monitors(classifier(), [Logging(), EarlyStopping("val/own")])


@pytest.mark.parametrize(
    ("unfreeze", "message"),
    [
        ({"plateau": "val/accuracy", "mode": "min", "patience": "1 validations"}, "'val/accuracy' is better when high"),
        ({"plateau": "val/acuracy", "mode": "max", "patience": "1 validations"}, "unknown metric 'val/acuracy'"),
        ({"start": "1%", "every": "1%", "restore_best": {"metric": "val/loss", "mode": "max"}}, "better when low"),
    ],
)
def test_a_schedule_of_a_part_is_held_to_the_same_rule(unfreeze: dict[str, Any], message: str) -> None:
    model = classifier(parts={"x": {"module": "MLP", "unfreeze": unfreeze}})
    with pytest.raises(ConfigError, match=rf"^model\.parts\.x\.unfreeze.*{message}"):
        check_monitors(model, [])
