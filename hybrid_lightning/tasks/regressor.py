"""Regression with a hybrid network."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional

from hybrid_lightning.data.loaders import training_targets
from hybrid_lightning.errors import ConfigError, at, check_choice, listing
from hybrid_lightning.network.modules.mlp import LinearVote
from hybrid_lightning.tasks.base import HybridTask
from hybrid_lightning.tasks.chosen_metrics import parse_metrics
from hybrid_lightning.tasks.metrics import COVERAGE, SplitMetrics, regression_metrics
from hybrid_lightning.tasks.objective import Objective, named_columns, output_names
from hybrid_lightning.tasks.settings import Options

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}


TRANSFORMS = (None, "log", "log1p")
"""What targets may go through before they are standardized; a checkpoint holds the position."""


class TargetScale(nn.Module):
    """Mean and standard deviation of each output over the training targets; 0 and 1 until they are known.

    With a transform they are those of the logarithms. They are float32 whatever the precision of the module, because
    bfloat16 would round them to three digits. ``known`` is 0 until the scale is set, then 1 plus the position of the
    transform in `TRANSFORMS`.
    """

    mean: Tensor
    std: Tensor
    known: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(outputs, dtype=torch.float32))
        self.register_buffer("std", torch.ones(outputs, dtype=torch.float32))
        self.register_buffer("known", torch.zeros((), dtype=torch.int64))  # not bool, which gloo does not send
        self.transform: str | None = None
        """One of `TRANSFORMS`; beside the buffer, so that no step waits for the device."""
        self.register_load_state_dict_post_hook(_read_transform)  # type: ignore[no-untyped-call]

    def set(self, mean: list[float], std: list[float]) -> None:
        """Sets the scale for good; a network that was trained under it has no meaning under another."""
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))
        self.known.fill_(1 + TRANSFORMS.index(self.transform))

    def take(self, known: Tensor) -> None:
        """Takes the transform under which a network has learned, whatever the data ask for."""
        code = int(known)
        if not 1 <= code <= len(TRANSFORMS):
            problem = f"the checkpoint is damaged: scale.known is {code}. Use another checkpoint of the run."
            raise ConfigError(problem, "scale")
        was = TRANSFORMS[code - 1]
        if self.transform not in (None, was):
            rank_zero_info(
                f"data.target.transform: {was}, because the network of the checkpoint was trained like that."
            )
        self.transform = was

    def transformed(self, target: Tensor) -> Tensor:
        """Targets, or their logarithms."""
        if self.transform is None:
            return target
        return target.log() if self.transform == "log" else target.log1p()

    def in_units(self, values: Tensor) -> Tensor:
        """The inverse of `transformed`."""
        if self.transform is None:
            return values
        return values.exp() if self.transform == "log" else values.expm1()

    def standardized(self, target: Tensor) -> Tensor:
        """Targets `(B,)` or `(B, outputs)` as the network learns them."""
        return (self.transformed(target) - self.mean) / self.std

    def restored(self, numbers: Tensor) -> Tensor:
        """What the network gives, `(B,)` or `(B, outputs)`, in the units of the targets."""
        return self.in_units(numbers * self.std + self.mean)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follows the module to its device, but not to its precision."""
        for name, buffer in self._buffers.items():
            if buffer is not None:
                device = fn(buffer).device
                self._buffers[name] = buffer.to(device)
        return self


def _read_transform(scale: nn.Module, _: Any) -> None:
    """Takes the transform of a state that has just been loaded."""
    assert isinstance(scale, TargetScale)
    if scale.known:
        scale.take(scale.known)


