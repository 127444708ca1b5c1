"""Running statistics that fit the weights, however short the fine-tuning was."""

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from hybrid_lightning.errors import ConfigError, check_keys, check_number
from hybrid_lightning.lightning_private import batch_as_given
from hybrid_lightning.trainer import FitCallback, as_validation
from hybrid_lightning.unfreezing.freezing import evaluating, has_statistics, module_modes, reestimate_statistics
from hybrid_lightning.unfreezing.timeline import part_of_parameters


class ReestimateStatistics(FitCallback):
    """Estimates the running statistics of normalizations anew before each validation, from training data.

    So validation, the saved checkpoints and the trained model have statistics that fit the weights. Where an epoch ends
    without validation, it is done there. Frozen stages keep theirs. Works in any LightningModule whose ``forward``
    takes a batch and whose one optimizer has groups from `named_param_groups`. Nothing is logged.

    Args:
        parts: Names of the parts; null takes all.
        batches: Training batches to average over, at most; drawn in an order of their own, the same on all ranks.

    Raises:
        ConfigError: At the start of a run, on an unknown part, or if the training data cannot be read by index.
    """

    state_form: ClassVar[dict[Any, Any]] = {"estimated_at": range(-1, 2**63)}

    def __init__(self, parts: Collection[str] | None = None, batches: int = 50) -> None:
        super().__init__()
        check_number(batches, "ReestimateStatistics.batches", low=1)
        self.batches = batches
        self.configure(parts)
        self.forget()

    def configure(self, parts: Collection[str] | None) -> None:
        """Sets the parts whose statistics are estimated; None takes all."""
        self.parts = parts

    def forget(self) -> None:
        """Forgets at which step an earlier run estimated last."""
        self._estimated_at = -1

    def state_dict(self) -> dict[str, Any]:
        """The step at which statistics were estimated last."""
        return {"estimated_at": self._estimated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the step."""
        self._estimated_at = state_dict["estimated_at"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the names of the parts and the loader."""
        known = {group["part"] for group in self.groups(trainer)}
        check_keys(self.parts or (), known, "batch_norm", "part")
        readable(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimates the statistics, if this validation belongs to a run."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.estimate(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimates the statistics, if the last weights have not been validated."""
        if self._estimated_at != trainer.global_step:
            with evaluating(pl_module):
                self.estimate(trainer, pl_module)

    def estimate(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Estimates the statistics for the weights of now; for use in eval mode."""
        self._estimated_at = trainer.global_step
        groups = [group for group in self.groups(trainer) if self.parts is None or group["part"] in self.parts]
        # of parts that train: the statistics of a frozen stage are those that its weights were trained with
        modes = module_modes(pl_module, part_of_parameters(groups))
        norms = [module for module, trains in modes.items() if trains and has_statistics(module)]
        if not norms:
            return

        def forward(batch: Any) -> None:
            with trainer.precision_plugin.forward_context():
                pl_module(batch)

        # dropout and transforms must not move the random numbers of the run; and hooks that augment batches of a
        # training would give statistics of what no evaluation sees
        with torch.random.fork_rng(), as_validation(trainer):
            reestimate_statistics(norms, self._read(trainer, pl_module), forward)
        if trainer.world_size > 1:  # random transforms may have given each rank other samples
            for norm in norms:
                for buffer in norm.buffers():
                    torch.distributed.broadcast(buffer, 0)

    def _read(self, trainer: Trainer, pl_module: LightningModule) -> Iterator[Any]:
        for batch in islice(readable(trainer), self.batches):
            yield batch_as_given(trainer, pl_module, batch)


def readable(trainer: Trainer) -> DataLoader[Any]:
    """The training data in whole batches and a fixed order, without touching the loader that trains."""
    loader = trainer.train_dataloader
    sampler = getattr(loader, "batch_sampler", None)
    size = getattr(sampler, "batch_size", None)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or size is None:
        raise ConfigError(
            "statistics can be estimated anew only from one DataLoader with a batch size and a dataset that is read by "
            "index. Leave out 'batch_norm: recalibrate', or give such a loader.",
            "batch_norm",
        )
    # the loader's own sampler has a position that belongs to the run
    samples = len(loader.dataset)  # type: ignore[arg-type]
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0)).tolist()
    # a smaller last batch would count as much as the others
    return DataLoader(loader.dataset, size, sampler=order, collate_fn=loader.collate_fn, drop_last=samples >= size)
