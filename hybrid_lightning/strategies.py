"""The strategy ``fsdp2``: sharded training in which parts unfreeze exactly, with checkpoints that any strategy reads."""

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from torch import nn
from torch.distributed.constants import default_pg_timeout
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from hybrid_lightning.errors import ConfigError
from hybrid_lightning.sharding import same_as_first_rank, shard, sharded_like, whole
from hybrid_lightning.weights import read_file


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all ranks, with torch's `fully_shard`.

    Differs from Lightning's `ModelParallelStrategy`, which it replaces, in what exact unfreezing and resuming need: the
    data-parallel size is the number of ranks; the optimizer's state is restored whole, whatever is frozen at that
    moment; buffers are those of the first rank, as under DDP; loading never runs code from a file. A LightningModule of
    your own shards itself in ``configure_model``, see `shard`; `HybridTask` does.

    Args:
        process_group_backend: ``nccl``, ``gloo``, ...; None chooses by device.
        timeout: Of a collective operation.
    """

    def __init__(self, process_group_backend: str | None = None, timeout: timedelta = default_pg_timeout) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def setup_environment(self) -> None:
        """Starts the process group, with one data-parallel group of all ranks."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: pl.Trainer) -> None:
        """Moves the model to its device and makes the optimizers.

        Raises:
            ConfigError: With precision 16-mixed, whose ranks would skip different steps.
        """
        if self.precision_plugin.precision == "16-mixed":
            raise ConfigError(
                "trainer.precision: under fsdp2 each rank would scale 16-mixed gradients by itself. Use bf16-mixed."
            )
        super().setup(trainer)

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Restored in the same order as without sharding."""
        return False

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Restored in the same order as without sharding."""
        return True

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """A training step that starts from the first rank's buffers, such as running statistics."""
        assert self.model is not None
        same_as_first_rank(self.model.buffers(), self.device_mesh["data_parallel"])
        return super().training_step(*args, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole state of the model on rank 0; empty on the other ranks."""
        assert self.lightning_module is not None
        state = {name: whole(value) for name, value in self.lightning_module.state_dict().items()}
        return state if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state of the optimizer on rank 0; empty on the other ranks."""
        saved = Strategy.optimizer_state(self, optimizer)
        state = {i: {key: whole(value) for key, value in entry.items()} for i, entry in saved["state"].items()}
        return {**saved, "state": state} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint of any strategy; `weights_only` changes nothing, because no file is ever unpickled."""
        torch.cuda.empty_cache()
        return read_file(self.broadcast(checkpoint_path), "--ckpt_path")

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Puts each rank's share of the whole state into the model."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        if any(value.is_meta for value in own.values() if isinstance(value, torch.Tensor)):
            raise ConfigError(
                "--ckpt_path: the model is still on the meta device. Make it on the CPU in configure_model."
            )
        state = {n: sharded_like(v, own[n], n) if n in own else v for n, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Puts each rank's share of the whole state into the optimizers, frozen parameters included."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict({**saved, "state": dict(_sharded_state(optimizer, saved))})


def _sharded_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> Iterable[tuple[int, dict[str, Any]]]:
    """Index → state of one parameter, sharded as the parameter is."""
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved_group["params"], strict=True):
            if index in saved["state"]:
                where = f"{type(optimizer).__name__}'s"
                yield (
                    index,
                    {
                        key: sharded_like(value, parameter, f"{where} {key}")
                        if isinstance(value, torch.Tensor) and value.ndim
                        else value
                        for key, value in saved["state"][index].items()
                    },
                )


def shard_if_asked(strategy: Strategy, module: nn.Module, groups: Iterable[Mapping[str, Any]]) -> None:
    """Shards a built network under `FSDP2Strategy`, once; under strategies without sharding does nothing.

    Args:
        strategy: The Trainer's.
        module: The network.
        groups: Its named param groups.

    Raises:
        ConfigError: Under a strategy that leaves sharding to the model but is not ``fsdp2``; if the network was sharded
            for an earlier Trainer and this one does not shard.
    """
    if isinstance(strategy, FSDP2Strategy):
        if not isinstance(module, FSDPModule):
            shard(module, strategy.device_mesh["data_parallel"], groups)
    elif isinstance(strategy, ModelParallelStrategy):
        raise ConfigError(
            f"trainer.strategy: under {type(strategy).__name__} nothing would shard the network or average its "
            f"gradients. Use 'fsdp2', which does both."
        )
    elif isinstance(module, FSDPModule):
        raise ConfigError(
            "trainer.strategy: the network was sharded by an earlier Trainer. Use 'fsdp2' again, or load its "
            "checkpoint: HybridTask.load_from_checkpoint(path)."
        )


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 with exact unfreezing", override=True)
