"""``test`` of several checkpoints: the metrics of each, and those of the mean of what they predict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from hybrid_lightning.cli.building import Setup
from hybrid_lightning.cli.members import leave_out_decisions, mean_and_spread, refuse_other_names
from hybrid_lightning.cli.preparation import restoring
from hybrid_lightning.cli.tables import write_table
from hybrid_lightning.errors import ConfigError, format_table
from hybrid_lightning.tasks.evaluation import write_tables

_FILE = "test_members.csv"
_SPLIT = "test"
_AVERAGED = "their averaged prediction"

Values = Mapping[str, float]
"""Metric → its value."""


def test_members(members: Sequence[Setup]) -> str:
    """Tests checkpoints one after the other, then the mean of their predictions; gives what to print.

    The metrics of the mean go to the loggers, and a table of all to ``test_members.csv`` in the run's folder.
    """
    trainer = members[0].trainer
    if trainer.world_size > 1:
        raise ConfigError(
            f"{len(members)} checkpoints are tested together on one device. Add --trainer.devices 1.", "--ckpt_path"
        )
    folder, loggers = trainer.log_dir, trainer.loggers
    # a row of each member would look like a further test of one model
    trainer.loggers = [] if folder is None else [_Silent(folder)]
    try:
        found = [_tested(member) for member in members]
    finally:
        trainer.loggers = loggers
    of_mean = _metrics_of_mean(members)
    for logger in loggers:
        logger.log_metrics({f"{_SPLIT}/{name}": value for name, value in of_mean.items()}, step=0)
        logger.save()
    write_tables(trainer, members[0].model, _SPLIT)
    if folder is not None:
        _write(members, found, of_mean, Path(folder) / _FILE)
    return _told(members, found, of_mean)


class _Silent(Logger):
    """In place of the loggers of a run: it has their folder, and logs nothing."""

    name = version = None

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    @property
    def save_dir(self) -> str:
        """The folder, which the Trainer asks for."""
        return self._folder

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Does nothing."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""


def _tested(member: Setup) -> Values:
    """The metrics of one checkpoint, whose predictions the model keeps."""
    member.model.evaluator.metrics_of(_SPLIT).kept = []
    path = member.checkpoint
    with restoring(member.trainer, path):
        [values] = member.trainer.test(member.model, member.data, ckpt_path=path, weights_only=True, verbose=False)
    return {name.removeprefix(f"{_SPLIT}/"): value for name, value in values.items()}


def _metrics_of_mean(members: Sequence[Setup]) -> Values:
    """The metrics of the mean of what members predict for the same rows, without a loss, which is of one output."""
    predictions, targets = zip(*map(_kept, members), strict=True)
    names = [getattr(member.data, "target_names", None) for member in members]
    for member, own, target in zip(members, names, targets, strict=True):
        refuse_other_names(str(member.checkpoint), own, str(members[0].checkpoint), names[0])
        if not torch.equal(target, targets[0]):
            raise ConfigError(
                f"{str(member.checkpoint)!r} and {str(members[0].checkpoint)!r} are not tested on the same rows. Give "
                f"checkpoints of one split of the data.",
                "--ckpt_path",
            )
    model = members[0].model
    leave_out_decisions([member.model.objective for member in members])
    model.evaluator.follow(model.objective)
    mean, _ = mean_and_spread(predictions)
    metrics = model.evaluator.metrics_of(_SPLIT).cpu()
    metrics.update(torch.zeros(()), 1, mean, targets[0])
    values, _ = metrics.compute()
    return {name: float(value) for name, value in values.items() if name != "loss"}


def _kept(member: Setup) -> tuple[Tensor, Tensor]:
    """Predictions and targets of the rows that a member was tested on."""
    metrics = member.model.evaluator.metrics_of(_SPLIT)
    kept, metrics.kept = metrics.kept, None
    if not kept:
        raise ConfigError(
            "the steps of the task are its own, so that the mean of what several checkpoints predict is not known. "
            "Test one.",
            "--ckpt_path",
        )
    predictions, targets = zip(*kept, strict=True)
    return torch.cat(predictions), torch.cat(targets)


def _write(members: Sequence[Setup], found: Sequence[Values], of_mean: Values, path: Path) -> None:
    """Writes a row per member, and one of their averaged prediction."""
    columns: dict[str, list[Any]] = {"checkpoint": [*(str(member.checkpoint) for member in members), _AVERAGED]}
    for name in found[0]:
        columns[name] = [values.get(name, "") for values in (*found, of_mean)]
    write_table(columns, path)


def _told(members: Sequence[Setup], found: Sequence[Values], of_mean: Values) -> str:
    """A line per metric: its mean over the members with the standard deviation, and that of the averaged prediction."""
    each = f"mean of {len(members)} checkpoints"
    rows = []
    for name in found[0]:
        values = torch.tensor([one.get(name, torch.nan) for one in found], dtype=torch.float64)
        row = {"metric": name, each: f"{float(values.mean()):.4g} ± {float(values.std()):.2g}"}
        row[_AVERAGED] = f"{of_mean[name]:.4g}" if name in of_mean else ""
        rows.append(row)
    return format_table(rows, ("metric", each, _AVERAGED), (each, _AVERAGED))
