"""Running statistics that fit the weights, however short the fine-tuning was."""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning.errors import ConfigError, unknown
from hybrid_lightning.trainer import named_groups
from hybrid_lightning.unfreezing.freezing import apply_modes, has_statistics, module_modes, reestimate_statistics


class ReestimateStatistics(pl.Callback):
    """Estimates the running statistics of normalizations anew before each validation, from training data.

    So validation, the saved checkpoints and the trained model have statistics that fit the weights. Where an epoch ends
    without validation, it is done there. Frozen stages keep theirs. Works in any LightningModule whose ``forward``
    takes a batch and whose one optimizer has groups from `named_param_groups`. Nothing is logged.

    Args:
        parts: Names of the parts; null takes all.
        batches: Training batches to average over, at most; drawn in an order of their own, the same on all ranks.

    Raises:
        ConfigError: At the start of a fit, on an unknown part, or if the training data cannot be read by index.
    """

    def __init__(self, parts: Collection[str] | None = None, batches: int = 50) -> None:
        super().__init__()
        if batches < 1:
            raise ConfigError(f"ReestimateStatistics.batches: {batches} is less than 1.")
        self.parts, self.batches = parts, batches
        self._estimated_at = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the names of the parts and the loader."""
        known = {group["part"] for group in named_groups(trainer, type(self).__name__)}
        for part in self.parts or ():
            if part not in known:
                raise unknown("batch_norm", "part", part, known)
        readable(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The step at which statistics were estimated last."""
        return {"estimated_at": self._estimated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the step."""
        self._estimated_at = state_dict["estimated_at"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A fit starts without the memory of an earlier one."""
        if stage == "fit":
            self._estimated_at = -1

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Estimates the statistics, if this validation belongs to a fit."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._reestimate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Estimates the statistics, if the last weights have not been validated."""
        if self._estimated_at != trainer.global_step:
            modes = {module: module.training for module in pl_module.modules()}
            pl_module.eval()
            self._reestimate(trainer, pl_module)
            apply_modes(modes)

    def _reestimate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        groups = named_groups(trainer, type(self).__name__)
        parts = {p: g["part"] for g in groups for p in g["params"] if self.parts is None or g["part"] in self.parts}
        norms = [m for m, trains in module_modes(pl_module, parts).items() if trains and has_statistics(m)]
        self._estimated_at = trainer.global_step
        if norms:
            with torch.random.fork_rng():
                reestimate_statistics(norms, self._read(trainer), self._forward(trainer, pl_module))
        if trainer.world_size > 1:  # random transforms may have given each rank other samples
            for buffer in (buffer for norm in norms for buffer in norm.buffers()):
                torch.distributed.broadcast(buffer, 0)

    def _read(self, trainer: pl.Trainer) -> Iterator[Any]:
        for batch in islice(readable(trainer), self.batches):
            yield trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))

    @staticmethod
    def _forward(trainer: pl.Trainer, module: nn.Module) -> Any:
        def forward(batch: Any) -> None:
            with trainer.precision_plugin.forward_context():
                module(batch)

        return forward


def readable(trainer: pl.Trainer) -> DataLoader[Any]:
    """The training data in whole batches and a fixed order, without touching the loader that trains.

    Raises:
        ConfigError: If the loader is not a `DataLoader` with batches of a dataset that is read by index.
    """
    loader = trainer.train_dataloader
    sampler = getattr(loader, "batch_sampler", None)
    size = getattr(sampler, "batch_size", None)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or size is None:
        raise ConfigError(
            "batch_norm: statistics can be estimated anew only from one DataLoader with a batch size and a dataset "
            "that is read by index. Leave out 'batch_norm: recalibrate', or give such a loader."
        )
    samples = len(loader.dataset)  # type: ignore[arg-type]
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0)).tolist()
    return DataLoader(loader.dataset, size, sampler=order, collate_fn=loader.collate_fn, drop_last=samples >= size)
