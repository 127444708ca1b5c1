"""The strategy ``fsdp2``: sharded training in which parts unfreeze exactly and checkpoints fit any strategy."""

import atexit
import gc
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from hybrid_lightning.distributed.sharding import same_as_first_rank, shard, sharded_like, whole
from hybrid_lightning.errors import ConfigError
from hybrid_lightning.lightning_private import saves_shares, set_data_parallel_size
from hybrid_lightning.weights.safe_files import read_file
from hybrid_lightning.weights.sharded_files import write_folder


class FSDP2Strategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all ranks, with torch's `fully_shard`.

    Differs from Lightning's `ModelParallelStrategy`, which it replaces, in what exact unfreezing and resuming need: the
    data-parallel size is the number of ranks; all of the optimizer's state is restored, whatever is frozen at that
    moment; buffers are those of the first rank, as under DDP; loading never runs code from a file. A LightningModule of
    your own shards itself in ``configure_model``, see `shard`; `HybridTask` does.

    Args:
        save_distributed_checkpoint: Whether a checkpoint is a folder to which each rank writes its local shards, which
            only this strategy continues. If not, it is one file as under any other strategy, gathered on the first
            rank.
        process_group_backend: ``nccl``, ``gloo``, ...; None chooses by device.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """Starts the process group, with one data-parallel group of all ranks."""
        set_data_parallel_size(self, self.num_nodes * self.num_processes)
        super().setup_environment()
        atexit.register(end_process_group)

    def setup(self, trainer: Trainer) -> None:
        """Moves the model to its device."""
        self.refuse_scaled_gradients()
        super().setup(trainer)

    def refuse_scaled_gradients(self) -> None:
        """Raises `ConfigError` for precision 16-mixed, whose ranks would skip different steps."""
        if self.precision_plugin.precision == "16-mixed":
            raise ConfigError(
                "trainer.precision: under fsdp2 each rank would scale 16-mixed gradients by itself. Use bf16-mixed."
            )

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
        self._take_buffers()
        return super().training_step(*args, **kwargs)

    def on_validation_start(self) -> None:
        """All ranks validate with the first rank's buffers, which a checkpoint holds."""
        self._take_buffers()
        super().on_validation_start()

    def _take_buffers(self) -> None:
        assert self.model is not None
        same_as_first_rank(self.model.buffers(), self.device_mesh["data_parallel"])

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The state of the model: this rank's local shards for a folder, or full tensors on rank 0 alone."""
        assert self.lightning_module is not None
        return self._to_save(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The state of the optimizer: this rank's local shards for a folder, or full tensors on rank 0 alone."""
        saved: dict[str, Any] = Strategy.optimizer_state(self, optimizer)
        state = {index: self._to_save(entry) for index, entry in saved["state"].items()}
        return {**saved, "state": state}

    def _to_save(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        if saves_shares(self):
            return dict(entries)
        gathered = {}
        for name, value in entries.items():
            value = whole(value)  # on every rank; the others let it go at once, to spare memory
            if self.is_global_zero:
                gathered[name] = value
        return gathered

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Writes a folder or a file, at the first rank's path."""
        path = Path(self.broadcast(filepath))
        if saves_shares(self):
            write_folder(checkpoint, path)
            return
        if self.is_global_zero and path.is_dir():
            shutil.rmtree(path)
        Strategy.save_checkpoint(self, checkpoint, path, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a file of any strategy, or a folder; never runs code from it, whatever `weights_only` says."""
        torch.cuda.empty_cache()
        assert self.lightning_module is not None
        fits = self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        return read_file(
            self.broadcast(checkpoint_path),
            "--ckpt_path",
            without=() if fits else ("optimizer_states",),
            mesh=self.device_mesh["data_parallel"],
            mapped=False,  # the optimizer keeps its tensors
        )

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Puts each rank's local shards of the full state into the model."""
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        if any(value.is_meta for value in own.values() if isinstance(value, torch.Tensor)):
            raise ConfigError(
                "--ckpt_path: the model is still on the meta device. Make it on the CPU in configure_model."
            )
        state = {}
        for name, value in checkpoint["state_dict"].items():
            state[name] = sharded_like(value, own[name], name) if name in own else value
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Puts each rank's local shards of the full state into the optimizers, frozen parameters included.

        Torch's `set_optimizer_state_dict` loses the moments of parameters that are frozen at that moment.
        """
        if not checkpoint["optimizer_states"]:  # only the weights are taken
            return
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict({**saved, "state": _sharded_state(optimizer, saved)})


def end_process_group() -> None:
    """Ends gloo's threads before the interpreter ends; Lightning does so for nccl alone."""
    # a thread that still has to release its last work needs the interpreter; if that is ending, the process aborts or
    # hangs, after a run that went well (torch 2.13, 2 ranks on 2 cores: one process in 12)
    if dist.is_initialized():
        gc.collect()  # wrappers in cycles keep the threads
        dist.destroy_process_group()
        time.sleep(0.1)  # seconds, for threads that third-party wrappers keep


def _sharded_state(optimizer: Optimizer, saved: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Index → state of one parameter, sharded as the parameter is."""
    state: dict[int, dict[str, Any]] = {}
    for group, saved_group in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        for parameter, index in zip(group["params"], saved_group["params"], strict=True):
            if index not in saved["state"]:  # it has not been trained yet
                continue
            state[index] = dict(saved["state"][index])
            for key, value in state[index].items():
                if isinstance(value, torch.Tensor) and value.ndim:  # steps have no dimension and are not sharded
                    state[index][key] = sharded_like(value, parameter, f"{type(optimizer).__name__}'s {key}")
    return state


def shard_if_asked(strategy: Strategy, module: nn.Module, groups: Iterable[Mapping[str, Any]]) -> None:
    """Shards a built network with its named param groups under `FSDP2Strategy`, once; else does nothing."""
    if isinstance(strategy, FSDP2Strategy):
        if not isinstance(module, FSDPModule):
            shard(module, strategy.device_mesh["data_parallel"], groups)
    elif isinstance(module, FSDPModule):
        raise ConfigError(
            "trainer.strategy: the network was sharded by an earlier Trainer. Use 'fsdp2' again, or load its "
            "checkpoint: HybridTask.load_from_checkpoint(path)."
        )


StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 with exact unfreezing", override=True)
