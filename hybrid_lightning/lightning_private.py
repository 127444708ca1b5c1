"""The one door to the private names of Lightning, checked with 2.6; no other file of the package uses any.

Lightning may change what is private without notice, so each entry has a test against the installed version. An entry is
named by what it gives; a private hook that we override is offered by a thin base class under a public name.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loops.evaluation_loop import RestartStage as ValidationStage
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.fit_loop import RestartStage as FitStage
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.connectors.data_connector import _DataLoaderSource
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn

_BEFORE = ("on_before_batch_transfer",)
_MOVING = ("transfer_batch_to_device", "on_after_batch_transfer")
_HOOKS = _BEFORE + _MOVING
_LIGHTNING = ("lightning",)
_KNOWN_AUTHORS = (*_LIGHTNING, __package__)
_STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)

# Where a run stands


def data_fetcher(trainer: Trainer) -> Any:
    """What the fit loop reads batches from; None outside of a run."""
    # to put other loaders under a run that runs, and to ask for its length (2.6 shows the loaders alone)
    return trainer.fit_loop._data_fetcher


def validation_fetcher(trainer: Trainer) -> Any:
    """What the validation of a run reads batches from; None outside of a validation."""
    # to make its iterators anew once their seed is known (2.6 makes them before any hook)
    return trainer.fit_loop.epoch_loop.val_loop._data_fetcher


def hands_out_iterator(fetcher: Any) -> bool:
    """Whether a fetcher gives the module an iterator, ``training_step(self, dataloader_iter)``, in place of batches."""
    # nobody counts what the module then reads (2.6 tells this case by the fetcher's class alone)
    return isinstance(fetcher, _DataLoaderIterDataFetcher)


def validation_is_due(trainer: Trainer) -> bool:
    """Whether a validation follows the batch that has just been trained; False outside of a run."""
    # the rule has many cases, and has to be Lightning's own (2.6 keeps it private)
    fetcher = data_fetcher(trainer)
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def accumulates(trainer: Trainer) -> bool:
    """Whether the gradients of the batch that has just been trained wait for a later step."""
    # the last batch of an epoch makes a step in any case, which only the loop knows in time (2.6)
    return trainer.fit_loop.epoch_loop._should_accumulate()


def logged_steps(trainer: Trainer) -> int:
    """The step that loggers are given, which is not ``global_step`` with several optimizers."""
    # so that our values stand in the row of Lightning's own (2.6, as in `LearningRateMonitor`)
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def skip_empty_hooks(owner: Callback | LightningModule) -> None:
    """Lets the Trainer pass over those hooks of a step that a callback or a module leaves as Lightning has them."""
    # for each it makes ready its profiler, which takes longer than many hooks do, unless it cannot be called (2.6)
    base = LightningModule if isinstance(owner, LightningModule) else Callback
    for name in _STEP_HOOKS:
        if getattr(type(owner), name) is getattr(base, name) and name not in vars(owner):
            setattr(owner, name, None)


# Continuing a run


def set_logged_steps(trainer: Trainer, steps: int) -> None:
    """Sets the step that loggers are given."""
    # a checkpoint that is saved in a hook of the batch holds it before it is counted (2.6)
    trainer.fit_loop.epoch_loop._batches_that_stepped = steps


def forget_restart(loop: Any) -> None:
    """Tells one loop of a restored fit that it starts as usual; the loops within it stay as they are."""
    # the public ``restarting`` sets them too, and they have to know where they stand (2.6)
    loop._restarting = False


def restart_at_epoch_start(trainer: Trainer) -> None:
    """Lets a restored fit loop start its epoch, with the hooks and the count of one that starts."""
    # within an epoch, 2.6 would call no ``on_train_epoch_start``
    trainer.fit_loop._restart_stage = FitStage.RESTARTED_ON_EPOCH_START


def restart_within_validation(trainer: Trainer) -> None:
    """Lets a restored fit begin with the validation that was due when it was saved."""
    # 2.6 makes up for one only if it was saved within it
    trainer.fit_loop.epoch_loop.val_loop._restart_stage = ValidationStage.RESTARTED_MID_EVALUATION


def is_restoring(trainer: Trainer) -> bool:
    """Whether a checkpoint has been read, and not all of it has been restored."""
    # what fails then fails because of the file (2.6 forgets it at the end of restoring alone)
    return bool(trainer._checkpoint_connector._loaded_checkpoint)


# Data


def loaders_to_read(trainer: Trainer) -> Any:
    """The loaders that the running loop is about to read, made anew if a method makes them."""
    # in ``setup`` 2.6 shows none yet, whether they come from a DataModule, from the module or as an argument
    loop: Any = trainer._active_loop
    return loop._data_source.dataloader()


def remember_loaders(trainer: Trainer) -> None:
    """Lets a Trainer keep the training loaders that it is given from now on, for `loaders_as_given`."""
    # on several ranks 2.6 makes others from them, and forgets them; making them again may take long
    source = trainer.fit_loop._data_source
    if not isinstance(source, _RememberingSource):
        trainer.fit_loop._data_source = _RememberingSource(source.instance, source.name)


def loaders_as_given(trainer: Trainer) -> Any:
    """The training loaders as the user has made them, flat; none unless they are remembered."""
    return getattr(trainer.fit_loop._data_source, "given", [])


class _RememberingSource(_DataLoaderSource):
    """Where a loop takes its loaders from, which are kept."""

    given: list[Any]

    def dataloader(self) -> Any:
        found = super().dataloader()
        self.given = CombinedLoader(found).flattened
        return found


def attach(trainer: Trainer, module: LightningModule, data: LightningDataModule) -> None:
    """Lets a Trainer, a module and its data know each other, so that batches get their hooks."""
    # without a run, 2.6 does it in private alone
    trainer._data_connector.attach_data(module, datamodule=data)
    trainer.strategy.connect(module)


def trainer_of(module: LightningModule) -> Trainer | None:
    """The Trainer that a module belongs to; None before the first."""
    # ``module.trainer`` raises without one, and cannot be asked (2.6)
    return module._trainer


def batch_as_given(
    trainer: Trainer, module: LightningModule, batch: Any, checked: bool = True, device: torch.device | None = None
) -> Any:
    """A batch as a loop gives it to the module: converted, after the hooks of batches, on a device, by default its own.

    Of a `BatchCheckingModule` it is also `checked`.
    """
    # whether a hook of the DataModule or of the module is called, 2.6 decides in private
    converted = trainer.precision_plugin.convert_input(batch)
    if checked:
        return trainer.strategy.batch_to_device(module._on_before_batch_transfer(converted), device)
    on_cpu = LightningModule._on_before_batch_transfer(module, converted)
    return LightningModule._apply_batch_transfer_handler(module, on_cpu, device or trainer.strategy.root_device)


class BatchCheckingModule(LightningModule):
    """A LightningModule that sees each batch once, whoever has the hooks of batches.

    Of a DataModule and a module that both have ``on_before_batch_transfer``, 2.6 calls the DataModule's alone.
    """

    def check_batch(self, batch: Any) -> None:
        """Looks at a batch on the CPU; if somebody's hooks change it later, then after them, on its device."""

    def has_own_hooks(self, names: Iterable[str] = _HOOKS, known_authors: Iterable[str] = _KNOWN_AUTHORS) -> bool:
        """Whether one of these hooks of batches is somebody's own, not of Lightning or us, and may change anything."""
        trainer = self._trainer
        selector = trainer._data_connector._datahook_selector if trainer else None
        # asked for each batch, and the same for a whole run, which has a selector of its own (2.6)
        answers: dict[Any, bool] = {} if selector is None else vars(selector).setdefault(__package__, {})
        question = names, known_authors
        if question not in answers:
            owners = [selector.get_instance(name) if selector else self for name in names]
            modules = [getattr(hook, "__module__", None) for hook in map(getattr, owners, names)]
            answers[question] = not {str(module).partition(".")[0] for module in modules}.issubset(known_authors)
        return answers[question]

    def _on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        if self.has_own_hooks(_BEFORE, _LIGHTNING):
            batch = super()._on_before_batch_transfer(batch, dataloader_idx)
        if not self.has_own_hooks(_MOVING):
            self.check_batch(batch)
        return batch

    def _apply_batch_transfer_handler(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        stays = (device or self.device).type == "cpu" and is_plain_on_cpu(batch)
        if stays and not self.has_own_hooks(_MOVING, _LIGHTNING):
            return in_new_containers(batch)  # Lightning's walk takes as long as all checks of a batch
        batch = super()._apply_batch_transfer_handler(batch, device, dataloader_idx)
        if self.has_own_hooks(_MOVING):
            self.check_batch(batch)
        return batch


def is_plain_on_cpu(value: Any) -> bool:
    """Whether a value is a tensor of the CPU, text or a number, or a dict or list of such values."""
    if type(value) is dict:
        return all(map(is_plain_on_cpu, value.values()))
    if type(value) is list:
        return all(map(is_plain_on_cpu, value))
    return value.is_cpu if isinstance(value, Tensor) else isinstance(value, str | int | float)


def in_new_containers(value: Any) -> Any:
    """The same tensors, text and numbers; what somebody does with the dicts and lists leaves the loader's alone."""
    if type(value) is dict:
        return {key: in_new_containers(entry) for key, entry in value.items()}
    return [*map(in_new_containers, value)] if type(value) is list else value


def combination_of(combined: CombinedLoader) -> str:
    """How several loaders are combined, such as ``max_size_cycle``."""
    # given to the constructor, and kept in private (2.6)
    return str(combined._mode)


def wrapped_samplers(holder: Any) -> list[Any]:
    """The samplers in what Lightning wraps around any sampler to share it among ranks."""
    # they draw from generators that have to be seeded, and 2.6 keeps them in private
    held = getattr(holder, "__dict__", {})
    found = [held["_sampler"]] if "_sampler" in held else []
    if hasattr(held.get("dataset"), "_sampler"):
        found.append(held["dataset"])
    return found


# Checkpoints and logs


def save_now(callback: ModelCheckpoint, trainer: Trainer) -> None:
    """Saves a checkpoint at this moment, under the rules of the callback for names and numbers of files."""
    # 2.6 saves at moments of its own alone
    callback._save_topk_checkpoint(trainer, callback._monitor_candidates(trainer))


class RankingCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that sees the values that it ranks by, and is told of each checkpoint that it has saved.

    2.6 takes the values, and saves, in private.
    """

    def candidates(self, trainer: Trainer, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Metric → value of this moment, of which ``monitor`` is ranked; may be changed."""
        return values

    def on_better(self, trainer: Trainer) -> None:
        """Called after a checkpoint among the best has been saved; does nothing."""

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        return self.candidates(trainer, super()._monitor_candidates(trainer))

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        super()._update_best_and_save(current, trainer, monitor_candidates)
        self.on_better(trainer)


def is_local(path: str | Path) -> bool:
    """Whether a path is a place on this machine's file systems, not a URL."""
    # has to be told as Lightning tells it, which writes the others (2.6)
    return _is_local_file_protocol(path)


def log_train_step(trainer: Trainer) -> None:
    """Gives the loggers what the step has logged, if the Trainer logs this step."""
    # 2.6 does so after the hooks of the batch, and so never for a process that ends within one
    trainer._logger_connector.update_train_step_metrics()


def shared_log_keys(trainer: Trainer) -> list[str]:
    """What has been logged in the running loop and is put together of all ranks at its end, in this order."""
    # a rank that logs other keys would be waited for, or its values taken for those of another key (2.6 asks nobody)
    found = []
    for key, metric in (trainer._results or {}).items():
        is_shared = metric.meta.sync.should or not metric.is_tensor
        if metric.meta.on_epoch and is_shared:
            found.append(str(key))
    return found


def cluster_environment(trainer: Trainer) -> ClusterEnvironment:
    """What started the processes of the run, such as SLURM."""
    # not every strategy shows it (2.6)
    return trainer._accelerator_connector.cluster_environment


def write_count(tensor: Tensor) -> int:
    """How often values of a tensor have been written in place; 0 for a tensor of inference mode."""
    # torch counts for autograd, under a name that Lightning uses for other things
    return 0 if tensor.is_inference() else tensor._version


def has_gradient_hooks(parameter: nn.Parameter) -> bool:
    """Whether something is called with a parameter's gradient, or after it was added up."""
    # torch's, under names one of which Lightning uses for other things
    return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)


