"""Which checkpoint is the best: by the main metric of the task, with the loss between equals, also after a restart."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from hybrid_lightning import ConfigError, HybridClassifier, HybridTask
from hybrid_lightning.direction import MAIN
from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint
from hybrid_lightning.tasks.objective import Objective
from tests.small import changed, classifier, command, loader, regressor, table, trainer

SAMPLES = 64


class Scripted(HybridClassifier):
    """Logs given values in place of those of its validations."""

    values: list[tuple[float, float]] = []  # noqa: RUF012  accuracy and loss of each epoch

    def on_validation_epoch_end(self) -> None:
        self.evaluator.compute("val")
        accuracy, loss = self.values[self.current_epoch]
        self.log("val/accuracy", torch.tensor(accuracy))
        self.log("val/loss", torch.tensor(loss))


def scripted(values: list[tuple[float, float]]) -> Scripted:
    model = Scripted(num_classes=3, parts={"x": {"module": "MLP", "args": {"hidden": [5]}}})
    model.values = values
    return model


def data(samples: int = SAMPLES, classes: int = 3) -> Any:
    return loader({"x": table(samples), "target": torch.arange(samples) % classes}, batch_size=32)


def keep(folder: Path, **options: Any) -> BestCheckpoint:
    names = {"filename": "best", "auto_insert_metric_name": False}
    return BestCheckpoint(folder, **{"monitor": MAIN, **names, **options})


def fit(model: HybridTask, best: Any, epochs: int = 1, rows: Any = None, **options: Any) -> BestCheckpoint:
    rows = data() if rows is None else rows
    callbacks = best if isinstance(best, list) else [best]
    run = trainer(enable_checkpointing=True, callbacks=callbacks, max_epochs=epochs, num_sanity_val_steps=0)
    run.fit(model, rows, rows, **options)
    return callbacks[0]  # type: ignore[no-any-return]


def epoch_of(best: BestCheckpoint) -> int:
    return int(best.described().removeprefix("epoch ").partition(",")[0])


# one standard error of 0.8 on 64 samples is 0.05
SEQUENCES = {
    "far higher": ([(0.5, 1.0), (0.8, 2.0), (0.6, 0.5)], 1),
    "the same": ([(0.8, 1.0), (0.8, 0.9), (0.8, 0.95)], 1),
    "within the standard error, lower loss": ([(0.80, 1.0), (0.77, 0.9)], 1),
    "within the standard error, higher loss": ([(0.77, 1.0), (0.80, 1.1)], 0),
    "below the standard error": ([(0.80, 1.0), (0.74, 0.5)], 0),
    "a new highest value lifts the bar above the best": ([(0.76, 0.5), (0.80, 1.0), (0.82, 1.1)], 2),
    "no way down step by step": ([(0.80, 1.0), (0.77, 0.9), (0.74, 0.8), (0.71, 0.7)], 1),
    "a loss that is not a number": ([(0.80, float("nan")), (0.80, 9.0)], 1),
    "not a number": ([(float("nan"), 1.0), (float("nan"), 0.5), (0.3, 9.0)], 2),
}


@pytest.mark.parametrize(("values", "expected"), SEQUENCES.values(), ids=SEQUENCES)
def test_the_best_is_the_highest_and_within_its_error_the_one_with_the_lower_loss(
    values: list[tuple[float, float]], expected: int, tmp_path: Path
) -> None:
    best = fit(scripted(values), keep(tmp_path), len(values))
    assert best.monitor == "val/accuracy"
    assert epoch_of(best) == expected


@pytest.mark.parametrize("values", [case[0] for case in SEQUENCES.values() if len(case[0]) > 2])
def test_a_continued_run_finds_the_same_best(values: list[tuple[float, float]], tmp_path: Path) -> None:
    whole = fit(scripted(values), keep(tmp_path / "whole"), len(values))
    last = ModelCheckpoint(tmp_path / "parts", "last", enable_version_counter=False)
    fit(scripted(values), [keep(tmp_path / "parts"), last], 2)
    more = [keep(tmp_path / "parts"), ModelCheckpoint(tmp_path / "parts", "last", enable_version_counter=False)]
    file = str(tmp_path / "parts" / "last.ckpt")
    resumed = fit(scripted(values), more, len(values), ckpt_path=file, weights_only=True)
    assert resumed.described() == whole.described()


def test_of_a_metric_that_somebody_names_only_the_same_values_are_equal(tmp_path: Path) -> None:
    values = [(0.80, 1.0), (0.79, 0.5), (0.80, 0.9)]
    best = fit(scripted(values), keep(tmp_path, monitor="val/accuracy", mode="max"), 3)
    assert best.described() == "epoch 2, step 6: val/accuracy 0.8, val/loss 0.9"


def test_the_highest_value_is_told_where_the_loss_has_decided(tmp_path: Path) -> None:
    said = fit(scripted([(0.80, 1.0), (0.77, 0.9)]), keep(tmp_path), 2).described()
    assert said.startswith("epoch 1, step 4: val/accuracy 0.77, val/loss 0.9; the highest was 0.8, and within")


def labels(share: float) -> torch.Tensor:
    target = torch.zeros(100, dtype=torch.long)
    target[: int(100 * share)] = 1
    return target


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize(
    ("share", "expected"), [(0.05, "val/average_precision"), (0.95, "val/average_precision"), (0.1, "val/accuracy")]
)
def test_a_rare_class_is_found_by_its_average_precision(kind: str, share: float, expected: str, tmp_path: Path) -> None:
    rows = loader({"x": table(100), "target": labels(share)}, batch_size=50)
    best = fit(classifier(num_classes=2, kind=kind), keep(tmp_path), rows=rows)
    assert best.monitor == expected
    assert best.mode == "max"


def test_labels_follow_the_mean_average_precision_and_numbers_r2(tmp_path: Path) -> None:
    several = loader({"x": table(), "target": torch.arange(81).reshape(27, 3) % 2})
    best = fit(classifier(kind="multilabel"), keep(tmp_path / "labels"), rows=several)
    assert best.monitor == "val/average_precision"
    numbers = loader({"x": table(), "target": table()[:, 0]})
    assert fit(regressor(), keep(tmp_path / "numbers"), rows=numbers).monitor == "val/r2"


class Squares(Objective):
    """Somebody's own."""

    def loss(self, outputs: torch.Tensor, target: Any) -> torch.Tensor:
        return nn.functional.mse_loss(outputs[:, 0], target.float())

    def predictions(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs[:, 0]


class Own(HybridTask):
    def __init__(self, **common: Any) -> None:
        super().__init__(objective=Squares(1), **common)


def test_a_task_of_ones_own_follows_the_loss(tmp_path: Path) -> None:
    best = fit(Own(parts={"x": {"module": "MLP"}}), keep(tmp_path), 2)
    assert (best.monitor, best.mode) == ("val/loss", "min")


def test_where_the_metric_is_undefined_the_loss_decides(tmp_path: Path) -> None:
    train = loader({"x": table(), "target": table()[:, 0]})
    single = loader({"x": table(1), "target": torch.ones(1)})
    best = keep(tmp_path)
    run = trainer(enable_checkpointing=True, callbacks=[best], max_epochs=3)
    run.fit(regressor(lr=0.05), train, single)
    assert "val/r2" not in run.callback_metrics
    assert best.best_loss == pytest.approx(float(run.callback_metrics["val/loss"]))


def test_another_callback_of_the_same_metric_is_refused(tmp_path: Path) -> None:
    other = ModelCheckpoint(tmp_path / "other", monitor="val/accuracy", mode="max")
    with pytest.raises(ConfigError, match="another ModelCheckpoint follows 'val/accuracy', too"):
        fit(classifier(), [keep(tmp_path), other])


# On the command line


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_end_of_a_fit_names_the_best_and_a_run_of_before_goes_on_with_its_metric(
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = changed({"checkpoint.monitor": "val/loss", "trainer.max_epochs": 2})
    assert command("fit", config=old) == 0
    assert "best: epoch 1, step 6: val/loss" in capsys.readouterr().out
    new = changed({"trainer.max_epochs": 3})
    assert command("fit", "--resume", "auto", config=new) == 0
    out = capsys.readouterr().out
    assert "checkpoint: the best goes on following val/loss, as this run began" in out
    assert "best: epoch 2, step 9: val/loss" in out
    [folder] = Path("runs/small").iterdir()
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert command("fit", "--name", "other", config=new) == 0
    assert "step 9: val/accuracy" in capsys.readouterr().out


def test_a_stated_direction_of_the_main_metric_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("fit", config=changed({"checkpoint.mode": "min"})) == 2
    assert "checkpoint.mode: the main metric has a direction of its own" in capsys.readouterr().err


def test_the_config_of_a_run_can_be_used_again() -> None:
    assert command("fit") == 0
    saved = Path("runs/small/version_0/config.yaml").read_text()
    assert command("fit", config=saved) == 0