def scale_of(targets: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of each output over targets `(N,)` or `(N, outputs)`; 1 is that of a constant one."""
    columns = targets.reshape(len(targets), -1).double()
    std, mean = torch.std_mean(columns, dim=0, correction=0)
    # not std == 0: rounding leaves a constant column a small deviation, which would blow up its targets
    is_constant = columns.amin(0) == columns.amax(0)
    std = torch.where(is_constant, 1.0, std)
    return mean.tolist(), std.tolist()


class RegressionObjective(Objective):
    """Numbers, learned on their own scale; for the arguments see `HybridRegressor`."""

    closed_form = "values"

    def __init__(
        self,
        num_outputs: int = 1,
        loss_function: str = "mse",
        standardize: bool = True,
        metrics: Sequence[str | Options] | None = None,
    ) -> None:
        with at("model"):
            check_choice(loss_function, "loss_function", tuple(_LOSSES), "loss")
            if num_outputs < 1:
                raise ConfigError(f"{num_outputs} is less than 1.", "num_outputs")
        super().__init__(num_outputs)
        self.loss_function = _LOSSES[loss_function]
        self.standardize = standardize
        self.scale = TargetScale(num_outputs)
        self.main_metric = "r2"
        self.intervals = num_outputs
        with at("model.metrics"):
            self.chosen = parse_metrics(metrics, "", num_outputs, [*self.metrics().logged, *COVERAGE])

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean over samples and outputs, of standardized targets."""
        numbers = self._numbers(outputs)
        return self.loss_function(numbers, self.scale.standardized(target).to(numbers.dtype))

    def _numbers(self, outputs: Tensor) -> Tensor:
        """Outputs in the shape of the targets: `(B,)` of one output, else `(B, outputs)`."""
        return outputs.squeeze(1) if self.outputs == 1 else outputs

    def predictions(self, outputs: Tensor) -> Tensor:
        """The predicted numbers, in the shape and the units of the targets."""
        return self.scale.restored(self._numbers(outputs))

    def conformal_scores(self, predictions: Tensor, target: Tensor) -> Tensor:
        """How far numbers are off, `(B, outputs)`, on the scale that the network learns, where intervals are even."""
        difference = self._learned(target) - self._learned(predictions)
        return difference.abs().reshape(len(difference), -1)

    def _learned(self, numbers: Tensor) -> Tensor:
        """Numbers on the scale that the network learns."""
        return self.scale.standardized(numbers.double())

    def interval(self, predictions: Tensor) -> tuple[Tensor, Tensor] | None:
        """The least and the greatest number of each interval, in the shape and the units of the predictions.

        None without a coverage. A transform is undone at both ends, so that intervals of logarithms are factors.
        """
        if self.calibration is None or self.calibration.quantiles is None:
            return None
        middle = self._learned(predictions)
        half = middle.new_tensor(self.calibration.quantiles).reshape(middle.shape[1:])
        return self.scale.restored(middle - half), self.scale.restored(middle + half)

    def coverage(self, predictions: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Whether the numbers of each sample are in their intervals, and how wide these are; `(B,)`, of several means.

        Empty without intervals.
        """
        ends = self.interval(predictions)
        if ends is None:
            return {}
        low, high = ends
        is_inside = (low <= target) & (target <= high)
        values = {"coverage": is_inside.double(), "interval_width": high - low}
        return {name: value.reshape(len(value), -1).mean(1) for name, value in values.items()}

    def prediction_columns(self, predictions: Tensor, names: Sequence[str] | None = None) -> dict[str, Any]:
        """``prediction``, and with a coverage ``lower`` and ``upper``; of several numbers each with ``_<name>``."""
        columns = super().prediction_columns(predictions, names)
        ends = self.interval(predictions)
        for side, values in zip(("lower", "upper"), ends or (), strict=False):
            if values.ndim == 1:
                columns[side] = values
            else:
                columns |= named_columns(side, values, output_names(names, values.shape[1]))
        return columns

    def in_outputs(self, vote: LinearVote) -> LinearVote:
        """A linear map to numbers in their units, as one to numbers on the scale of the training targets."""
        mean, std = self.scale.mean.cpu(), self.scale.std.cpu()
        return LinearVote(vote.weight / std, (vote.bias - mean) / std)

    def closed_form_target(self, target: Tensor) -> Tensor:
        """Numbers, or their logarithms."""
        return self.scale.transformed(target)

    def in_units(self, values: Tensor) -> Tensor:
        """What a closed-form fit gives, in the units of the targets."""
        return self.scale.in_units(values)

    def metrics(self) -> SplitMetrics:
        """MAE, RMSE and R², and those that the config names."""
        return regression_metrics(self.chosen)

    def check_target(self, target: Tensor) -> None:
        """Raises `ConfigError` if the shape is wrong or a value is not finite."""
        wanted = () if self.outputs == 1 else (self.outputs,)
        if tuple(target.shape[1:]) != wanted:
            expected = "(B,)" if self.outputs == 1 else f"(B, {self.outputs})"
            raise ConfigError(f"the shape is {tuple(target.shape)}; num_outputs {self.outputs} needs {expected}.")
        if not bool(target.isfinite().all()):
            raise ConfigError("some values are not finite. Remove or correct these rows.")
        low = {"log": 0, "log1p": -1}.get(self.scale.transform or "")
        if low is not None and bool((target <= low).any()):
            raise ConfigError(
                f"{self.scale.transform} takes numbers above {low}, and the lowest is {target.min():g}. Correct or "
                f"remove these rows, or leave the transform out."
            )

    def check_data(self, data: Any) -> None:
        """Takes the transform that the data ask for, unless the network has learned under a scale already."""
        super().check_data(data)
        transform = getattr(data, "target_transform", None)
        check_choice(transform, "data.target.transform", TRANSFORMS)
        if not self.scale.known:
            self.scale.transform = transform

    def check_kind(self, kind: str, names: Sequence[str]) -> None:
        """Raises `ConfigError` for classes or labels, and for another count of columns."""
        if kind != "regression":
            raise ConfigError(
                f"it is {kind}, with {listing(names, 6)}, and HybridRegressor learns numbers. For numbers write "
                f"target: {{column: ..., kind: regression}}; for classes take HybridClassifier, with num_classes: "
                f"{len(names)}."
            )
        if len(names) != self.outputs:
            raise ConfigError(f"it has {len(names)} columns, and model.num_outputs is {self.outputs}. Make them equal.")

    # The scale of the targets

    def prepare_fit(self, trainer: pl.Trainer) -> None:
        """Takes the scale of the training targets, once: a trained network has no meaning under another."""
        if self.scale.known:
            return
        targets = training_targets(trainer) if self.standardize else None
        # without standardizing, the scale stays that of the targets themselves, for good
        mean = [0.0] * self.outputs
        std = [1.0] * self.outputs
        if targets is not None:
            with at("data: train targets"):
                self.check_target(targets)
            mean, std = scale_of(self.scale.transformed(targets.double()))
        self.scale.set(*trainer.strategy.broadcast((mean, std)))

    def settings(self) -> dict[str, Any]:
        """Whether targets are standardized, as the model was trained."""
        return {"standardize": self.standardize}

    def adopt(self, saved: Mapping[str, Any], is_fit: bool) -> None:
        """Keeps the scale of the checkpoint, whatever ``standardize`` is now."""
        was = saved["settings"].get("standardize", False)  # older checkpoints have no scale
        if was != self.standardize:
            self.standardize = was
            rank_zero_info(f"standardize: {was}, because the network of the checkpoint was trained like that.")

    def adopt_head(self, state: Mapping[str, Tensor]) -> None:
        """Takes the scale that a head from ``init_from`` has learned."""
        if "scale.mean" in state and not self.scale.known:
            if state["scale.known"]:
                self.scale.take(state["scale.known"])
            self.scale.set(state["scale.mean"].tolist(), state["scale.std"].tolist())

    def export_note(self) -> str:
        """The scale of the targets, which the exported network does not hold."""
        number = f"output × {self.scale.std.tolist()} + {self.scale.mean.tolist()}"
        inverse = {"log": f"exp({number})", "log1p": f"exp({number}) - 1"}
        return f"outputs are standardized: number = {inverse.get(self.scale.transform or '', number)}"


class HybridRegressor(HybridTask):
    """Predicts one or several numbers with pretrained and untrained parts under one head.

    Logged after each validation and test, over all samples: ``mae``, ``rmse`` and ``r2``, in the units of the targets.
    The losses, ``train/loss``, ``val/loss`` and ``test/loss``, are those of standardized targets. The best checkpoint
    is that of the highest ``r2``. ``target: {column: ..., transform: log}`` of the data (a DataModule's attribute
    ``target_transform``) lets the network learn logarithms: ``log`` of positive numbers, ``log1p`` (of 1 + number) of
    those above -1. Predictions and metrics are in the original units, and predictions then nearer to the median of what
    is likely than to its mean.

    Args:
        num_outputs: Numbers per sample; targets are `(B, num_outputs)`, or `(B,)` if it is 1.
        loss_function: ``mse``, ``mae`` or ``huber``, of standardized targets.
        standardize: Whether the network learns targets less their mean over their standard deviation, of each output
            over the training data, if these show their ``targets``; one that is constant is only shifted. Predictions
            and metrics are in the units of the targets all the same, and a checkpoint keeps the scale. False learns the
            targets as they are.
        metrics: Further metrics of torchmetrics, by name: ``[MeanAbsolutePercentageError, {name: MinkowskiDistance,
            args: {p: 3}}]``; ``as`` gives another name than ``minkowski_distance``. One with a number per output is not
            logged, but written as a table beside ``metrics.csv`` after a test and for the best validation.
        **common: Arguments of `HybridTask`.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(
        self,
        num_outputs: int = 1,
        loss_function: str = "mse",
        standardize: bool = True,
        metrics: list[str | Options] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(objective=RegressionObjective(num_outputs, loss_function, standardize, metrics), **common)