def holders(module: nn.Module) -> list[dict[str, Any]]:
    """The dicts in which a module holds its parameters, its buffers and its children."""
    # torch's, and several times as fast as its walks; under names one of which Lightning uses for other things
    return [module._parameters, module._buffers, module._modules]


def average_of(callback: WeightAveraging) -> nn.Module | None:
    """The module that holds averaged weights; None outside of a run."""
    # what is frozen has to stay as it is there, too (2.6 keeps the copy in private)
    average = callback._average_model
    return None if average is None else average.module


def set_average(callback: WeightAveraging, module: LightningModule) -> None:
    """Lets an average begin at the weights that a module has now."""
    # it copies the module in ``setup``, before the weights may be set
    average = average_of(callback)
    if average is not None:
        average.load_state_dict(module.state_dict())


# Modules


def is_compiled(module: LightningModule) -> bool:
    """Whether `torch.compile` has wrapped a LightningModule that the Trainer has taken out again."""
    # its steps are compiled functions from then on (2.6 says so in private)
    return getattr(module, "_compiler_ctx", None) is not None


# Strategies


def set_data_parallel_size(strategy: ModelParallelStrategy, ranks: int) -> None:
    """Sets how many ranks share the batches, which the constructor cannot know."""
    # ``auto`` is the number of machines in 2.6, not of processes
    strategy._data_parallel_size = ranks


def saves_shares(strategy: ModelParallelStrategy) -> bool:
    """Whether a checkpoint is a folder with each rank's shares."""
    # given to the constructor, and kept in private (2.6)
    return strategy._save_distributed_checkpoint


def ddp_options(strategy: Strategy) -> Mapping[str, Any]:
    """What a strategy passes on to DistributedDataParallel; empty if it does not use that."""
    # asked before the wrapper is there (2.6 keeps it in private)
    options: Mapping[str, Any] = getattr(strategy, "_ddp_kwargs", {})
    return options


def ddp_hook_state(strategy: Strategy) -> Any:
    """The state of a strategy's communication hook; None without one."""
    # given to the constructor, and kept in private (2.6)
    return getattr(strategy, "_ddp_comm_state", None)


def start_method(strategy: Strategy) -> str | None:
    """How a strategy starts the processes of other ranks; None if it starts none."""
    # ``spawn`` and ``fork`` run the fit in children, and give back a part of its outcome (2.6 keeps it in private)
    return getattr(strategy, "_start_method", None)
