"""Regression with a hybrid network."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional

from hybrid_lightning.data.loaders import training_targets
from hybrid_lightning.errors import ConfigError, unknown
from hybrid_lightning.tasks.base import HybridTask
from hybrid_lightning.tasks.checkpoint import CHECKPOINT_KEY
from hybrid_lightning.tasks.metrics import SplitMetrics, regression_metrics
from hybrid_lightning.tasks.target_scale import TargetScale, scale_of
from hybrid_lightning.weights.safe_files import read_file

_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}


class HybridRegressor(HybridTask):
    """Predicts one or several numbers with pretrained and untrained parts under one head.

    Logged after each validation and test, over all samples: ``mae``, ``rmse`` and ``r2``, in the units of the targets.
    The losses, ``train/loss``, ``val/loss`` and ``test/loss``, are those of standardized targets.

    Args:
        num_outputs: Numbers per sample; targets are `(B, num_outputs)`, or `(B,)` if it is 1.
        loss_function: ``mse``, ``mae`` or ``huber``, of standardized targets.
        standardize: Whether the network learns targets less their mean over their standard deviation, of each output
            over the training data, if these show their ``targets``; one that is constant is only shifted. Predictions
            and metrics are in the units of the targets all the same, and a checkpoint keeps the scale. False learns the
            targets as they are.
        **common: Arguments of `HybridTask`.

    Raises:
        ConfigError: If an argument is impossible.
    """

    def __init__(
        self, num_outputs: int = 1, loss_function: str = "mse", standardize: bool = True, **common: Any
    ) -> None:
        if loss_function not in _LOSSES:
            raise unknown("model.loss_function", "loss", loss_function, _LOSSES)
        if num_outputs < 1:
            raise ConfigError(f"model.num_outputs: {num_outputs} is less than 1.")
        self.num_outputs, self.loss_function, self.standardize = num_outputs, loss_function, standardize
        super().__init__(**common)
        self.scale = TargetScale(num_outputs)
        self.facts |= {"num_outputs": num_outputs, "loss_function": loss_function, "standardize": standardize}

    @property
    def outputs(self) -> int:
        """One output per predicted number."""
        return self.num_outputs

    def on_built(self, start: Mapping[str, Any] | None) -> None:
        """With a head from ``init_from`` comes the scale that it has learned."""
        file = {} if start is None else read_file(start["path"], "model.init_from", without=("optimizer_states",))
        if start is None or CHECKPOINT_KEY not in file or self.scale.known:
            return
        state = file["state_dict"]
        head = start["parts"].get("head", "head")
        own = self.built().parts["head"].state_dict()
        same = all(torch.equal(t, state.get(f"network.parts.{head}.{name}", t + 1)) for name, t in own.items())
        if own and same and "scale.mean" in state:
            self.scale.set(state["scale.mean"].tolist(), state["scale.std"].tolist())

    def configure_model(self) -> None:
        """Builds what is not built yet; the first fit takes the scale of its training targets."""
        super().configure_model()
        if self.trainer.state.fn != "fit" or self.scale.known:
            return
        targets = training_targets(self.trainer) if self.standardize else None
        mean, std = [0.0] * self.num_outputs, [1.0] * self.num_outputs
        if targets is not None:
            self.check_target(targets, "data: train targets")
            mean, std = scale_of(targets)
        self.scale.set(*self.trainer.strategy.broadcast((mean, std)))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the scale of the checkpoint, whatever ``standardize`` says now; else see `HybridTask`."""
        facts = checkpoint.get(CHECKPOINT_KEY, {}).get("facts")
        was = self.standardize if facts is None else facts.get("standardize", False)
        if was != self.standardize:
            self.standardize = self.facts["standardize"] = was
            rank_zero_info(f"standardize: {was}, because the network of the checkpoint was trained like that.")
        super().on_load_checkpoint(checkpoint)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean over samples and outputs, of standardized targets."""
        function = _LOSSES[self.loss_function]
        return function(self._numbers(outputs), self.scale.standardized(target).to(outputs.dtype))

    def _numbers(self, outputs: Tensor) -> Tensor:
        """Outputs in the shape of the targets."""
        return outputs.squeeze(1) if self.num_outputs == 1 else outputs

    def predictions(self, outputs: Tensor) -> Tensor:
        """The predicted numbers, in the shape and the units of the targets."""
        return self.scale.restored(self._numbers(outputs))

    def program_facts(self) -> dict[str, Any]:
        """The scale, which an exported program does not hold."""
        return {"mean": self.scale.mean.tolist(), "std": self.scale.std.tolist()}

    def use_program_facts(self, facts: Mapping[str, Any]) -> None:
        """Takes the scale of an exported program."""
        if "mean" in facts:
            self.scale.set(facts["mean"], facts["std"])

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
