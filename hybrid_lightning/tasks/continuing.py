"""What a run takes from the checkpoint that it continues from, which has to be of the same groups and sound."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from hybrid_lightning.optim.factory import make_optimizer
from hybrid_lightning.resume.saved_fit import refuse_damaged_schedulers, refuse_damaged_tensors
from hybrid_lightning.tasks import changed_config


def adapt_to_fit(task: Any, checkpoint: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """Brings a checkpoint to today's groups and optimizer, or refuses it before anything is restored.

    Gives the settings of the file that today's replace (None: its weights alone are taken), and lines to print.
    """
    made = task.configure_optimizers()  # of a subclass perhaps several
    optimizer = made["optimizer"] if isinstance(made, Mapping) else made
    restored, lines = changed_config.adapt_checkpoint(
        checkpoint, task.state_dict(), task.saved_task(), optimizer, task.on_group_change, task.trainer
    )
    if restored is not None and isinstance(optimizer, torch.optim.Optimizer):

        def over(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
            group = {**task.param_groups()[0], "params": parameters}
            return make_optimizer(task.settings.optimizer, [group], fused=False, trust=task.trust)

        changed_config.refuse_damaged_state(checkpoint, restored, optimizer, task.built(), over, task.trainer)
        if isinstance(made, Mapping) and "lr_scheduler" in made:
            refuse_damaged_schedulers(checkpoint, made["lr_scheduler"]["scheduler"])
        refuse_damaged_tensors(task.trainer, checkpoint)
    return restored, lines
