"""The weights with the best value of a metric so far, for schedules with `restore_best`."""

from typing import Any

from torch import Tensor, nn

from hybrid_lightning.unfreezing.plateau import Plateau


class BestWeights:
    """Copies of a module's weights on the CPU, one for each metric."""

    def __init__(self, kept: dict[str, dict[str, Any]] | None = None) -> None:
        self.kept = dict(kept or {})  # metric → {"value": ..., "weights": ...}

    def observe(self, plateau: Plateau, value: float, module: nn.Module) -> None:
        """Keeps the weights if the value is better than the best one so far."""
        metric = plateau.metric
        best = self.kept[metric]["value"] if metric in self.kept else plateau.worst
        if not plateau.is_better(value, best):
            return
        weights = {}
        for name, tensor in module.state_dict().items():
            if isinstance(tensor, Tensor):  # extra state of a module may be anything
                weights[name] = tensor.detach().cpu().clone()
        self.kept[metric] = {"value": value, "weights": weights}

    def restore(self, metric: str, module: nn.Module) -> bool:
        """Puts the kept weights back in place; returns whether there are any."""
        if metric not in self.kept:
            return False
        module.load_state_dict(self.kept[metric]["weights"], strict=False)  # extra state is not kept
        return True
