"""Regression with a hybrid network."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from hybrid_lightning.errors import ConfigError, unknown
from hybrid_lightning.tasks.base import HybridTask
from hybrid_lightning.tasks.metrics import SplitMetrics, regression_metrics

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}


class HybridRegressor(HybridTask):
    """Predicts one or several numbers with pretrained and untrained parts under one head.

    Logged after each validation and test, over all samples: ``mae``, ``rmse`` and ``r2``.

    Args:
        num_outputs: Numbers per sample; targets are `(B, num_outputs)`, or `(B,)` if it is 1.
        loss_function: ``mse``, ``mae`` or ``huber``.
        **common: Arguments of `HybridTask`.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(self, num_outputs: int = 1, loss_function: str = "mse", **common: Any) -> None:
        if loss_function not in _LOSSES:
            raise unknown("model.loss_function", "loss", loss_function, _LOSSES)
        if num_outputs < 1:
            raise ConfigError(f"model.num_outputs: {num_outputs} is less than 1.")
        self.num_outputs, self.loss_function = num_outputs, loss_function
        super().__init__(**common)
        self.facts |= {"num_outputs": num_outputs, "loss_function": loss_function}

    @property
    def outputs(self) -> int:
        """One output per predicted number."""
        return self.num_outputs

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean over samples and outputs."""
        function = _LOSSES[self.loss_function]
        return function(self.predictions(outputs), target.to(outputs.dtype))

    def predictions(self, outputs: Tensor) -> Tensor:
        """The predicted numbers, in the shape of the targets."""
        return outputs.squeeze(1) if self.num_outputs == 1 else outputs

    def make_metrics(self) -> SplitMetrics:
        """MAE, RMSE and R²."""
        return regression_metrics()

    def check_target(self, target: Tensor, where: str) -> None:
        """Raises `ConfigError` if the shape is wrong or a value is not finite."""
        wanted = () if self.num_outputs == 1 else (self.num_outputs,)
        if tuple(target.shape[1:]) != wanted:
            raise ConfigError(
                f"{where}: the shape is {tuple(target.shape)}; num_outputs {self.num_outputs} needs "
                f"{'(B,)' if self.num_outputs == 1 else f'(B, {self.num_outputs})'}."
            )
        if not bool(target.isfinite().all()):
            raise ConfigError(f"{where}: some values are not finite. Remove or correct these rows.")
