"""L2-SP: a penalty on the distance from the weights that a part started from."""

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from hybrid_lightning.distributed.sharding import own_share
from hybrid_lightning.drift.start_weights import StartingWeightsCallback
from hybrid_lightning.errors import ConfigError, at, check_number
from hybrid_lightning.gradients.norms import tensor_norms
from hybrid_lightning.gradients.step import refuse_scaled_gradients
from hybrid_lightning.trainer import is_log_step, log_values


class L2SP(StartingWeightsCallback):
    """Pulls the trainable weights w of parts towards their start w0: adds strength / 2 · ‖w - w0‖² to the loss.

    From Xuhong et al. (arXiv 1802.01483), whose α the strength is. The gradient, strength · (w - w0), is added once per
    optimizer step, before gradients are measured and clipped; accumulation and loss scaling do not change it.
    Parameters without a gradient do not change. A run that continues from a checkpoint keeps the w0 of its first
    start. Works in any LightningModule whose one optimizer has groups from `named_param_groups`; in a
    `HybridTask` the option ``l2sp`` of a part, or of ``pretrained``, is enough.

    Weight decay of these parts still pulls to zero: set ``weight_decay: 0`` for them.

    | key | meaning |
    |---|---|
    | ``l2sp/<part>`` | the penalty, strength / 2 · ‖w - w0‖² of what trains, on each log step, before the step |

    The copy of the starting weights takes as many bytes as the parts' weights, on their device (each rank its shard,
    under fsdp2), and the same again in each checkpoint; `PretrainedDrift` shares it.

    Args:
        parts: Names of the parts; null takes the pretrained ones, which only the groups of `HybridTask` name, or those
            of `strength`.
        strength: Strength of the pull, 0 or more; or a dict part → strength.

    Raises:
        ConfigError: If a strength is not a number of at least 0; at the start of a run, if a part is unknown, null is
            given and no group is marked as pretrained, a callback that measures gradients stands before this one, or
            the optimizer itself removes the loss scale.
    """

    gradient_order = 0
    on_device = True  # a copy to the device at each step would take longer than the step

    def __init__(self, parts: list[str] | None = None, strength: float | dict[str, float] = 0.01) -> None:
        super().__init__(parts)
        self.strength: float | Mapping[str, float] = 0.0
        if not isinstance(strength, Mapping):
            check_number(strength, "L2SP.strength", low=0)
            self.strength = strength
        elif parts is None:
            self.configure(strength)
        else:
            raise ConfigError("leave it out; the parts are those that 'strength' names.", "L2SP.parts")

    def configure(self, strength: Mapping[str, float]) -> None:
        """Replaces parts and strengths by others, part → strength."""
        with at("L2SP.strength"):
            for part, value in strength.items():
                check_number(value, part, low=0)
        self.strength = dict(strength)
        self.parts = list(strength)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the weights; refuses gradients that would be unscaled after the penalty was added."""
        super().on_fit_start(trainer, pl_module)
        refuse_scaled_gradients(trainer, type(self).__name__)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Adds the gradient of the penalty; logs the penalty on log steps."""
        logs = is_log_step(trainer)
        penalties: dict[str, Tensor | float] = {}
        for group in self.watched_groups(trainer):
            part = group["part"]
            strength = self.strength[part] if isinstance(self.strength, Mapping) else self.strength
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            moved = self.start.moved(trained)
            if moved:
                gradients = [own_share(parameter.grad) for parameter in trained]
                torch._foreach_add_(gradients, moved, alpha=strength)
            if logs:
                squared_distance = tensor_norms(trained, moved).square().sum()
                penalties[part] = penalties.get(part, 0.0) + strength / 2 * squared_distance
        if penalties:
            log_values(trainer, {f"l2sp/{part}": penalty for part, penalty in penalties.items()})
