"""A soup: the mean of the best checkpoints of a run, of which each is kept only if validation gets no worse by it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from hybrid_lightning.averaging.average_weights import TRAINED, refuse_sharded
from hybrid_lightning.averaging.moving_average import mean_of
from hybrid_lightning.data.preflight import first_rank_first
from hybrid_lightning.direction import checked_mode
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.resume.atomic_checkpoint_io import rewriting
from hybrid_lightning.resume.own_files import damaged
from hybrid_lightning.tasks.best_checkpoint import BestCheckpoint
from hybrid_lightning.tasks.checkpoint import without_selection
from hybrid_lightning.tasks.monitored import directions_of
from hybrid_lightning.tasks.settings import has_own_steps
from hybrid_lightning.tasks.start import validated
from hybrid_lightning.trainer import FitCallback, reduced_metric
from hybrid_lightning.unfreezing.freezing import has_statistics
from hybrid_lightning.unfreezing.reestimate_statistics import ReestimateStatistics

Ingredient = dict[str, Any]
"""``value`` of the main metric, ``loss``, ``epoch``, and ``weights``: name → tensor on the CPU."""


class GreedySoup(FitCallback):
    """At the end of a run, lets ``best.ckpt`` serve the mean of the best weights, if validation prefers it.

    The weights of the `size` best validations, by the task's main metric, then by ``val/loss``, are kept in memory and
    in each checkpoint. From the best one on, each is mixed in if the metric of the mean does not get worse by it
    (arXiv 2203.05482). ``last.ckpt`` and training stay as they are, and in ``best.ckpt`` the weights that had the best
    value stand beside the soup: a run goes on from those. Running statistics are averaged, too, or estimated anew with
    ``batch_norm: recalibrate``. Nothing is logged.

    Args:
        size: The most weights that are mixed, 2 or more.
    """

    state_form: ClassVar[dict[Any, Any]] = {
        "ingredients": {str: {"value": float, "loss": float, "epoch": int, "weights": {str: Tensor}}}
    }

    def __init__(self, size: int = 5) -> None:
        super().__init__()
        self.size = size
        self.forget()

    def forget(self) -> None:
        """Forgets the weights of an earlier fit."""
        self._ingredients: list[Ingredient] = []  # the best first
        self._begun = -1  # number of groups that train or have trained

    def state_dict(self) -> dict[str, Any]:
        """The weights that are kept."""
        return {"ingredients": {str(rank): one for rank, one in enumerate(self._ingredients)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up these weights."""
        kept = sorted(state_dict["ingredients"].values(), key=_rank)
        if any(one["weights"].keys() != kept[0]["weights"].keys() for one in kept):
            raise damaged("the weights that 'GreedySoup' keeps are of different names.")
        self._ingredients = kept[: self.size]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a task whose validation cannot be repeated on a mixture."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and has_own_steps(type(pl_module), ["validation_step"]):
            raise ConfigError(
                "a soup measures its mixtures after the last epoch, where a validation_step of your own cannot log. "
                "Leave one of them out, or write 'average: ema'.",
                "average",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises `ConfigError` without validation rows, or whole weights."""
        refuse_sharded(trainer)
        if not trainer.enable_validation:
            raise ConfigError("a soup is of what validation prefers, and nothing is validated.", "average")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """What begins to train now was the same in all weights that are kept."""
        groups = self.groups(trainer)
        begun = sum([group["unfrozen_at"] is not None for group in groups])
        if begun == self._begun:
            return
        self._begun = begun
        for name, parameter in begun_parameters(pl_module, groups).items():
            copy = None
            for one in self._ingredients:
                if name not in one["weights"]:
                    copy = parameter.detach().cpu().clone() if copy is None else copy
                    one["weights"][name] = copy

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps the weights, if they are among the best."""
        name = _metric(pl_module)
        if trainer.state.fn != "fit" or trainer.sanity_checking or name not in trainer.callback_metrics:
            return
        value = _signed(pl_module, reduced_metric(trainer, name))
        new: Ingredient = {"value": value, "loss": reduced_metric(trainer, "val/loss"), "epoch": trainer.current_epoch}
        if value != value or new["loss"] != new["loss"]:
            return
        kept = sorted([*self._ingredients, new], key=_rank)[: self.size]
        if any(one is new for one in kept):
            tensors: dict[str, Tensor] = {**begun_parameters(pl_module, self.groups(trainer)), **statistics(pl_module)}
            new["weights"] = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            self._ingredients = kept

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mixes the soup."""
        task: Any = pl_module
        best = best_of_metric(trainer)
        if trainer.fast_dev_run or len(self._ingredients) < 2 or best is None:  # type: ignore[attr-defined]
            return
        own = {name: tensor.clone() for name, tensor in task.state_dict().items() if name in self._names()}
        try:
            epochs, values, weights = self._mixed(trainer, task)
        finally:
            task.load_state_dict(own, strict=False)
        name, first = _metric(task), self._ingredients[0]
        found = f"{name} {_signed(task, first['value']):.4g}"
        path = Path(best.best_model_path)
        value = values.get(str(best.monitor))  # not of every metric that a checkpoint may follow
        is_better = value is not None and best.prefers(trainer, value, values["val/loss"])
        if is_better:
            first_rank_first(trainer, lambda: serve_soup(path, weights))
            found += f" → {float(values[name]):.4g}, {path.name} serves it"
        else:
            found += f", no mean of them is better; {path.name} stays as it is"
        task._print(f"soup: {len(epochs)} of the {len(self._ingredients)} best validations (epochs {epochs}): {found}")

    def _names(self) -> set[str]:
        return set(self._ingredients[0]["weights"])

    def _mixed(self, trainer: Trainer, task: Any) -> tuple[list[int], dict[str, Tensor], dict[str, Tensor]]:
        """The epochs of the weights in the soup, its metrics, and its weights."""
        first, *others = self._ingredients
        chosen, best = [first], _rank(first)
        values: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = first["weights"]
        for one in others:
            mixture = mean_of([used["weights"] for used in [*chosen, one]])
            measured = self._measured(trainer, task, mixture)
            rank = (-_signed(task, float(measured.get(_metric(task), torch.nan))), float(measured["val/loss"]))
            if rank <= best:
                chosen.append(one)
                best, values = rank, measured
                weights = {name: task.state_dict()[name].cpu().clone() for name in mixture}
        return [one["epoch"] for one in chosen], values, weights

    def _measured(self, trainer: Trainer, task: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The validation metrics of other weights, which stay in the task."""
        task.load_state_dict(weights, strict=False)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, ReestimateStatistics):
                callback.estimate(trainer, task)
        return validated(trainer, task)


