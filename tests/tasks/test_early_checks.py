from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
)

from hybrid_lightning import ConfigError
from hybrid_lightning.tasks.early_checks import check_before_data
from tests.small import classifier, loader, table, trainer


def checked(reads_weights: bool = True, **options: Any) -> None:
    check_before_data(classifier(**options), trainer(), reads_weights)


def test_a_task_without_a_fault_is_not_refused() -> None:
    checked(scheduler="ReduceLROnPlateau", optimizer={"class_path": "SGD", "init_args": {"momentum": 0.9}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": {"x": {"module": "MPL"}}}, r"^model\.parts\.x\.module: unknown module 'MPL'. Did you mean 'MLP'"),
        (
            {"parts": {"x": {"module": "MLP", "args": {"hiden": [3]}}}},
            r"^model\.parts\.x\.args: unknown argument 'hiden'. Did you mean 'hidden'",
        ),
        (
            {"parts": {"x": "MLP", "head": {"module": "LinearHead", "args": {"width": 3}}}},
            r"^model\.parts\.head\.args: unknown argument 'width'",
        ),
        ({"fusion": {"module": "ConcatFusion", "args": {"wide": 3}}}, r"^model\.fusion\.args: unknown argument 'wide'"),
        ({"optimizer": {"class_path": "Adam", "init_args": {"bettas": 1}}}, r"^model\.optimizer.*'bettas'"),
        ({"scheduler": {"class_path": "StepLR", "init_args": {"step": 1}}}, r"^model\.scheduler.*'step'"),
        ({"scheduler": {"class_path": "ReduceLROnPlateau", "monitor": "val/acc"}}, r"^model\.scheduler\.monitor"),
        ({"rates": {"shape": "cosin"}}, "'cosin'"),
        ({"loss_function": "torch.nn.BCEWithLogitsLoss"}, r"BCEWithLogitsLoss cannot take outputs \(B, 3\)"),
        ({"init_from": "no.ckpt"}, r"^model\.init_from: there is no file 'no.ckpt'"),
    ],
)
def test_what_is_wrong_without_data_is_found_without_them(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(**options)


RESTORING = {"x": {"module": "MLP", "unfreeze": {"start": "1%", "every": "1%", "restore_best": "val/loss"}}}


@pytest.mark.parametrize(
    ("limits", "parts", "message"),
    [
        ({"callbacks": [StochasticWeightAveraging(0.1)]}, {"x": "MLP"}, "^trainer.callbacks: StochasticWeightAv"),
        ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, {"x": "MLP"}, "^trainer.callbacks: .*accumulate_grad"),
        ({"callbacks": [EMAWeightAveraging()]}, RESTORING, "^unfreeze: restore_best"),
        ({"gradient_clip_val": -1}, {"x": "MLP"}, "^trainer.gradient_clip_val: -1 is negative"),
    ],
)
def test_a_trainer_that_does_not_go_with_the_task_is_found_without_data(
    limits: dict[str, Any], parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_before_data(classifier(parts=parts), trainer(**limits), reads_weights=True)


def test_weights_have_to_be_there_where_they_are_read(tmp_path: Path) -> None:
    parts = {"x": {"module": "MLP", "weights": str(tmp_path / "no.pt")}}
    with pytest.raises(ConfigError, match=r"^model\.parts\.x\.weights: there is no file"):
        checked(parts=parts)
    checked(parts=parts, reads_weights=False)


@pytest.mark.parametrize(
    ("kind", "classes", "loss"),
    [
        ("multiclass", 3, "CrossEntropyLoss"),
        ("multiclass", 3, "FocalLoss"),
        ("multiclass", 3, "torch.nn.MultiMarginLoss"),
        ("binary", 2, "BCEWithLogitsLoss"),
        ("binary", 2, "FocalLoss"),
        ("multilabel", 3, "BCEWithLogitsLoss"),
    ],
)
def test_a_loss_for_the_kind_of_target_is_not_refused(kind: str, classes: int, loss: str) -> None:
    checked(kind=kind, num_classes=classes, loss_function=loss)


def test_a_compiled_task_is_refused_with_the_way_to_compile_parts() -> None:
    data = loader({"x": table(), "target": torch.arange(27) % 3})
    with pytest.raises(ConfigError, match=r"^model: torch\.compile has wrapped the whole task.*'compile: true'"):
        trainer().fit(torch.compile(classifier(), backend="eager"), data)