def best_of_metric(trainer: Trainer) -> BestCheckpoint | None:
    """The callback that keeps ``best.ckpt``; None if it has kept none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint) and callback.best_loss is not None:
            return callback if callback.save_top_k == 1 else None
    return None


def begun_parameters(module: LightningModule, groups: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Name → parameter that trains, or has trained in this run."""
    begun: set[Tensor] = set()
    for group in groups:
        if group["unfrozen_at"] is not None:
            begun.update(group["params"])
    return {name: parameter for name, parameter in module.named_parameters() if parameter in begun}


def statistics(module: LightningModule) -> dict[str, Tensor]:
    """Name → running statistic of all normalizations."""
    found: dict[str, Tensor] = {}
    for prefix, child in module.named_modules():
        if has_statistics(child):
            found.update(child.named_buffers(prefix, recurse=False))
    return found


def serve_soup(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Lets a checkpoint serve a soup; the weights that it had stand beside it."""
    with rewriting(path) as checkpoint:
        checkpoint.update(without_selection(checkpoint))
        trained = checkpoint.get(TRAINED, checkpoint["state_dict"])
        checkpoint[TRAINED] = trained
        checkpoint["state_dict"] = {name: weights.get(name, tensor) for name, tensor in trained.items()}


def _metric(task: Any) -> str:
    return f"val/{task.objective.main_metric}"


def _signed(task: Any, value: float) -> float:
    """A value of the main metric, higher being better; the inverse of itself."""
    return value if checked_mode(_metric(task), None, directions_of(task)) == "max" else -value


def _rank(ingredient: Ingredient) -> tuple[float, float]:
    return -ingredient["value"], ingredient["loss"]
